"""Distillation: a network learns from the logits of another one.

Shapes: b images in a minibatch, K classes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

__all__ = ["distillation_loss"]


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student) of the softened answers, the mean over the minibatch.

    Both answers are softmax(logits / T); T^2 keeps the size of the gradients, which fall with
    1 / T^2 (Hinton, Vinyals & Dean, arXiv 1503.02531, section 2).

    Args:
        student_logits: (b, K), float32.
        teacher_logits: (b, K), float32; no gradient should flow into them.
        temperature: T, above 0.

    Returns:
        (), 0 or more; 0 where both networks give the same probabilities.

    Raises:
        ValueError: If the shapes differ or are not (b, K), or the temperature is not above 0.
    """
    shapes = tuple(student_logits.shape), tuple(teacher_logits.shape)
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        raise ValueError(
            f"both logits must be (b, K) of one shape, got {shapes[0]} and {shapes[1]}"
        )
    if not temperature > 0.0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    student = log_softmax(student_logits / temperature, dim=1)
    teacher = log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)
