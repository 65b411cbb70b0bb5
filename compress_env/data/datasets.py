"""The bundle of four image sets that a task needs, and how sets are split.

Shapes: n images, b images in a minibatch, C channels, H rows, W columns.
"""

from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from compress_env.data.augment import Augment, RandomCropFlip
from compress_env.data.dataset_source import DatasetSource
from compress_env.data.items import item_labels
from compress_env.data.sources import ImageSource, TensorSource, checked_labels
from compress_env.store.digests import digest

__all__ = [
    "Augment",
    "DataBundle",
    "DatasetSource",
    "ImageSource",
    "RandomCropFlip",
    "TensorSource",
    "bundle_of",
    "make_data_bundle",
    "split_in_two",
    "stratified_split",
]


@dataclass(frozen=True)
class DataBundle:
    """The image sets of one task.

    `train`, `validation` and `test` share no image; `calibration` is a part of `train`.

    Raises:
        ValueError: If a set is empty, its labels are out of range, or its images have another
            shape than `image_shape`.
    """

    name: str
    """Name of the data set."""
    train: ImageSource
    """Images for training and fine-tuning."""
    calibration: ImageSource
    """Images for the statistics of LASSO, batch norms and activation ranges."""
    validation: ImageSource
    """Images whose accuracy is the reward."""
    test: ImageSource
    """Images that are used once, after the search."""
    num_classes: int
    """Number of classes; the labels are 0..num_classes-1."""
    image_shape: tuple[int, int, int]
    """Shape of one image, (C, H, W)."""

    def __post_init__(self) -> None:
        """Check the four sets."""
        for role in ("train", "calibration", "validation", "test"):
            self._check(role, getattr(self, role))

    def to(self, device: torch.device | str) -> "DataBundle":
        """Return the same bundle with its minibatches on `device`."""
        device = torch.device(device)
        return replace(
            self,
            train=self.train.to(device),
            calibration=self.calibration.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
        )

    def digest(self) -> str:
        """Return a hex sha256 of all that the search for a compressed network may see.

        That is everything but the test set and the name: see `ImageSource.digest`.
        """
        sources = (self.train, self.calibration, self.validation)
        settings = (self.num_classes, tuple(self.image_shape))
        return digest(*(source.digest() for source in sources), *settings)

    def _check(self, role: str, source: ImageSource) -> None:
        if len(source) == 0:
            raise ValueError(f"the {role} set is empty")
        labels = checked_labels(source.labels, len(source))
        outside = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(outside) > 0:
            expected_labels = f"0..{self.num_classes - 1}"
            got = int(outside[0])
            hint = (
                "; labels count from 0, these from 1: subtract 1" if int(labels.min()) == 1 else ""
            )
            raise ValueError(
                f"{role} labels out of range: expected {expected_labels}, got {got}{hint}"
            )
        shape, expected = tuple(_first_image(source).shape[1:]), tuple(self.image_shape)
        if shape != expected:
            raise ValueError(f"{role} images must have shape {expected}, got {shape}")


