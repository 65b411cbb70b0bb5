"""Labelled image sets that are read when they are needed.

Shapes: n images, b images in a minibatch, C channels, H rows, W columns.
"""

import copy
import json
from collections.abc import Iterator, Sequence, Sized
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from compress_env.data.augment import Augment, to_device
from compress_env.data.items import (
    Item,
    ItemReader,
    Unreadable,
    files_of,
    leaf_of,
    listed_labels,
    read_labels,
)
from compress_env.data.loading import WarmLoader
from compress_env.data.sources import Labelled, Preprocessing, check_images
from compress_env.store.digests import Code, digest, file_stamps

__all__ = ["DatasetSource"]

_N_SAMPLED = 1024  # items that tell two data sets apart whose files are not known


class DatasetSource(Labelled):
    """An image set too large for memory, read by worker processes through a `DataLoader`.

    While a minibatch is used the next ones are read, two for each worker, into pinned memory where
    they go to a GPU. Between two calls of `batches` the workers wait, see
    `compress_env.data.loading`.

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
            dataset: A map-style data set of (image, label); image is (C, H, W), uint8 in 0..255 or
                uint16 in 0..65535 (scaled to [0, 1]) or floating (used as it is), the same shape
                and type for all.
            augmented: The same images in the same order with random transforms, read instead of
                `dataset` when a generator is given.
            labels: The labels, (n,), any integer dtype; by default those of the items, which
                minibatches then take from them. `labels` is `dataset.targets` then, or where there
                is no such attribute, or the first item has another label, found by reading the
                whole data set once.
            mean: As for `TensorSource`.
            std: As for `TensorSource`.
            augment: As for `TensorSource`.
            num_workers: Number of processes that read images; 0 reads them in this process.
            device: Where the minibatches go.

        Raises:
            TypeError: If the data set does not yield tensors, or no labels.
            ValueError: If an image has the wrong shape or dtype, the labels are not integers, the
                set is empty, or `mean` or `std` do not fit.
        """
        n = len(cast(Sized, dataset))
        if n == 0:
            raise ValueError("the data set is empty")
        if augmented is not None and len(cast(Sized, augmented)) != n:
            raise ValueError(f"augmented must have the {n} images of dataset, in the same order")
        first = ItemReader(dataset, with_labels=labels is None).read(0, 0)
        check_images(first.image[None])
        super().__init__(_labels_of(dataset, first) if labels is None else labels, n)
        self._reads_labels = labels is None
        self._first_image = first.image
        self._dataset = dataset
        self._augmented = augmented
        self._num_workers = num_workers
        self._device = torch.device("cpu") if device is None else device
        self._loaders: dict[bool, WarmLoader] = {}  # by whether they read random transforms
        self._preprocess = Preprocessing(len(first.image), mean, std, augment).to(self._device)

    @property
    def num_workers(self) -> int:
        """Number of processes that read images; 0 where this process reads them."""
        return self._num_workers

    def to(self, device: torch.device) -> "DatasetSource":
        """Return the same set with its minibatches on `device`."""
        moved = copy.copy(self)
        moved._device, moved._loaders = device, {}
        moved._preprocess = self._preprocess.to(device)
        return moved

    def subset(self, indices: Tensor) -> "DatasetSource":
        """Return the images at `indices`, (m,) int64, in that order."""
        if len(indices) == 0:
            raise ValueError("the data set is empty")
        chosen = copy.copy(self)
        chosen._content, chosen._loaders = None, {}
        chosen._labels = self._labels[indices]
        chosen._dataset = Subset(self._dataset, indices.tolist())
        if self._augmented is not None:
            chosen._augmented = Subset(self._augmented, indices.tolist())
        return chosen

    def digest(self) -> str:
        """Return a hex sha256 of images, labels, transforms, normalisation and augmentation.

        Images that are files (a data set with `samples`, as torchvision's `ImageFolder`, also
        below a `Subset`) are told apart by path, size and times of change; those of other data sets
        by reading 1,024 items, evenly spaced, at the first call. See `ImageSource.digest`.
        """
        views = [self._dataset] if self._augmented is None else [self._dataset, self._augmented]
        if self._content is None:
            self._content = digest(self._labels, *(_content_of(view) for view in views))
        code = (Code(_code_of(leaf_of(view)[0])) for view in views)
        return digest("data set", self._content, *code, *self._preprocess.parts())

    def batches(
        self, index_batches: Sequence[Tensor], *, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one minibatch for each entry of `index_batches`: see `ImageSource.batches`."""
        loader = self._loader(is_augmented=generator is not None and self._augmented is not None)
        read = loader.read(_keys(index_batches, generator), len(index_batches))
        for indices, items in zip(index_batches, read, strict=True):
            if isinstance(items, Unreadable):
                read.close()
                loader.end_workers()  # before the error, which holds on to all that is in use
                raise items.error
            images = self._preprocess(items.image.to(self._device, non_blocking=True), generator)
            labels = self._labels[indices] if items.label is None else items.label
            yield images, to_device(labels, self._device)

    def _loader(self, *, is_augmented: bool) -> WarmLoader:
        """Return what reads the images, with or without random transforms."""
        if is_augmented not in self._loaders:
            dataset, like = self._dataset, None if is_augmented else self._first_image
            if is_augmented and self._augmented is not None:
                dataset = self._augmented
            self._loaders[is_augmented] = WarmLoader(
                ItemReader(dataset, like, with_labels=self._reads_labels),
                self._num_workers,
                pin_memory=self._device.type == "cuda",
            )
        return self._loaders[is_augmented]


def _labels_of(dataset: Dataset[Any], first: Item) -> Tensor:
    """Return the labels of a data set, without reading its items where the first one allows it."""
    listed = listed_labels(dataset)
    if listed is not None and listed.ndim == 1 and listed[0] == first.label:
        return listed
    return read_labels(dataset, torch.arange(len(cast(Sized, dataset))))


def _content_of(dataset: Dataset[Any]) -> str:
    """Return a digest of the files of a data set, or else of a sample of its images."""
    leaf, indices = leaf_of(dataset)
    files = files_of(leaf)
    if files is not None:
        return digest("files", json.dumps(file_stamps(files[index][0] for index in indices)))
    sample = torch.linspace(0, len(indices) - 1, min(_N_SAMPLED, len(indices)), dtype=torch.double)
    read = ItemReader(dataset).read
    return digest("sample", *(read(index, index).image for index in sample.round().long().tolist()))


def _code_of(leaf: Any) -> list[Any]:
    """Return what turns the files or records of a data set into images."""
    parts = [type(leaf), *(getattr(leaf, x, None) for x in ("loader", "transform", "transforms"))]
    # This package's own code is part of a task's name in any case.
    return [_own_name(part) or part for part in parts]


def _own_name(code: Any) -> str | None:
    """Return the name of a class or function of this package, None for others."""
    module = getattr(code, "__module__", None) or ""
    is_own = module.startswith("compress_env.") and isinstance(code, type | FunctionType)
    return f"{module}.{code.__qualname__}" if is_own else None


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
