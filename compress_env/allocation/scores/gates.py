"""What the loss says of single channels: its derivatives by a factor on each, image by image.

Shapes: B images, C channels that a layer reads, n channels of a group, k places of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.hooks import RemovableHandle

from compress_env.allocation.scores.images import first_images
from compress_env.pruning.graph.surgery import Decision
from compress_env.task.layers import layer_at

__all__ = [
    "by_image",
    "derivatives",
    "fisher_scores",
    "gate_gradients",
    "hooked",
    "taylor_scores",
]

Gates = dict[str, list[Tensor]]


def gate_gradients(
    model: nn.Module,
    decisions: Sequence[Decision],
    batches: Iterable[tuple[Tensor, Tensor]],
    n_images: int = 256,
) -> list[NDArray[np.float64]]:
    """Return the derivative of each image's loss by a gate on each channel.

    A gate is a factor 1 on a channel at all layers that read it. Its derivative equals the sum of
    weight times gradient over the weights that read the channel, for one image. The network is run
    in evaluation mode, and left as it was.

    Args:
        model: The unpruned network.
        decisions: Its walk, as in `PruningPlan.decisions`.
        batches: Training images (b, C, H, W) float32 and labels (b,), on the model's device.
        n_images: So many images at most are looked at.

    Returns:
        (images, n_t) for each decision, the channels of its groups one after the other.

    Raises:
        ValueError: If there is no image, labels do not fit, or the network has no derivatives, as
            where its forward pass runs under `torch.no_grad()`.
        FloatingPointError: If a derivative is not finite.
    """
    groups = [group for decision in decisions for group in decision.groups]
    readers = {member.module for group in groups for member in group.consumers}
    parts: list[list[NDArray[np.float64]]] = []
    for images, labels in first_images(batches, n_images):
        found = _gradients(model, readers, images, labels)
        parts.append([_of_decision(decision, found) for decision in decisions])
    gradients = [np.concatenate(each) for each in zip(*parts, strict=True)]
    if not all(np.isfinite(each).all() for each in gradients):
        raise FloatingPointError("the derivatives of the loss are not finite")
    return gradients


def fisher_scores(gradients: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Return the mean square over images: twice the loss to be expected without each channel.

    Source: the diagonal Fisher information of the gates (Theis et al., arXiv 1801.05787).
    """
    return [np.square(each).mean(axis=0) for each in gradients]


def taylor_scores(gradients: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Return the mean magnitude over images: first order (Molchanov et al., arXiv 1611.06440)."""
    return [np.abs(each).mean(axis=0) for each in gradients]


def _gradients(
    model: nn.Module, readers: Iterable[str], images: Tensor, labels: Tensor
) -> dict[str, NDArray[np.float64]]:
    """Return the derivatives by a gate on each input of each reader, (B, C)."""
    with torch.inference_mode(False), torch.enable_grad(), _gated(model, readers) as gates:
        loss = cross_entropy(model(images.clone()), labels, reduction="sum")
        leaves = [gate for each in gates.values() for gate in each]
        found = iter(derivatives(loss, leaves))
    # A layer may run several times, and on several rows of each image: tokens or windows.
    return {
        name: by_image([next(found) for _ in each], len(images)).cpu().numpy()
        for name, each in gates.items()
    }


def by_image(gradients: Sequence[Tensor], n_images: int) -> Tensor:
    """Add up what all calls of a layer, and all rows of an image, say of a channel.

    Args:
        gradients: (r, ...) of each call, r rows being a multiple of the images.
        n_images: B.

    Returns:
        (B, C), float64, C being the size of a row.
    """
    # (r, C, 1, 1) -> (B, r / B, C) -> (B, C)
    shares = [g.double().view(n_images, -1, g[0].numel()).sum(1) for g in gradients]
    return torch.stack(shares).sum(0)


def derivatives(loss: Tensor, leaves: Sequence[Tensor], *, again: bool = False) -> list[Tensor]:
    """Return the derivatives of a loss, 0 by what it does not depend on.

    Args:
        loss: A scalar.
        leaves: What it is derived by.
        again: Whether what has led to the loss will be derived again.

    Raises:
        ValueError: If it depends on none of them.
    """
    found: Sequence[Tensor | None] = [None]
    if loss.requires_grad:
        found = torch.autograd.grad(loss, leaves, retain_graph=again, allow_unused=True)
    if all(each is None for each in found):
        raise ValueError(
            "expected a network whose loss has derivatives, got one that is frozen: its forward "
            "pass runs under torch.no_grad() or detaches what it computes"
        )
    pairs = zip(found, leaves, strict=True)
    return [torch.zeros_like(leaf) if each is None else each for each, leaf in pairs]


@contextmanager
def hooked(model: nn.Module, handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Run a block in evaluation mode; afterwards remove hooks and restore the modes."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training


@contextmanager
def _gated(model: nn.Module, readers: Iterable[str]) -> Iterator[Gates]:
    """Multiply what layers read by gates inside the block; in evaluation mode, as training is."""
    gates: Gates = {name: [] for name in readers}

    def gate(name: str, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs = args[0]
        shape = [1] * inputs.dim()
        channel = 1 if isinstance(layer, nn.Conv2d) else -1
        shape[0], shape[channel] = inputs.shape[0], inputs.shape[channel]
        gates[name].append(inputs.new_ones(shape).requires_grad_())
        return (inputs * gates[name][-1], *args[1:])

    handles = [
        layer_at(model, name).register_forward_pre_hook(
            lambda layer, args, name=name: gate(name, layer, args)
        )
        for name in gates
    ]
    with hooked(model, handles):
        yield gates


def _of_decision(
    decision: Decision, gradients: dict[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Add up what the readers of each channel say of it, (B, n_t)."""
    return np.concatenate(
        [
            # (B, C) -> (B, n, k) -> (B, n)
            sum(gradients[m.module][:, m.positions].sum(axis=2) for m in group.consumers)
            for group in decision.groups
        ],
        axis=1,
    )
