"""Labelled image sets that yield minibatches on a device, and the bundle of four that a task needs.

Shapes: n images, b images in a minibatch, C channels, H rows, W columns.
"""

import copy
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

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

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Maps images (b, C, H, W), float32, and a CPU generator to augmented images of the same shape."""


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


@dataclass(frozen=True)
class RandomCropFlip:
    """Shifts each image by up to `padding` pixels, filling with zeros, and flips half of them.

    Runs on the images' device; the random numbers come from the CPU generator, so that the result
    does not depend on the device.
    """

    padding: int
    """Largest shift in either direction, in pixels."""
    flip: bool = True
    """Whether to mirror half of the images left to right."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a minibatch.

        Args:
            images: (b, C, H, W), any dtype, before normalisation (zero is black).
            generator: A CPU generator.

        Returns:
            New images (b, C, H, W).
        """
        n, channels, height, width = images.shape
        shifts = torch.randint(2 * self.padding + 1, (2, n, 1), generator=generator)
        rows = shifts[0] + torch.arange(height)  # (b, 1) + (H,) -> (b, H)
        columns = shifts[1] + torch.arange(width)  # (b, 1) + (W,) -> (b, W)
        if self.flip:
            flipped = torch.rand((n, 1), generator=generator) < 0.5
            columns = torch.where(flipped, columns.flip(1), columns)
        padded = torch.nn.functional.pad(images, [self.padding] * 4)
        device = images.device
        return padded[
            torch.arange(n, device=device)[:, None, None, None],
            torch.arange(channels, device=device)[None, :, None, None],
            rows.to(device)[:, None, :, None],
            columns.to(device)[:, None, None, :],
        ]


class _Preprocessing:
    """Scale uint8 images to [0, 1], augment them and normalise them, on their device."""

    def __init__(
        self,
        n_channels: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        augment: Augment | None,
    ) -> None:
        self.augment = augment
        self._mean = _per_channel("mean", [0.0] * n_channels if mean is None else mean, n_channels)
        self._std = _per_channel("std", [1.0] * n_channels if std is None else std, n_channels)
        self._is_identity = mean is None and std is None
        if not bool((self._std > 0).all()):
            raise ValueError(f"std must be positive, got {std}")

    def to(self, device: torch.device) -> "_Preprocessing":
        moved = copy.copy(self)
        moved._mean, moved._std = self._mean.to(device), self._std.to(device)
        return moved

    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        if generator is not None and self.augment is not None:
            images = self.augment(images, generator)
        return images if self._is_identity else (images - self._mean) / self._std


class _Labelled:
    """The part that both kinds of source share."""

    def __init__(self, labels: Tensor, n: int) -> None:
        self._labels = _checked_labels(labels, n)

    @property
    def labels(self) -> Tensor:
        """Labels, (n,) int64, on the CPU."""
        return self._labels

    def __len__(self) -> int:
        """Return the number of images, n."""
        return len(self._labels)


class TensorSource(_Labelled):
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
            images: (n, C, H, W), uint8 in 0..255 (scaled to [0, 1] when a minibatch is made) or
                floating (used as it is). Not copied.
            labels: (n,), any integer dtype.
            mean: Mean of each channel, C numbers, subtracted after scaling and augmentation.
            std: Standard deviation of each channel, C positive numbers, divided by after that.
            augment: Augmentation of minibatches, between scaling and normalisation.

        Raises:
            ValueError: If a tensor has the wrong shape or dtype, the set is empty, floating images
                are not finite, or `mean` or `std` do not fit.
        """
        _check_images(images)
        self._images = images if images.dtype == torch.uint8 else images.float()
        super().__init__(labels, len(images))
        self._device_labels = self._labels.to(images.device)
        preprocess = _Preprocessing(images.shape[1], mean, std, augment)
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
        chosen._images = self._images[indices.to(self._images.device)]
        chosen._labels = self._labels[indices]
        chosen._device_labels = chosen._labels.to(self._images.device)
        return chosen

    def batches(
        self, index_batches: Sequence[Tensor], *, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one minibatch for each entry of `index_batches`: see `ImageSource.batches`."""
        for indices in index_batches:
            indices = indices.to(self._images.device, non_blocking=True)
            images = self._preprocess(self._images[indices], generator)
            yield images, self._device_labels[indices]


class DatasetSource(_Labelled):
    """An image set too large for memory, read through a `DataLoader`.

    Random transforms in the data set draw from PyTorch's CPU generator, which is seeded for each
    image, by the index or where there is one by the generator, and restored afterwards: the result
    depends neither on `num_workers` nor on the global state.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        augmented: Dataset[Any] | None = None,
        labels: Tensor | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augment: Augment | None = None,
        num_workers: int = 0,
        device: torch.device | None = None,
    ) -> None:
        """Check the images and the labels.

        Args:
            dataset: A map-style data set of (image, label); image is (C, H, W), uint8 in 0..255
                (scaled to [0, 1]) or floating (used as it is), the same shape for all.
            augmented: The same images in the same order with random transforms, read instead of
                `dataset` when a generator is given.
            labels: The labels, (n,), any integer dtype; by default `dataset.targets`, or where
                there is no such attribute, found by reading the whole data set once.
            mean: As for `TensorSource`.
            std: As for `TensorSource`.
            augment: As for `TensorSource`.
            num_workers: Number of processes that read images; 0 reads them in this process.
            device: Where the minibatches go.

        Raises:
            TypeError: If the data set does not yield tensors.
            ValueError: If an image has the wrong shape or dtype, the labels are not integers, the
                set is empty, or `mean` or `std` do not fit.
        """
        n = len(cast(Sized, dataset))
        if n == 0:
            raise ValueError("the data set is empty")
        if augmented is not None and len(cast(Sized, augmented)) != n:
            raise ValueError(f"augmented must have the {n} images of dataset, in the same order")
        image = _SeededImages(dataset)[(0, 0)]
        _check_images(image[None])
        super().__init__(_labels_of(dataset) if labels is None else labels, n)
        self._dataset = dataset
        self._augmented = augmented
        self._num_workers = num_workers
        self._device = torch.device("cpu") if device is None else device
        self._preprocess = _Preprocessing(len(image), mean, std, augment).to(self._device)

    def to(self, device: torch.device) -> "DatasetSource":
        """Return the same set with its minibatches on `device`."""
        moved = copy.copy(self)
        moved._device = device
        moved._preprocess = self._preprocess.to(device)
        return moved

    def subset(self, indices: Tensor) -> "DatasetSource":
        """Return the images at `indices`, (m,) int64, in that order."""
        if len(indices) == 0:
            raise ValueError("the data set is empty")
        chosen = copy.copy(self)
        chosen._labels = self._labels[indices]
        chosen._dataset = Subset(self._dataset, indices.tolist())
        if self._augmented is not None:
            chosen._augmented = Subset(self._augmented, indices.tolist())
        return chosen

    def batches(
        self, index_batches: Sequence[Tensor], *, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one minibatch for each entry of `index_batches`: see `ImageSource.batches`."""
        augmented = None if generator is None else self._augmented
        loader = DataLoader(
            _SeededImages(self._dataset if augmented is None else augmented),
            batch_sampler=_keys(index_batches, generator),
            # Starting processes pays only for more than one minibatch.
            num_workers=self._num_workers if len(index_batches) > 1 else 0,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),
        )
        for indices, images in zip(index_batches, loader, strict=True):
            images = self._preprocess(images.to(self._device, non_blocking=True), generator)
            yield images, self._labels[indices].to(self._device, non_blocking=True)


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

    def _check(self, role: str, source: ImageSource) -> None:
        if len(source) == 0:
            raise ValueError(f"the {role} set is empty")
        labels = _checked_labels(source.labels, len(source))
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


class _SeededImages(Dataset[Tensor]):
    """Maps (index, seed) to an image, made while PyTorch's CPU generator is seeded."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        index, seed = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            image = self._dataset[index][0]
        if not isinstance(image, Tensor):
            raise TypeError(
                "the data set must yield (image tensor, label); its images are "
                f"{type(image).__name__}: add a transform such as torchvision's ToTensor()"
            )
        return image


def _keys(
    index_batches: Sequence[Tensor], generator: torch.Generator | None
) -> Iterator[list[tuple[int, int]]]:
    """Yield the (index, seed) pairs of each minibatch; without a generator, seed = index."""
    lengths = [len(indices) for indices in index_batches]
    if generator is None:
        seeds: Sequence[Tensor] = index_batches
    else:
        seeds = torch.split(torch.randint(2**62, (sum(lengths),), generator=generator), lengths)
    for indices, batch_seeds in zip(index_batches, seeds, strict=True):
        yield list(zip(indices.tolist(), batch_seeds.tolist(), strict=True))


def _labels_of(dataset: Dataset[Any]) -> Tensor:
    """Return the labels that the data set yields, without reading the images where possible."""
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1]
    if isinstance(dataset, Subset):
        return _labels_of(dataset.dataset)[torch.as_tensor(dataset.indices)]
    targets = getattr(dataset, "targets", None)
    if targets is not None and getattr(dataset, "target_transform", None) is None:
        return torch.as_tensor(targets)
    with torch.random.fork_rng(devices=[]):
        return torch.as_tensor([dataset[index][1] for index in range(len(cast(Sized, dataset)))])


def _first_image(source: ImageSource) -> Tensor:
    return next(iter(source.batches([torch.tensor([0])])))[0]


def _per_channel(name: str, values: Sequence[float], n_channels: int) -> Tensor:
    if len(values) != n_channels:
        raise ValueError(f"{name} needs {n_channels} numbers, one for each channel, got {values}")
    return torch.tensor(values, dtype=torch.float32)[:, None, None]  # (C,) -> (C, 1, 1)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.numel() == 0:
        raise ValueError(f"images must be (n, C, H, W), none of them 0, got {tuple(images.shape)}")
    if images.is_floating_point():
        if not bool(torch.isfinite(images).all()):
            raise ValueError("images contain NaN or infinite values")
    elif images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 or floating, got {images.dtype}")


def _checked_labels(labels: Tensor, n: int) -> Tensor:
    """Return the labels as int64 on the CPU."""
    integers = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if labels.ndim != 1 or labels.dtype not in integers:
        raise ValueError(
            f"labels must be 1-d and integer, got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if len(labels) != n:
        raise ValueError(f"expected one label for each of {n} images, got {len(labels)}")
    return labels.to("cpu", torch.int64)
