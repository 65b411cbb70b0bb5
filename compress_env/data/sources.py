"""Labelled image sets that yield minibatches on a device.

Shapes: n images, b images in a minibatch, C channels, H rows, W columns.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from compress_env.data.augment import Augment, to_device
from compress_env.store.digests import Code, digest

__all__ = [
    "ImageSource",
    "Labelled",
    "Preprocessing",
    "TensorSource",
    "check_images",
    "checked_labels",
]

_LARGEST = {torch.uint8: 255, torch.uint16: 65_535}
"""What stands for 1 in images of integers. Of other types, nobody knows the range."""


class ImageSource(Protocol):
    """A labelled image set that yields minibatches on its device."""

    @property
    def labels(self) -> Tensor:
        """Labels, (n,) int64, on the CPU."""

    def __len__(self) -> int:
        """Return the number of images, n."""

    def to(self, device: torch.device) -> "ImageSource":
        """Return the same set with its minibatches on `device`."""

    def subset(self, indices: Tensor) -> "ImageSource":
        """Return the images at `indices`, (m,) int64, in that order."""

    def digest(self) -> str:
        """Return a hex sha256 of all that minibatches follow from, whatever the device.

        Equal only for equal content. An augmentation that cannot be identified makes it different
        at each call: see `compress_env.store.digests`.
        """

    def batches(
        self, index_batches: Sequence[Tensor], *, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one minibatch for each entry of `index_batches`.

        Args:
            index_batches: For each minibatch, the indices of its images, (b,) int64 on the CPU.
            generator: A CPU generator. The images are augmented if and only if it is given and the
                source has an augmentation.

        Yields:
            Normalised images (b, C, H, W), float32, and labels (b,), int64, both on the device.
        """


