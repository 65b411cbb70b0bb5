"""Labelled image sets that yield minibatches on a device.

Shapes: n images, b images in a minibatch, C channels, H rows, W columns.
"""

import copy
import json
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from compress_env.augment import Augment, to_device
from compress_env.digests import Code, digest, file_stamps

__all__ = ["DatasetSource", "ImageSource", "TensorSource", "checked_labels"]

_N_SAMPLED = 1024  # images that tell two data sets apart whose files are not known


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
        at each call: see `compress_env.digests`.
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

    def parts(self) -> tuple[Any, ...]:
        """Return what a digest has to contain."""
        return self._mean, self._std, Code(self.augment)

    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        if generator is not None and self.augment is not None:
            images = self.augment(images, generator)
        return images if self._is_identity else (images - self._mean) / self._std


class _Labelled:
    """The part that both kinds of source share."""

    def __init__(self, labels: Tensor, n: int) -> None:
        self._labels = checked_labels(labels, n)
        self._content: str | None = None  # the digest of what is not code, once it is known

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
        image = _SeededImages(dataset).read(0, 0)
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
        chosen._content = None
        chosen._labels = self._labels[indices]
        chosen._dataset = Subset(self._dataset, indices.tolist())
        if self._augmented is not None:
            chosen._augmented = Subset(self._augmented, indices.tolist())
        return chosen

    def digest(self) -> str:
        """Return a hex sha256 of images, labels, transforms, normalisation and augmentation.

        Images that are files (a data set with `samples`, as torchvision's `ImageFolder`, also
        below a `Subset`) are told apart by path, size and time of change; those of other data sets
        by reading 1,024 of them, evenly spaced, at the first call. See `ImageSource.digest`.
        """
        views = [self._dataset] if self._augmented is None else [self._dataset, self._augmented]
        if self._content is None:
            self._content = digest(self._labels, *(_content_of(view) for view in views))
        code = (Code(_code_of(_leaf(view)[0])) for view in views)
        return digest("data set", self._content, *code, *self._preprocess.parts())

    def batches(
        self, index_batches: Sequence[Tensor], *, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one minibatch for each entry of `index_batches`: see `ImageSource.batches`."""
        augmented = None if generator is None else self._augmented
        loader = DataLoader(
            _SeededImages(self._dataset if augmented is None else augmented),
            batch_sampler=_keys(index_batches, generator),
            collate_fn=_stack,
            # Starting processes pays only for more than one minibatch.
            num_workers=self._num_workers if len(index_batches) > 1 else 0,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),
        )
        for indices, images in zip(index_batches, loader, strict=True):
            if isinstance(images, _Unreadable):
                raise images.error
            images = self._preprocess(images.to(self._device, non_blocking=True), generator)
            yield images, to_device(self._labels[indices], self._device)


@dataclass(frozen=True)
class _Unreadable:
    """Stands for an image that cannot be read, as a worker's error would arrive as a traceback."""

    error: OSError | ValueError


class _SeededImages(Dataset[Tensor | _Unreadable]):
    """Maps (index, seed) to an image, made while PyTorch's CPU generator is seeded."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Tensor | _Unreadable:
        try:
            return self.read(*key)
        except (OSError, ValueError) as error:
            return _Unreadable(error)

    def read(self, index: int, seed: int) -> Tensor:
        """Return an image.

        Raises:
            OSError: If it cannot be read.
            TypeError: If it is no tensor.
            ValueError: If it is not as it should be.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                image = self._dataset[index][0]
            except (EOFError, OSError, SyntaxError, ValueError) as error:
                kind = ValueError if isinstance(error, ValueError) else OSError
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                place = _place_of(self._dataset, index)
                raise kind(f"cannot read the image {place}: {reason}") from error
        if not isinstance(image, Tensor):
            raise TypeError(
                "the data set must yield (image tensor, label); its images are "
                f"{type(image).__name__}: add a transform such as torchvision's ToTensor()"
            )
        return image


def _stack(images: list[Tensor | _Unreadable]) -> Tensor | _Unreadable:
    """Make a minibatch, or return the first image that cannot be read."""
    unreadable = (image for image in images if isinstance(image, _Unreadable))
    return next(unreadable, None) or default_collate(images)


def _place_of(dataset: Dataset[Any], index: int) -> str:
    """Name an image by its file, or else by its index."""
    leaf, indices = _leaf(dataset)
    samples = getattr(leaf, "samples", None)
    return str(indices[index]) if samples is None else str(samples[indices[index]][0])


def _leaf(dataset: Dataset[Any]) -> tuple[Any, Sequence[int]]:
    """Return the data set below all subsets, and the indices of the images in it."""
    indices: Sequence[int] = range(len(cast(Sized, dataset)))
    while isinstance(dataset, Subset):
        indices = [dataset.indices[index] for index in indices]
        dataset = dataset.dataset
    return dataset, indices


def _content_of(dataset: Dataset[Any]) -> str:
    """Return a digest of the files of a data set, or else of a sample of its images."""
    leaf, indices = _leaf(dataset)
    if hasattr(leaf, "samples"):
        stamps = file_stamps(leaf.samples[index][0] for index in indices)
        return digest("files", json.dumps(stamps))
    sample = torch.linspace(0, len(indices) - 1, min(_N_SAMPLED, len(indices)), dtype=torch.double)
    read = _SeededImages(dataset).read
    return digest("sample", *(read(index, index) for index in sample.round().long().tolist()))


def _code_of(leaf: Any) -> list[Any]:
    """Return what turns the files or records of a data set into images."""
    return [type(leaf), *(getattr(leaf, x, None) for x in ("loader", "transform", "transforms"))]


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


def checked_labels(labels: Tensor, n: int) -> Tensor:
    """Return the labels as int64 on the CPU."""
    integers = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if labels.ndim != 1 or labels.dtype not in integers:
        raise ValueError(
            f"labels must be 1-d and integer, got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if len(labels) != n:
        raise ValueError(f"expected one label for each of {n} images, got {len(labels)}")
    return labels.to("cpu", torch.int64)
