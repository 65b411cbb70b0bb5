"""The hot loops of training: fine-tuning and batch-norm re-estimation.

Neither of them waits for the device inside the loop.

Options that they share: `bf16` runs the forward pass under autocast in bfloat16 (weights stay
float32, logits are float32 again); `channels_last` lays the images out channels last, which many
kernels compute faster. The network's own layout is that of
`compress_env.task.layout.use_channels_last`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from compress_env.task.distillation import distillation_loss
from compress_env.task.layers import compute_layers
from compress_env.task.layout import channels_last_of, strides_before
from compress_env.task.parts import Parts

__all__ = [
    "Carry",
    "Penalty",
    "compute_logits",
    "finetune",
    "make_schedule",
    "reestimate_batch_norm",
    "step_share",
    "teach",
    "training_loss",
]

Batches = Iterable[tuple[Tensor, Tensor]]


class Penalty(NamedTuple):
    """What is added to the cross-entropy in training, and what becomes of parameters of its own."""

    value: Callable[[], Tensor]
    """Called after each forward pass; returns (), the addition to the loss."""
    optimizer: torch.optim.Optimizer | None = None
    """Steps its own parameters, which the network's optimizer then leaves to it."""
    is_settled: Callable[[], bool] | None = None
    """Called after each minibatch; True ends the training."""


@dataclass
class Carry:
    """What a fine-tuning that is done in parts hands on from one part to the next."""

    n_steps: int
    """Minibatches of all parts, over which the step size falls."""
    state: dict[str, Any] | None = None
    """State of optimizer and step size, tensors and plain values; None before the first part."""


def compute_logits(
    model: nn.Module, images: Tensor, *, bf16: bool = False, channels_last: bool = False
) -> Tensor:
    """Run `model` in the mode that it is in.

    Args:
        model: Network with logits (b, classes) as output.
        images: (b, C, H, W) float32.
        bf16: See the module.
        channels_last: See the module.

    Returns:
        Logits (b, classes), float32 where `bf16`, otherwise in the network's dtype.
    """
    if channels_last and images.dim() == 4:
        images = channels_last_of(images)
    logits: Tensor
    if bf16:
        with torch.autocast(images.device.type, torch.bfloat16):
            logits = model(images)
        return logits.float()
    is_learning = images.device.type == "cpu" and torch.is_grad_enabled()
    with strides_before(model) if is_learning else nullcontext():
        logits = model(images)
    return logits


