"""The items of a map-style data set: images and labels, read one by one, errors with their place.

Shapes: n items, C channels, H rows, W columns.
"""

import random
import sys
from collections.abc import Sequence, Sized
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    Dataset,
    Subset,
    TensorDataset,
    default_collate,
    get_worker_info,
)

from compress_env.errors import reason_of

__all__ = [
    "Item",
    "ItemReader",
    "Unreadable",
    "files_of",
    "item_labels",
    "leaf_of",
    "listed_labels",
    "read_labels",
    "stack_items",
]

_N_COMPARED = 1024  # items whose labels are read to tell whether a list of labels is theirs


class Item(NamedTuple):
    """One item, or a minibatch of them."""

    image: Tensor
    """(C, H, W), or (b, C, H, W)."""
    label: Any
    """As the data set has it, or (b,) int64; None where it is known already."""


@dataclass(frozen=True)
class Unreadable:
    """Stands for an item that cannot be read, as a worker's error would arrive as a traceback."""

    error: OSError | ValueError


class ItemReader(Dataset[Item | Unreadable]):
    """Maps (index, seed) to an item, made while PyTorch's CPU generator is seeded.

    Args:
        dataset: The data set.
        like: An image of which the others must have shape and type; any where it is None.
        with_labels: Whether the labels are read too.
    """

    def __init__(
        self, dataset: Dataset[Any], like: Tensor | None = None, *, with_labels: bool = False
    ) -> None:
        """Take what is to be read."""
        self._dataset = dataset
        self._kind = None if like is None else (like.dtype, tuple(like.shape))
        self._with_labels = with_labels

    def __getitem__(self, key: tuple[int, int]) -> Item | Unreadable:
        """Return an item, or why it cannot be read."""
        try:
            return self.read(*key)
        except (OSError, ValueError) as error:
            return Unreadable(error)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Item | Unreadable]:
        """Return the items of a minibatch.

        In a loader's worker, which has read others before, transforms that draw from Python's and
        NumPy's generators depend on the minibatch alone too.
        """
        if get_worker_info() is not None:
            seed = keys[0][1] % 2**32
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002, from which such transforms draw
        return [self[key] for key in keys]

    def read(self, index: int, seed: int) -> Item:
        """Return an item.

        Raises:
            OSError: If it cannot be read.
            TypeError: If its image is no tensor.
            ValueError: If it is not as it should be.
        """
        image, label = self._raw(index, seed)
        if not isinstance(image, Tensor):
            raise TypeError(
                "the data set must yield (image tensor, label); its images are "
                f"{type(image).__name__}: add a transform such as torchvision's ToTensor()"
            )
        if self._kind is not None and (image.dtype, tuple(image.shape)) != self._kind:
            expected, shape = self._kind
            raise ValueError(
                f"the image {_place_of(self._dataset, index)} is {image.dtype} of shape "
                f"{tuple(image.shape)}, the first one {expected} of shape {shape}"
            )
        if image.is_floating_point() and not bool(torch.isfinite(image).all()):
            raise ValueError(
                f"the image {_place_of(self._dataset, index)} contains NaN or infinite values"
            )
        if not self._with_labels:
            return Item(image, None)
        return Item(image, _integer(label, _place_of(self._dataset, index)))

    def read_label(self, index: int) -> int:
        """Return the label of an item.

        Raises:
            OSError: If it cannot be read.
            TypeError: If it has none.
            ValueError: If it cannot be read, or its label is no integer.
        """
        return _integer(self._raw(index, index)[1], _place_of(self._dataset, index))

    def _raw(self, index: int, seed: int) -> tuple[Any, Any]:
        """Return an image and, where labels are read, a label, as the data set has them."""
        # Nobody else draws in a loader's worker, and keeping the state takes as long as reading a
        # small image.
        is_shared = get_worker_info() is None
        with torch.random.fork_rng(devices=[]) if is_shared else nullcontext():
            torch.default_generator.manual_seed(seed)
            try:
                item = self._dataset[index]
            except MemoryError:
                raise
            except Exception as error:  # foreign code and damaged files fail in whatever way
                kind = ValueError if isinstance(error, ValueError) else OSError
                place = _place_of(self._dataset, index)
                raise kind(f"cannot read the image {place}: {reason_of(error)}") from error
        try:
            return item[0], item[1] if self._with_labels else None
        except (LookupError, TypeError):
            raise TypeError(
                f"the data set must yield (image tensor, label), got {type(item).__name__}"
            ) from None


