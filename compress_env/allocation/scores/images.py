"""The images that rules look at: so many at most, with labels that fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

__all__ = ["first_images"]


def first_images(
    batches: Iterable[tuple[Tensor, Tensor]], n_images: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the first images and their labels, batch by batch.

    Args:
        batches: Images (b, C, H, W) float32 and labels (b,) int64.
        n_images: So many images at most.

    Raises:
        ValueError: If there is no image, or the labels are not one for each.
    """
    n_left = n_images
    for batch in batches:
        if n_left <= 0:
            return
        images, labels = _checked(batch)
        yield images[:n_left], labels[:n_left]
        n_left -= len(images)
    if n_left == n_images:
        raise ValueError("expected at least one image, got none")


def _checked(batch: object) -> tuple[Tensor, Tensor]:
    pair = tuple(batch) if isinstance(batch, tuple | list) else (batch, None)
    images, labels = pair if len(pair) == 2 else (None, None)
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        got = ", ".join(type(each).__name__ for each in pair)
        raise ValueError(f"expected batches of images and their labels, two tensors, got {got}")
    if labels.shape != (len(images),) or labels.is_floating_point():
        raise ValueError(
            f"expected whole-numbered labels of shape ({len(images)},), one for each image, got "
            f"{labels.dtype} of shape {tuple(labels.shape)}"
        )
    return images, labels