@torch.enable_grad()
def finetune(
    model: nn.Module,
    batches: Batches,
    *,
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    anneal_steps: int | None = None,
    warmup_steps: int = 0,
    penalty: Penalty | None = None,
    carry: Carry | None = None,
    teacher: nn.Module | None = None,
    distill: float = 0.0,
    distill_temperature: float = 4.0,
    bf16: bool = False,
    channels_last: bool = False,
    halve: bool = False,
) -> None:
    """Train `model` by SGD on the cross-entropy of the given minibatches, in place.

    With a teacher the loss is (1 - distill) * cross-entropy + distill * `distillation_loss`.

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
        warmup_steps: Raise the step size to its full value over the first so many minibatches.
        penalty: What is added to the loss, if anything.
        carry: What an earlier part has left, to go on with; it is given what this one leaves.
        teacher: Another network for the same images, in evaluation mode, which stays as it is.
        distill: Weight of the teacher, in [0, 1]; at 0 it is not run.
        distill_temperature: That of `distillation_loss`, above 0.
        bf16: See the module.
        channels_last: See the module.
        halve: Whether minibatches that do not fit into memory are computed in parts.

    Raises:
        torch.OutOfMemoryError: If a minibatch does not fit into memory.
        FloatingPointError: If the loss of any minibatch or a weight after them is not finite.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        return
    masks = zero_masks(model)
    beside = None if penalty is None else penalty.optimizer
    elsewhere = _parameters_of(beside)
    own = [p for p in parameters if p not in elsewhere]
    optimizer = torch.optim.SGD(
        [{"params": own}],  # there may be none
        learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        fused=all(_can_be_fused(p) for p in own),
    )
    schedule = make_schedule(optimizer, anneal_steps, warmup_steps)
    _take_up(carry, optimizer, schedule)
    losses, parts = [], Parts(halve=halve)

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        logits = compute_logits(model, images, bf16=bf16, channels_last=channels_last)
        answers: Tensor | None = None
        if teacher is not None and distill > 0.0:
            answers = teach(teacher, images, bf16=bf16, channels_last=channels_last)
        loss = training_loss(logits, labels, answers, distill, distill_temperature)
        return loss if penalty is None else loss + penalty.value()

    model.train()
    try:
        for images, labels in batches:
            optimizer.zero_grad(set_to_none=True)
            losses.append(parts.add_gradients(loss_of, images, labels, optimizer.zero_grad))
            optimizer.step()
            if beside is not None:
                beside.step()
                beside.zero_grad(set_to_none=True)
            _apply(masks)
            if schedule is not None:
                schedule.step()
            if penalty is not None and penalty.is_settled is not None and penalty.is_settled():
                break
    finally:
        model.eval()
    finite = [torch.isfinite(x).all() for x in (*losses, *parameters)]
    if not bool(torch.stack(finite).all()):
        raise FloatingPointError("loss or weights are not finite")
    if carry is not None:
        carry.state = {
            "optimizer": optimizer.state_dict(),
            "schedule": None if schedule is None else schedule.state_dict(),
        }


def _take_up(
    carry: Carry | None, optimizer: torch.optim.Optimizer, schedule: LRScheduler | None
) -> None:
    """Give optimizer and schedule what an earlier part has left of theirs, if there was one."""
    if carry is None or carry.state is None:
        return
    optimizer.load_state_dict(carry.state["optimizer"])
    if schedule is not None:
        schedule.load_state_dict(carry.state["schedule"])


def _parameters_of(optimizer: torch.optim.Optimizer | None) -> set[Tensor]:
    return {p for group in optimizer.param_groups for p in group["params"]} if optimizer else set()


def make_schedule(
    optimizer: torch.optim.Optimizer, anneal_steps: int | None, warmup_steps: int
) -> LRScheduler | None:
    """Return what changes the step size of `optimizer`, if anything does; see `finetune`."""
    if warmup_steps > 0:
        return LambdaLR(optimizer, lambda step: step_share(step, anneal_steps, warmup_steps))
    return CosineAnnealingLR(optimizer, anneal_steps) if anneal_steps else None


def step_share(step: int, anneal_steps: int | None, warmup_steps: int) -> float:
    """Return the step size of minibatch `step`, counted from 0, as a share of the full one.

    It rises along a line and falls along a cosine:
    min(1, (step + 1) / warmup_steps) * (1 + cos(pi * step / anneal_steps)) / 2.

    Args:
        step: 0 or more.
        anneal_steps: Minibatches after which it is 0; no fall when None.
        warmup_steps: Minibatches until it is full, at least 1.
    """
    rise = min(1.0, (step + 1) / warmup_steps)
    return rise * (1.0 + math.cos(math.pi * step / anneal_steps)) / 2.0 if anneal_steps else rise


def training_loss(
    logits: Tensor, labels: Tensor, answers: Tensor | None, distill: float, temperature: float
) -> Tensor:
    """Return the cross-entropy, or its mix with what a teacher answers, see `finetune`; ()."""
    loss = cross_entropy(logits, labels)
    if answers is None:
        return loss
    return (1.0 - distill) * loss + distill * distillation_loss(logits, answers, temperature)


@torch.no_grad()  # what inference mode returns could not be part of a loss
def teach(teacher: nn.Module, images: Tensor, *, bf16: bool, channels_last: bool) -> Tensor:
    """Return a teacher's logits (b, classes), into which no gradient flows."""
    return compute_logits(teacher, images, bf16=bf16, channels_last=channels_last)


def _can_be_fused(parameter: Tensor) -> bool:
    """Whether SGD can update a tensor by one kernel, which knows no gaps between elements."""
    dense = parameter.is_contiguous() or (
        parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    )
    return dense and parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda")


def zero_masks(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Pair each weight tensor that has zeros with the boolean mask of its other elements.

    Waits for the device once.
    """
    weights = (
        p
        for layer in compute_layers(model).values()
        for p in layer.parameters()
        if p.dim() > 1  # the (float) weight, also below a parametrization
    )
    pairs = [(w.detach(), w.detach() != 0) for w in weights]
    if not pairs:
        return []
    full = torch.stack([mask.all() for _, mask in pairs]).tolist()
    return [pair for pair, is_full in zip(pairs, full, strict=True) if not is_full]


def _apply(masks: list[tuple[Tensor, Tensor]]) -> None:
    for weight, mask in masks:
        weight.mul_(mask)


def reestimate_batch_norm(
    model: nn.Module, batches: Batches, *, bf16: bool = False, channels_last: bool = False
) -> None:
    """Reset every batch-norm's running statistics and estimate them from `batches`, in place.

    The statistics become the plain average over the minibatches (`momentum=None`); those of a norm
    that no image has passed, as of a branch that is not taken, stay as they are. Networks without
    batch-norm are left alone and `batches` is not consumed.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in norms if m.track_running_stats]
    if not norms:
        return
    model.eval()
    with _cumulative(norms), torch.no_grad():
        for images, _ in batches:
            compute_logits(model, images, bf16=bf16, channels_last=channels_last)


@contextmanager
def _cumulative(norms: list[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    before = [(n.momentum, [b.clone() for b in n.buffers(recurse=False)]) for n in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        counts = torch.stack([cast(Tensor, norm.num_batches_tracked) for norm in norms]).tolist()
        for norm, (momentum, buffers), count in zip(norms, before, counts, strict=True):
            norm.momentum = momentum
            norm.eval()
            if count == 0:
                for buffer, kept in zip(norm.buffers(recurse=False), buffers, strict=True):
                    buffer.copy_(kept)
