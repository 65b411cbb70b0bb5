"""Named data sets: a dict of builders, each of which makes a `DataBundle`.

torchvision and scikit-learn's data sets are imported by who needs them: each takes about as long to
import as PyTorch, and every worker process imports this module.
"""

import copy
import functools
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from compress_env.data.datasets import (
    Augment,
    DataBundle,
    DatasetSource,
    ImageSource,
    RandomCropFlip,
    TensorSource,
    make_data_bundle,
    stratified_split,
)
from compress_env.data.official import (
    IMAGENET,
    PREPARED,
    READ_ERRORS,
    DataRequest,
    OfficialDataset,
    Preparation,
    named_bundle,
)
from compress_env.errors import reason_of
from compress_env.names import check_name
from compress_env.networks.checkpoints import cache_dir, default_data_root

__all__ = [
    "DATASETS",
    "Augment",
    "DataBundle",
    "DataRequest",
    "DatasetSource",
    "ImageSource",
    "Preparation",
    "RandomCropFlip",
    "TensorSource",
    "cache_dir",
    "load_data",
    "make_data_bundle",
    "stratified_split",
    "stream_folder",
]

_logger = logging.getLogger(__name__)
# Every process of a search holds a copy: 8 of them 8 GiB. 7,133 images of 224x224.
_MAX_DECODED_BYTES = 2**30
_MAX_WORKERS = 8
_LARGEST_SIDE = 4096
"""Larger images are larger than any network here takes: one is 48 MiB."""
_LARGEST_DIGITS = 256
"""All digits of that side are half a gigabyte."""
_N_VALIDATION = 10_000
"""Training images of ImageNet that validate."""


def load_data(
    name: str,
    *,
    data_root: str | Path | None = None,
    download: bool = False,
    size: int | None = None,
    n_calibration: int = 512,
    seed: int = 0,
    preparation: Preparation | None = None,
) -> DataBundle:
    """Load a named data set.

    Args:
        name: A key of `DATASETS`.
        data_root: Directory with the files; for `folder`, the tree itself. By default the
            environment variable COMPRESS_ENV_DATA, or else a directory in the user's cache.
        download: Whether to download missing files.
        size: Side of the images in pixels, for `digits` and `digits32` (default 32), `digits16`
            (default 16), `digits8` (default 8), `imagenet` (default 224) and `folder` (default: as
            they are).
        n_calibration: Number of calibration images; all training images if there are fewer.
        seed: Seed of the splits.
        preparation: What the images of `imagenet` and `folder` go through, in place of the usual
            scaling and ImageNet's mean and standard deviation; other data sets have their own. See
            `compress_env.networks.libraries.preparation_of`.

    Returns:
        The bundle, on the CPU.

    Raises:
        ConnectionError: If the download fails.
        FileNotFoundError: If files are missing and `download` is false.
        ValueError: If an argument is not valid or a file is corrupt.
    """
    check_name("data set", name, DATASETS)
    if size is not None and not 1 <= size <= _LARGEST_SIDE:
        raise ValueError(f"size must be in [1, {_LARGEST_SIDE}] pixels, got {size}")
    root = default_data_root() if data_root is None else Path(data_root).expanduser()
    own = IMAGENET if preparation is None else preparation
    if own != IMAGENET and name in PREPARED:
        _logger.info(
            "%s: images with mean %s and standard deviation %s, as timm's published weights expect "
            "(preparation= or --preparation says otherwise)",
            name,
            own.mean,
            own.std,
        )
    return DATASETS[name](DataRequest(root, download, size, n_calibration, seed, own))


