"""Networks that information dropout is compared on: a trained one, and two that know no digits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from compress_env.data.bundle import ImageSource
from compress_env.store.digests import digest

__all__ = ["Kind", "Relabelled", "with_shuffled_labels"]

Kind = Literal["trained", "shuffled_labels", "untrained"]
"""Trained; trained on labels that are shuffled among the images; with random weights that stay, so
that only information dropout is trained."""


class Relabelled:
    """An image set with other labels."""

    def __init__(self, source: ImageSource, labels: Tensor) -> None:
        """Give the images of `source` the labels (n,) int64."""
        self._source, self._labels = source, labels

    @property
    def labels(self) -> Tensor:
        """Labels, (n,) int64, on the CPU."""
        return self._labels

    def __len__(self) -> int:
        """Return the number of images, n."""
        return len(self._labels)

    def to(self, device: torch.device) -> Relabelled:
        """Return the same set on `device`."""
        return Relabelled(self._source.to(device), self._labels)

    def subset(self, indices: Tensor) -> Relabelled:
        """Return a copy of the images at `indices`, (m,) int64, in that order."""
        return Relabelled(self._source.subset(indices), self._labels[indices])

    def digest(self) -> str:
        """Return a name for images and labels."""
        return digest("relabelled", self._source.digest(), self._labels)

    def batches(
        self, index_batches: Sequence[Tensor], *, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one minibatch for each entry of `index_batches`: see `ImageSource.batches`."""
        found = self._source.batches(index_batches, generator=generator)
        for indices, (images, _) in zip(index_batches, found, strict=True):
            yield images, self._labels[indices.cpu()].to(images.device)


def with_shuffled_labels(source: ImageSource, generator: torch.Generator) -> Relabelled:
    """Return the images with their labels dealt out anew; each label is as frequent as before."""
    return Relabelled(source, source.labels[torch.randperm(len(source), generator=generator)])
