"""The hot loops: fine-tuning, batch-norm re-estimation and evaluation.

None of them waits for the device inside the loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from compress_env.layers import compute_layers

__all__ = ["evaluate", "finetune", "reestimate_batch_norm"]

Batches = Iterable[tuple[Tensor, Tensor]]


def finetune(
    model: nn.Module,
    batches: Batches,
    *,
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    anneal_steps: int | None = None,
) -> None:
    """Train `model` by SGD on the cross-entropy of the given minibatches, in place.

    Frozen parameters (`requires_grad=False`) stay as they are. Weights of convolutions and linear
    layers that are zero stay zero: the zeros are the mask.

    Args:
        model: Network with logits (b, classes) as output.
        batches: Images (b, C, H, W) float32 and labels (b,) int64 on the model's device.
        learning_rate: Step size.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty.
        anneal_steps: Lower the step size to 0 over that many minibatches, along a cosine;
            constant when None.

    Raises:
        FloatingPointError: If the loss of any minibatch or a weight after them is not finite.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        return
    masks = zero_masks(model)
    optimizer = torch.optim.SGD(
        parameters, learning_rate, momentum=momentum, weight_decay=weight_decay
    )
    schedule = anneal_steps and CosineAnnealingLR(optimizer, anneal_steps)
    losses = []
    model.train()
    for images, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        loss = cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        _apply(masks)
        if schedule:
            schedule.step()
        losses.append(loss.detach())
    model.eval()
    finite = [torch.isfinite(x).all() for x in (*losses, *parameters)]
    if not bool(torch.stack(finite).all()):
        raise FloatingPointError("loss or weights are not finite")


def zero_masks(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Pair each weight tensor that has zeros with the boolean mask of its other elements."""
    weights = (
        p
        for layer in compute_layers(model).values()
        for p in layer.parameters()
        if p.dim() > 1  # the (float) weight, also below a parametrization
    )
    pairs = [(w.detach(), w.detach() != 0) for w in weights]
    return [(weight, mask) for weight, mask in pairs if not bool(mask.all())]


def _apply(masks: list[tuple[Tensor, Tensor]]) -> None:
    for weight, mask in masks:
        weight.mul_(mask)


def reestimate_batch_norm(model: nn.Module, batches: Batches) -> None:
    """Reset every batch-norm's running statistics and estimate them from `batches`, in place.

    The statistics become the plain average over the minibatches (`momentum=None`). Networks
    without batch-norm are left alone and `batches` is not consumed.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in norms if m.track_running_stats]
    if not norms:
        return
    model.eval()
    with _cumulative(norms), torch.no_grad():
        for images, _ in batches:
            model(images)


@contextmanager
def _cumulative(norms: list[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def evaluate(model: nn.Module, batches: Batches) -> float:
    """Return the fraction of images whose largest logit is the label's.

    Raises:
        FloatingPointError: If a logit is not finite.
    """
    model.eval()
    n_images = 0
    correct, finite = [], []
    with torch.inference_mode():
        for images, labels in batches:
            logits = model(images)
            correct.append((logits.argmax(1) == labels).sum())
            finite.append(torch.isfinite(logits).all())
            n_images += len(labels)
    if not bool(torch.stack(finite).all()):
        raise FloatingPointError("logits are not finite")
    return int(torch.stack(correct).sum()) / n_images
