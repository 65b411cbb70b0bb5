"""Labels of channels: which ones must go together, and which ones must stay.

A label is a whole number that stands for one channel. Beside a tensor of the forward pass goes a
tensor of labels of the same shape, which says of each element what channel it belongs to. It is
kept with stride 0 along every dimension along which it does not vary, so it is small.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["ChannelLabels", "settle", "shrink", "varies"]


class ChannelLabels:
    """Hands out labels and collects what is learnt about them."""

    def __init__(self) -> None:
        """Start without labels."""
        self._n_labels = 0
        self._pairs: list[NDArray[np.int64]] = []
        self._pins: list[tuple[NDArray[np.int64], str]] = []

    def new(self, n_labels: int) -> Tensor:
        """Return labels that nobody has had before, (n_labels,) int64."""
        first, self._n_labels = self._n_labels, self._n_labels + n_labels
        return torch.arange(first, self._n_labels)

    def fixed(self, reason: str) -> Tensor:
        """Return one new label, () int64, of something that stays, with the reason."""
        label = self.new(1).reshape(())
        self.pin(label, reason)
        return label

    def join(self, left: Tensor, right: Tensor) -> None:
        """Note that labels at the same place of two tensors must go together."""
        pairs = np.stack([x.ravel() for x in np.broadcast_arrays(left.numpy(), right.numpy())])
        self._pairs.append(pairs[:, pairs[0] != pairs[1]])

    def pin(self, labels: Tensor, reason: str) -> None:
        """Note that labels must stay, with the reason."""
        self._pins.append((np.unique(shrink(labels).numpy()), reason))

    def classes(self) -> NDArray[np.int64]:
        """Return the class of every label, (n_labels,): one class goes or stays as a whole."""
        left, right = np.concatenate([np.empty((2, 0), np.int64), *self._pairs], 1)
        from scipy.sparse import coo_array  # only where a network is followed
        from scipy.sparse.csgraph import connected_components

        edges = coo_array((np.ones(len(left)), (left, right)), (self._n_labels, self._n_labels))
        return connected_components(edges, directed=False)[1].astype(np.int64)

    def reasons(self, classes: NDArray[np.int64]) -> dict[int, str]:
        """Return why classes stay, by class: what was noted first."""
        found: dict[int, str] = {}
        for labels, reason in self._pins:
            for number in np.unique(classes[labels]).tolist():
                found.setdefault(number, reason)
        return found


def varies(labels: Tensor, dim: int) -> bool:
    """Whether settled labels differ along a dimension."""
    return labels.shape[dim] > 1 and labels.stride(dim) != 0


def shrink(labels: Tensor) -> Tensor:
    """Return settled labels with size 1 along every dimension along which they do not vary."""
    for dim in range(labels.dim()):
        if not varies(labels, dim) and labels.shape[dim] > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels


def settle(labels: Tensor) -> Tensor:
    """Return equal labels with stride 0 along every dimension along which they do not vary."""
    for dim in range(labels.dim()):
        if varies(labels, dim):
            first = labels.narrow(dim, 0, 1)
            if bool((shrink(labels) == shrink(first)).all()):
                labels = first.expand_as(labels)
    return labels
