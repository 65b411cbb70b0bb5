"""The bundle of four image sets that a task needs, and how sets are split.

Shapes: n images, b images in a minibatch, C channels, H rows, W columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from compress_env.augment import Augment, RandomCropFlip
from compress_env.digests import digest
from compress_env.sources import DatasetSource, ImageSource, TensorSource, checked_labels

__all__ = [
    "Augment",
    "DataBundle",
    "DatasetSource",
    "ImageSource",
    "RandomCropFlip",
    "TensorSource",
    "bundle_of",
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
            raise ValueError(f"{role} labels out of range: expected {expected_labels}, got {got}")
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
