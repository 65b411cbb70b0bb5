"""What builders of named data sets share, and torchvision's data sets that fit in memory."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from compress_env.data.datasets import (
    Augment,
    DataBundle,
    ImageSource,
    TensorSource,
    bundle_of,
    split_in_two,
    stratified_split,
)
from compress_env.errors import reason_of

__all__ = [
    "IMAGENET",
    "PREPARED",
    "READ_ERRORS",
    "DataRequest",
    "OfficialDataset",
    "Preparation",
    "named_bundle",
]

_MAX_TRAIN_IMAGES = 50_000
READ_ERRORS = (
    ArithmeticError,
    AssertionError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)
"""What torchvision's readers raise on files that are not as they should be."""


@dataclass(frozen=True)
class Preparation:
    """What becomes of photographs before a network sees them."""

    mean: tuple[float, ...]
    """Mean of red, green and blue that is taken away, in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation that they are divided by then."""
    interpolation: str = "bilinear"
    """How they are scaled: a value of torchvision's `InterpolationMode`."""
    crop: float = 224 / 256
    """Side of the middle that is cut out, a fraction of the shorter side before, in (0, 1]."""

    def __post_init__(self) -> None:
        """Check the crop.

        Raises:
            ValueError: If it is out of range.
        """
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be in (0, 1], got {self.crop}")


PREPARED = ("imagenet", "folder")
"""Data sets of photographs, which go through what a network expects; others have their own."""
IMAGENET = Preparation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""The usual one, with the mean and the standard deviation of ImageNet."""


@dataclass(frozen=True)
class DataRequest:
    """What a builder of a named data set needs."""

    root: Path
    """Directory with the files of the data sets."""
    download: bool = False
    """Whether to download missing files."""
    size: int | None = None
    """Side of the images in pixels; None for the data set's own."""
    n_calibration: int = 512
    """Number of calibration images; all training images if there are fewer."""
    seed: int = 0
    """Seed of the splits."""
    preparation: Preparation = IMAGENET
    """Of the images of `imagenet`; of `folder`, mean and standard deviation alone count."""


def named_bundle(
    name: str, request: DataRequest, num_classes: int, train: ImageSource, *held_out: ImageSource
) -> DataBundle:
    """Make a bundle; if there is one held-out set only, split it into validation and test."""
    if len(held_out) == 1:
        held_out = split_in_two(held_out[0], 0.5, request.seed)
    return bundle_of(
        name,
        train,
        *held_out,
        num_classes=num_classes,
        n_calibration=request.n_calibration,
        seed=request.seed,
    )


@dataclass(frozen=True)
class OfficialDataset:
    """A torchvision data set that fits in memory, with its official training and test images.

    Where its files are missing, a tree of `train/CLASS/IMAGE` and `test/CLASS/IMAGE` may stand for
    them: the classes by name in their order, the images as large as the original ones.
    """

    name: str
    """Its name here."""
    reader_name: str
    """torchvision's class."""
    mean: Sequence[float]
    """Mean of each channel of the training images, in [0, 1]."""
    std: Sequence[float]
    """Standard deviation of each channel of the training images."""
    augment: Augment
    """Augmentation of the training images."""
    num_classes: int = 10
    """Number of classes."""
    tree_shape: tuple[int, int, int] | None = None
    """Shape of the images, (C, H, W), where a tree of image files may stand for torchvision's."""

    @property
    def reader(self) -> Any:
        """The class itself."""
        from torchvision import datasets

        return getattr(datasets, self.reader_name)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that must be there, relative to the data root, all in one directory."""
        reader = self.reader
        if hasattr(reader, "resources"):  # of the MNIST family
            names = [file.removesuffix(".gz") for file, _ in reader.resources]
            return tuple(f"{reader.__name__}/raw/{name}" for name in names)
        names = [file for file, _ in reader.train_list + reader.test_list]
        return tuple(f"{reader.base_folder}/{name}" for name in [*names, reader.meta["filename"]])

    def __call__(self, request: DataRequest) -> DataBundle:
        """Split the test images in two and keep at most 50,000 of the training images."""
        if request.size is not None:
            raise ValueError(
                f"{self.name} images keep their size; size= (--image-size) is for digits, imagenet "
                "and folder"
            )
        train, test = self._read(request)
        if len(train) > _MAX_TRAIN_IMAGES:
            chosen = stratified_split(train.labels, [_MAX_TRAIN_IMAGES], request.seed)[0]
            train = train.subset(chosen)
        return named_bundle(self.name, request, self.num_classes, train, test)

    def _read(self, request: DataRequest) -> tuple[TensorSource, TensorSource]:
        files = self.files
        directory = (request.root / files[0]).parent
        missing = [file for file in files if not (request.root / file).is_file()]
        if missing and self.tree_shape is not None and (request.root / "train").is_dir():
            return self._read_tree(request.root, self.tree_shape)
        if missing and not request.download:
            tree = "" if self.tree_shape is None else " or a tree of train/CLASS and test/CLASS"
            raise FileNotFoundError(
                f"{self.name}: no {missing[0]}{tree} in {request.root}; download it with "
                "download=True (--download, or in --env-kwargs) or name another directory with "
                "data_root= (--data-root)"
            )
        lock = FileLock(request.root / f".{self.name}.lock") if request.download else nullcontext()
        try:
            with lock:
                return self._source(request, train=True), self._source(request, train=False)
        except READ_ERRORS as error:
            if missing:
                raise ConnectionError(
                    f"{self.name}: cannot download to {directory}: {reason_of(error)}"
                ) from error
            raise ValueError(
                f"{self.name}: corrupt file in {directory} ({reason_of(error)}); delete the "
                "directory and download it again with download=True (--download, or in "
                "--env-kwargs)"
            ) from error

    def _read_tree(
        self, root: Path, shape: tuple[int, int, int]
    ) -> tuple[TensorSource, TensorSource]:
        from compress_env.data.image_folders import decode_split

        train, test = decode_split(self.name, root, self.num_classes, shape)
        return self._prepared(*train, train=True), self._prepared(*test, train=False)

    def _source(self, request: DataRequest, *, train: bool) -> TensorSource:
        official = self.reader(request.root, train=train, download=request.download)
        images = torch.as_tensor(official.data)
        # (n, H, W) -> (n, 1, H, W) or (n, H, W, C) -> (n, C, H, W)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        return self._prepared(images, torch.as_tensor(official.targets), train=train)

    def _prepared(self, images: Tensor, labels: Tensor, *, train: bool) -> TensorSource:
        augment = self.augment if train else None
        return TensorSource(images, labels, mean=self.mean, std=self.std, augment=augment)