def _digits(
    name: str,
    own_size: int,
    request: DataRequest,
    *,
    held_out_percent: int = 20,
    least_shift: int = 0,
) -> DataBundle:
    """scikit-learn's 1,797 handwritten digits, 8x8, enlarged; 60/20/20 % for the three sets.

    Args:
        name: Name of the bundle.
        own_size: Side of the images in pixels unless the request has one.
        request: What else is wanted.
        held_out_percent: Part of the images that validates, and that tests.
        least_shift: Training images are shifted by a sixteenth of their side, but by this many
            pixels if that is more.
    """
    size = own_size if request.size is None else request.size
    if not 8 <= size <= _LARGEST_DIGITS:
        raise ValueError(f"the size of {name} must be in [8, {_LARGEST_DIGITS}], got {size}")
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    # (n, 64) -> (n, 1, 8, 8)
    images = torch.from_numpy(pixels / 16).float().reshape(-1, 1, 8, 8)
    images = torch.nn.functional.interpolate(images, (size, size), mode="bilinear")
    labels = torch.from_numpy(digits)
    n_held_out = len(labels) * held_out_percent // 100
    sizes = [len(labels) - 2 * n_held_out, n_held_out, n_held_out]
    splits = stratified_split(labels, sizes, request.seed)
    mean, std = float(images[splits[0]].mean()), float(images[splits[0]].std())
    shift = RandomCropFlip(padding=max(least_shift, size // 16), flip=False)
    sources = [
        TensorSource(images[chosen], labels[chosen], mean=[mean], std=[std], augment=augment)
        for chosen, augment in zip(splits, (shift, None, None), strict=True)
    ]
    return named_bundle(name, request, 10, *sources)


def _digits16(request: DataRequest) -> DataBundle:
    """`digits` at 16x16; 128 images calibrate, so that a step of pruning is cheap **(ours)**."""
    return _digits("digits16", 16, replace(request, n_calibration=min(128, request.n_calibration)))


def _digits8(request: DataRequest) -> DataBundle:
    """The digits in their own 8x8 pixels, 40/30/30 %; 128 images calibrate **(ours)**."""
    few = replace(request, n_calibration=min(128, request.n_calibration))
    return _digits("digits8", 8, few, held_out_percent=30, least_shift=1)


def _imagenet(request: DataRequest) -> DataBundle:
    """ImageNet (ILSVRC 2012), read from `root/imagenet` in torchvision's layout.

    10,000 of the training images validate (a tenth where there are fewer than 100,000 **(ours)**),
    stratified; the 50,000 images of `val` test (Zhan, Lin & Cao 2021, arXiv 1912.02254).
    """
    from torchvision import datasets
    from torchvision.transforms import v2

    from compress_env.data.image_folders import check_same_classes

    root = request.root / "imagenet"
    size = 224 if request.size is None else request.size
    needed = {"meta.bin": "devkit_t12.tar.gz", "train": "img_train.tar", "val": "img_val.tar"}
    for unpacked, archive in needed.items():
        if not (root / unpacked).exists() and not (root / f"ILSVRC2012_{archive}").is_file():
            raise FileNotFoundError(
                f"imagenet: no ILSVRC2012_{archive} in {root}; it cannot be downloaded "
                "automatically: put it there or set data_root= (--data-root)"
            )
    try:
        train = datasets.ImageNet(root, "train")
        held_out = datasets.ImageNet(root, "val")
    except READ_ERRORS as error:
        raise ValueError(f"imagenet: corrupt file in {root} ({reason_of(error)})") from error
    check_same_classes("imagenet", {"train": train.wnids, "val": held_out.wnids})
    own = request.preparation
    train.transform = held_out.transform = _resize(round(size / own.crop), size, own)
    augmented = copy.copy(train)
    augmented.transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, **_interpolation(own)),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )
    sources = _lazy(train, own, augmented=augmented), _lazy(held_out, own)
    training, test = sources
    n_validation = max(1, min(_N_VALIDATION, len(training) // 10))
    sizes = [len(training) - n_validation, n_validation]
    rest, validation = stratified_split(training.labels, sizes, request.seed)
    splits = training.subset(rest), training.subset(validation), test
    return named_bundle("imagenet", request, len(train.classes), *splits)


def _folder(request: DataRequest) -> DataBundle:
    """Any tree of `train/CLASS/IMAGE` with `val` and `test` beside `train`, or one of them.

    Of a tree of `CLASS/IMAGE`, 80 % of the images train, 10 % validate and 10 % test **(ours)**.
    """
    from compress_env.data.image_folders import ImageTree, check_same_classes

    if not request.root.is_dir():
        raise FileNotFoundError(f"folder: no folder {str(request.root)!r}")
    splits = [split for split in ("train", "val", "test") if (request.root / split).is_dir()]
    if not splits:
        return _unsplit_folder(request)
    if "train" not in splits or len(splits) == 1:
        raise FileNotFoundError(
            f"folder: expected train/ and val/ or test/ in {request.root}; name the tree with "
            "data_root= (--data-root)"
        )
    trees = [ImageTree(request.root / split, allow_empty=split != "train") for split in splits]
    classes = {split: tree.classes for split, tree in zip(splits, trees, strict=True)}
    check_same_classes("folder", classes)
    sources = _folder_sources(trees, request)
    return named_bundle("folder", request, len(classes["train"]), *sources)


def _unsplit_folder(request: DataRequest) -> DataBundle:
    from compress_env.data.image_folders import ImageTree

    if not any(child.is_dir() for child in request.root.iterdir()):
        raise FileNotFoundError(
            f"folder: expected train/ and val/ or test/, or a folder for each class, in "
            f"{request.root}; name the tree with data_root= (--data-root)"
        )
    tree = ImageTree(request.root, allow_empty=False)
    n_held_out = len(tree) // 10
    if n_held_out == 0:
        raise ValueError(f"folder: expected at least 10 images in {request.root}, got {len(tree)}")
    (source,) = _folder_sources([tree], request)
    sizes = [len(tree) - 2 * n_held_out, n_held_out, n_held_out]
    splits = stratified_split(source.labels, sizes, request.seed)
    sources = [source.subset(chosen) for chosen in splits]
    return named_bundle("folder", request, len(tree.classes), *sources)


def _folder_sources(trees: Sequence[Any], request: DataRequest) -> list[ImageSource]:
    """Keep the images of all trees in memory if they fit, otherwise read them when needed."""
    from torchvision.transforms import v2

    from compress_env.data.image_folders import decode, decode_all

    size, own = request.size, request.preparation
    for tree in trees:
        tree.transform = v2.PILToTensor() if size is None else _resize(size, size)
    shape = decode(trees[0], 0).shape
    augment = RandomCropFlip(padding=max(1, min(shape[1:]) // 8))
    augments = [augment, *[None] * (len(trees) - 1)]  # the training images come first
    if sum(len(tree) for tree in trees) * math.prod(shape) > _MAX_DECODED_BYTES:
        return [_lazy(tree, own, augment=a) for tree, a in zip(trees, augments, strict=True)]
    return [
        TensorSource(
            torch.from_numpy(decode_all(tree, shape)),
            torch.tensor(tree.targets),
            mean=own.mean,
            std=own.std,
            augment=a,
        )
        for tree, a in zip(trees, augments, strict=True)
    ]


def stream_folder(root: str | Path, *, size: int | None = None) -> DatasetSource:
    """Return the images of a tree `CLASS/IMAGE`, which are read when needed, however many.

    They are decoded in up to eight processes, and neither changed nor kept.

    Args:
        root: The tree.
        size: Side in pixels to which they are scaled; as they are, all the same, when None.

    Raises:
        FileNotFoundError: If there are no classes.
        ValueError: If a class has no images, or the first one cannot be read.
    """
    from torchvision.transforms import v2

    from compress_env.data.image_folders import ImageTree

    tree = ImageTree(Path(root), allow_empty=False)
    tree.transform = v2.PILToTensor() if size is None else _resize(size, size)
    return _lazy(tree, IMAGENET)


def _resize(shorter_side: int, size: int, own: Preparation = IMAGENET) -> Any:
    """Resize the shorter side and cut out the middle: uint8 tensor (3, size, size)."""
    from torchvision.transforms import v2

    scaled = v2.Resize(shorter_side, **_interpolation(own))
    return v2.Compose([scaled, v2.CenterCrop(size), v2.PILToTensor()])


def _interpolation(own: Preparation) -> dict[str, Any]:
    """Return torchvision's option; left out where it is the default, for digests' sake."""
    from torchvision.transforms import v2

    is_default = own.interpolation == IMAGENET.interpolation
    return {} if is_default else {"interpolation": v2.InterpolationMode(own.interpolation)}


def _lazy(
    dataset: Any, own: Preparation, *, augmented: Any = None, augment: Augment | None = None
) -> DatasetSource:
    return DatasetSource(
        dataset,
        augmented=augmented,
        labels=torch.tensor(dataset.targets),
        mean=own.mean,
        std=own.std,
        augment=augment,
        num_workers=min(_MAX_WORKERS, os.cpu_count() or 1),
    )


DATASETS: dict[str, Callable[[DataRequest], DataBundle]] = {
    "digits": functools.partial(_digits, "digits", 32),
    "digits16": _digits16,
    "digits8": _digits8,
    "digits32": functools.partial(_digits, "digits32", 32, held_out_percent=30),
    "mnist": OfficialDataset(
        name="mnist",
        reader_name="MNIST",
        mean=(0.1307,),
        std=(0.3081,),
        augment=RandomCropFlip(padding=2, flip=False),
    ),
    "fashion_mnist": OfficialDataset(
        name="fashion_mnist",
        reader_name="FashionMNIST",
        mean=(0.2860,),
        std=(0.3530,),
        augment=RandomCropFlip(padding=2),
    ),
    "cifar10": OfficialDataset(
        name="cifar10",
        reader_name="CIFAR10",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        augment=RandomCropFlip(padding=4),
        tree_shape=(3, 32, 32),
    ),
    "cifar100": OfficialDataset(
        name="cifar100",
        reader_name="CIFAR100",
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        num_classes=100,
        augment=RandomCropFlip(padding=4),
        tree_shape=(3, 32, 32),
    ),
    "imagenet": _imagenet,
    "folder": _folder,
}
"""Builders by name."""