class Preprocessing:
    """Scale images of integers to [0, 1], augment and normalise them, on their device."""

    def __init__(
        self,
        n_channels: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        augment: Augment | None,
    ) -> None:
        """Check that mean and std fit."""
        self.augment = augment
        self._mean = _per_channel("mean", [0.0] * n_channels if mean is None else mean, n_channels)
        self._std = _per_channel("std", [1.0] * n_channels if std is None else std, n_channels)
        self._is_identity = mean is None and std is None
        if not bool((self._std > 0).all()):
            raise ValueError(f"std must be positive, got {std}")

    def to(self, device: torch.device) -> "Preprocessing":
        """Return the same on `device`."""
        moved = copy.copy(self)
        moved._mean, moved._std = self._mean.to(device), self._std.to(device)
        return moved

    def parts(self) -> tuple[Any, ...]:
        """Return what a digest has to contain."""
        return self._mean, self._std, Code(self.augment)

    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return images (b, C, H, W), float32, augmented if a generator is given."""
        largest = _LARGEST.get(images.dtype)
        # In place where it is a copy: new memory for 64 large images costs more than the sums.
        is_copy = largest is not None
        images = images.float() if largest is None else images.float().div_(largest)
        if generator is not None and self.augment is not None:
            images, is_copy = self.augment(images, generator), False
        if self._is_identity:
            return images
        return (images.sub_(self._mean) if is_copy else images - self._mean).div_(self._std)


class Labelled:
    """The part that both kinds of source share."""

    def __init__(self, labels: Tensor, n: int) -> None:
        """Check the labels of n images."""
        self._labels = checked_labels(labels, n)
        self._content: str | None = None  # the digest of what is not code, once it is known

    @property
    def labels(self) -> Tensor:
        """Labels, (n,) int64, on the CPU."""
        return self._labels

    def __len__(self) -> int:
        """Return the number of images, n."""
        return len(self._labels)


class TensorSource(Labelled):
    """An image set kept as one tensor on the device."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augment: Augment | None = None,
    ) -> None:
        """Check the images and the labels.

        Args:
            images: (n, C, H, W), uint8 in 0..255 or uint16 in 0..65535 (scaled to [0, 1] when a
                minibatch is made) or floating (used as it is). Not copied.
            labels: (n,), any integer dtype.
            mean: Mean of each channel, C numbers, subtracted after scaling and augmentation.
            std: Standard deviation of each channel, C positive numbers, divided by after that.
            augment: Augmentation of minibatches, between scaling and normalisation.

        Raises:
            ValueError: If a tensor has the wrong shape or dtype, the set is empty, floating images
                are not finite, or `mean` or `std` do not fit.
        """
        images = images.detach()
        check_images(images)
        self._images = images if images.dtype in _LARGEST else images.float()
        super().__init__(labels, len(images))
        self._device_labels = self._labels.to(images.device)
        preprocess = Preprocessing(images.shape[1], mean, std, augment)
        self._preprocess = preprocess.to(images.device)

    def to(self, device: torch.device) -> "TensorSource":
        """Return the same set on `device`."""
        moved = copy.copy(self)
        moved._images = self._images.to(device)
        moved._device_labels = self._labels.to(device)
        moved._preprocess = self._preprocess.to(device)
        return moved

    def subset(self, indices: Tensor) -> "TensorSource":
        """Return a copy of the images at `indices`, (m,) int64, in that order."""
        if len(indices) == 0:
            raise ValueError("the data set is empty")
        chosen = copy.copy(self)
        chosen._content = None
        chosen._images = self._images[indices.to(self._images.device)]
        chosen._labels = self._labels[indices]
        chosen._device_labels = chosen._labels.to(self._images.device)
        return chosen

    def digest(self) -> str:
        """Return a hex sha256 of images, labels, normalisation and augmentation.

        The images are read at the first call only: they must not be changed in place. See
        `ImageSource.digest`.
        """
        if self._content is None:
            self._content = digest(self._images, self._labels)
        return digest("tensors", self._content, *self._preprocess.parts())

    def batches(
        self, index_batches: Sequence[Tensor], *, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one minibatch for each entry of `index_batches`: see `ImageSource.batches`."""
        if not index_batches:
            return
        everything = to_device(torch.cat(list(index_batches)), self._images.device)
        for indices in torch.split(everything, [len(indices) for indices in index_batches]):
            images = self._preprocess(self._images.index_select(0, indices), generator)
            yield images, self._device_labels.index_select(0, indices)


def _per_channel(name: str, values: Sequence[float], n_channels: int) -> Tensor:
    if len(values) != n_channels:
        raise ValueError(f"{name} needs {n_channels} numbers, one for each channel, got {values}")
    return torch.tensor(values, dtype=torch.float32)[:, None, None]  # (C,) -> (C, 1, 1)


def check_images(images: Tensor) -> None:
    """Check the shape and the type of images.

    Raises:
        ValueError: If they are not (n, C, H, W), their range is not known, or one is not finite.
    """
    if images.ndim != 4 or images.numel() == 0:
        raise ValueError(f"images must be (n, C, H, W), none of them 0, got {tuple(images.shape)}")
    if images.is_floating_point():
        if not bool(torch.isfinite(images).all()):
            raise ValueError("images contain NaN or infinite values")
    elif images.dtype not in _LARGEST:
        raise ValueError(
            f"images must be uint8 or floating, or uint16, got {images.dtype}, whose range is not "
            "known: divide them by their largest value"
        )


def checked_labels(labels: Tensor, n: int) -> Tensor:
    """Return the labels as int64 on the CPU.

    Raises:
        ValueError: If they are not n integers.
    """
    integers = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if labels.ndim != 1 or labels.dtype not in integers:
        raise ValueError(
            "labels must be 1-d and integer, the number of the class from 0 on, got "
            f"{labels.dtype} of shape {tuple(labels.shape)}"
        )
    if len(labels) != n:
        raise ValueError(f"expected one label for each of {n} images, got {len(labels)}")
    return labels.to("cpu", torch.int64)
