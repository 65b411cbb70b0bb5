"""How good a network is: accuracies, and scores that callers measure.

Shapes: b images in a minibatch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import SupportsFloat, TypeVar

import torch
from torch import Tensor, nn

from compress_env.task.finetune import compute_logits

__all__ = [
    "checked_score",
    "evaluate",
    "find_hits",
    "halving",
    "largest_batch",
    "top_accuracies",
    "tops_for",
]

T = TypeVar("T")
MOST_VALUES = 64 * 3 * 224 * 224
"""Numbers in a batch of images when scoring: 500 images up to 80 pixels a side, 64 of 224."""
TOP = 5
"""Classes with the largest logits, of which that of the label may be any."""
FEW_CLASSES = 10
"""Among so many, five guesses say little."""


def tops_for(num_classes: int) -> tuple[int, ...]:
    """Return numbers of guesses of which accuracies are told: 1, and 5 of more than 10 classes."""
    return (1, TOP) if num_classes > FEW_CLASSES else (1,)


def largest_batch(image_shape: Sequence[int], most: int) -> int:
    """Return how many images are scored at once.

    Args:
        image_shape: Shape of an image, (C, H, W).
        most: Images at once where they are small.
    """
    return min(most, max(MOST_VALUES // math.prod(image_shape), 1))


def halving(score: Callable[[int], T], size: int) -> tuple[T, int]:
    """Score with so many images at once, and with half as many whenever they do not fit.

    Args:
        score: Called with the number of images at once, from the beginning each time.
        size: The first such number.

    Returns:
        What `score` returns, and how many fitted.

    Raises:
        torch.OutOfMemoryError: If not even one image fits.
    """
    while True:
        try:
            return score(size), size
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        # Here, as the error's traceback holds on to tensors.
        size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def find_hits(logits: Tensor, labels: Tensor, top: int = 1) -> Tensor:
    """Return whether the label is among the classes with the largest logits, (b,) bool.

    Args:
        logits: (b, K).
        labels: (b,) int64.
        top: How many classes count, at most K.
    """
    if top == 1:
        return logits.argmax(1) == labels
    return (logits.topk(top, 1).indices == labels[:, None]).any(1)  # (b, top) -> (b,)


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    bf16: bool = False,
    channels_last: bool = False,
) -> float:
    """Return the fraction of images whose largest logit is the label's.

    Raises:
        FloatingPointError: If a logit is not finite.
    """
    return top_accuracies(model, batches, (1,), bf16=bf16, channels_last=channels_last)[0]


def top_accuracies(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    tops: Sequence[int],
    *,
    bf16: bool = False,
    channels_last: bool = False,
) -> list[float]:
    """Return the fractions of images whose label is among the classes with the largest logits.

    Waits for the device once, at the end.

    Args:
        model: Network with logits (b, K) as output; in evaluation mode afterwards.
        batches: Images (b, C, H, W) float32 and labels (b,) int64 on the model's device.
        tops: For each fraction, how many classes count.
        bf16: See `compress_env.task.finetune`.
        channels_last: Likewise.

    Raises:
        FloatingPointError: If a logit is not finite.
    """
    model.eval()
    n_images = 0
    correct, finite = [], []
    with torch.inference_mode():
        for images, labels in batches:
            logits = compute_logits(model, images, bf16=bf16, channels_last=channels_last)
            correct.append(torch.stack([find_hits(logits, labels, top).sum() for top in tops]))
            finite.append(torch.isfinite(logits).all())
            n_images += len(labels)
    # (batches, tops) -> (tops,), and one more
    *n_correct, is_finite = torch.cat(
        [torch.stack(correct).sum(0), torch.stack(finite).all()[None]]
    ).tolist()
    if not is_finite:
        raise FloatingPointError("logits are not finite")
    return [int(n) / n_images for n in n_correct]


def checked_score(score: SupportsFloat) -> float:
    """Return what a scorer has returned as a float in [0, 1].

    Raises:
        FloatingPointError: If it is not finite.
        TypeError: If it is no number.
        ValueError: If it is outside [0, 1].
    """
    try:
        number = score.__float__()  # a str has none
    except (AttributeError, RuntimeError, TypeError, ValueError):
        got = " ".join(repr(score).split())
        raise TypeError(f"the scorer must return a number in [0, 1], got {got:.80}") from None
    if not math.isfinite(number):
        raise FloatingPointError(f"the scorer returned {number}")
    if not 0.0 <= number <= 1.0:
        raise ValueError(
            f"the scorer must return a score in [0, 1], got {number}; percentages are to be "
            "divided by 100"
        )
    return number