def stack_items(items: list[Item | Unreadable]) -> Item | Unreadable:
    """Make a minibatch, or return the first item that cannot be read."""
    for item in items:
        if isinstance(item, Unreadable):
            return item
    readable = cast(list[Item], items)
    labels = [item.label for item in readable]
    images: Tensor = default_collate([item.image for item in readable])
    return Item(images, None if labels[0] is None else torch.tensor(labels))


def leaf_of(dataset: Dataset[Any]) -> tuple[Any, Sequence[int]]:
    """Return the data set below all subsets, and the indices of the items in it."""
    indices: Sequence[int] = range(len(cast(Sized, dataset)))
    while type(dataset) is Subset:  # a class derived from it may change items
        indices = [dataset.indices[index] for index in indices]
        dataset = dataset.dataset
    return dataset, indices


def files_of(leaf: Any) -> list[Any] | None:
    """Return the (path, label, ...) of each image that a data set of torchvision reads from files.

    None where it is another data set, or a class derived from it reads its items otherwise.
    """
    folder = sys.modules.get("torchvision.datasets.folder")
    if folder is None or type(leaf).__getitem__ is not folder.DatasetFolder.__getitem__:
        return None
    return cast(list[Any], leaf.samples)


def listed_labels(dataset: Dataset[Any]) -> Tensor | None:
    """Return the labels that a data set lists, without reading its items.

    They are its items' where :func:`item_labels` says so. None if it lists none.
    """
    leaf, indices = leaf_of(dataset)
    if getattr(leaf, "target_transform", None) is not None:
        return None
    known = _known_labels(leaf)
    try:
        labels = torch.as_tensor(getattr(leaf, "targets", None) if known is None else known)
    except (RuntimeError, TypeError, ValueError):  # whatever a data set calls its targets
        return None
    if labels.ndim == 0 or len(labels) != len(cast(Sized, leaf)):
        return None
    return labels[torch.as_tensor(indices)]


def item_labels(dataset: Dataset[Any]) -> Tensor | None:
    """Return the labels that the items of a data set have.

    Args:
        dataset: A map-style data set of (image, label).

    Returns:
        The labels, (n,). None where reading all items is not worth it: where there are more than
        1,024, of which so many, evenly spaced, have the labels that the data set lists.

    Raises:
        OSError: If an item cannot be read.
        ValueError: If an item cannot be read, or a label is no integer.
    """
    leaf, _ = leaf_of(dataset)
    listed, n = listed_labels(dataset), len(cast(Sized, dataset))
    if listed is not None and _known_labels(leaf) is not None:
        return listed
    if listed is None or n <= _N_COMPARED:
        return read_labels(dataset, torch.arange(n))
    sample = torch.linspace(0, n - 1, _N_COMPARED, dtype=torch.double).round().long()
    if torch.equal(read_labels(dataset, sample), listed[sample]):
        return None
    return read_labels(dataset, torch.arange(n))


def read_labels(dataset: Dataset[Any], indices: Tensor) -> Tensor:
    """Return the labels of some items, (m,) int64.

    Raises:
        OSError: If an item cannot be read.
        ValueError: If an item cannot be read, or a label is no integer.
    """
    reader = ItemReader(dataset, with_labels=True)
    return torch.tensor([reader.read_label(index) for index in indices.tolist()])


def _known_labels(leaf: Any) -> Any:
    """Return the labels that the items of a data set certainly have; None where nobody knows."""
    if type(leaf) is TensorDataset and len(leaf.tensors) > 1:
        return leaf.tensors[1]
    files = files_of(leaf)
    if files is not None:
        return [label for _, label in files]
    torchvision = sys.modules.get("torchvision.datasets")
    if torchvision is None:
        return None
    readers = (torchvision.MNIST.__getitem__, torchvision.CIFAR10.__getitem__)
    return leaf.targets if getattr(type(leaf), "__getitem__", None) in readers else None


def _integer(label: Any, place: str) -> int:
    """Return a label as an integer.

    Raises:
        ValueError: If it is none.
    """
    try:
        number = label.__index__()
    except (AttributeError, RuntimeError, TypeError, ValueError):
        got = " ".join(repr(label).split())
        raise ValueError(
            f"labels must be integers, the number of the class from 0 on; that of image {place} is "
            f"{got:.60}"
        ) from None
    return int(number)


def _place_of(dataset: Dataset[Any], index: int) -> str:
    """Name an image by its file, or else by its index."""
    leaf, indices = leaf_of(dataset)
    files = files_of(leaf)
    return str(indices[index]) if files is None else str(files[indices[index]][0])