def split_in_two(
    source: ImageSource, fraction: float, seed: int
) -> tuple[ImageSource, ImageSource]:
    """Split a set, stratified, into `fraction` of its images and the others.

    Raises:
        ValueError: If `fraction` is not in (0, 1) or either part would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction must be in (0, 1), got {fraction}")
    if len(source) < 2:
        raise ValueError(f"expected at least 2 images for validation and test, got {len(source)}")
    n_first = round(fraction * len(source))
    first, second = stratified_split(source.labels, [n_first, len(source) - n_first], seed)
    return source.subset(first), source.subset(second)


def bundle_of(
    name: str,
    train: ImageSource,
    validation: ImageSource,
    test: ImageSource,
    *,
    num_classes: int,
    n_calibration: int,
    seed: int,
) -> DataBundle:
    """Make a bundle of three sets and draw the calibration set, stratified, from `train`.

    Raises:
        ValueError: If `n_calibration` is below 1, or as `DataBundle`.
    """
    if n_calibration < 1:
        raise ValueError(f"n_calibration must be at least 1, got {n_calibration}")
    size = min(n_calibration, len(train))
    calibration = train.subset(stratified_split(train.labels, [size], seed)[0])
    _, channels, height, width = _first_image(calibration).shape
    shape = (channels, height, width)
    return DataBundle(name, train, calibration, validation, test, num_classes, shape)


def make_data_bundle(
    train: Dataset[Any],
    test: Dataset[Any],
    *,
    name: str = "custom",
    num_classes: int | None = None,
    n_calibration: int = 512,
    validation_fraction: float = 0.5,
    seed: int = 0,
    augment: Augment | None = None,
    num_workers: int = 0,
) -> DataBundle:
    """Make a bundle from your own training and test images.

    Five lines, with images (n, C, H, W), uint8, uint16 or floating, and integer labels (n,)::

        from torch.utils.data import TensorDataset
        from compress_env.data.bundle import make_data_bundle
        train = TensorDataset(train_images, train_labels)
        test = TensorDataset(test_images, test_labels)
        data = make_data_bundle(train, test)

    Args:
        train: Training images: a `TensorDataset` of (images, labels), which is kept in memory, or
            any map-style data set of (image tensor, label), which is read when needed. Labels are
            those that its items have: up to 1,024 are read at once, and all where a list of the
            labels (`targets`) says otherwise.
        test: Images to split, stratified, into the validation set and the test set.
        name: Name of the bundle, used in file names.
        num_classes: Number of classes; by default one more than the largest label.
        n_calibration: Number of training images for calibration; all of them if there are fewer.
        validation_fraction: Fraction of `test` that becomes the validation set, in (0, 1).
        seed: Seed of the split and of the choice of calibration images.
        augment: Augmentation of the training minibatches.
        num_workers: Number of reading processes of map-style data sets.

    Returns:
        The bundle, on the CPU.

    Raises:
        TypeError: If a data set does not yield tensors.
        ValueError: If an argument is out of range or the images or labels are not as above.
    """
    train_source = _make_source(train, augment, num_workers)
    test_source = _make_source(test, None, num_workers)
    if num_classes is None:
        num_classes = _count_classes(torch.cat([train_source.labels, test_source.labels]))
    validation, held_out = split_in_two(test_source, validation_fraction, seed)
    sources = (train_source, validation, held_out)
    return bundle_of(
        name, *sources, num_classes=num_classes, n_calibration=n_calibration, seed=seed
    )


def _make_source(
    dataset: Dataset[Any], augment: Augment | None, num_workers: int
) -> TensorSource | DatasetSource:
    if type(dataset) is TensorDataset:  # a class derived from it may change items
        if len(dataset.tensors) != 2:
            raise ValueError(f"expected (images, labels), got {len(dataset.tensors)} tensors")
        images, labels = dataset.tensors
        return TensorSource(images, labels, augment=augment)
    if len(cast(Sized, dataset)) == 0:
        raise ValueError("the data set is empty")
    read = item_labels(dataset)
    return DatasetSource(dataset, labels=read, augment=augment, num_workers=num_workers)


def _count_classes(labels: Tensor) -> int:
    """Return one more than the largest label.

    Raises:
        ValueError: If the labels seem to count from 1.
    """
    if int(labels.min()) == 1:
        raise ValueError(
            "no image has label 0, and labels count from 0: subtract 1 from them, or give "
            "num_classes= if the first class has no images"
        )
    return 1 + int(labels.max())


def stratified_split(labels: Tensor, sizes: Sequence[int], seed: int) -> list[Tensor]:
    """Draw disjoint sets of the given sizes with the class proportions of the whole.

    Each class is shuffled and its members are spread evenly over [0, 1); cutting this line into
    pieces gives each piece every class in proportion, up to rounding.

    Args:
        labels: (n,) int64.
        sizes: Size of each set; each at least 1, their sum at most n.
        seed: Seed of the shuffling.

    Returns:
        The indices of each set, increasing, int64.

    Raises:
        ValueError: If a size is below 1 or their sum exceeds n.
    """
    if min(sizes) < 1 or sum(sizes) > len(labels):
        raise ValueError(f"cannot draw sets of {list(sizes)} images from {len(labels)}")
    rng = np.random.default_rng(seed)
    classes = labels.numpy()
    position = np.empty(len(classes))
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        position[members] = (rng.permutation(len(members)) + 0.5) / len(members)
    order = np.lexsort((rng.permutation(len(classes)), position))
    pieces = np.split(order, np.cumsum(sizes))[: len(sizes)]
    return [torch.from_numpy(np.sort(piece)) for piece in pieces]


def _first_image(source: ImageSource) -> Tensor:
    return next(iter(source.batches([torch.tensor([0])])))[0]
