"""What the loss says of rounding a layer's weights: its curvature, and its slope image by image.

Shapes: T layers, K options of each, B images.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from compress_env.allocation.scores.gates import by_image, derivatives, hooked
from compress_env.allocation.scores.images import first_images
from compress_env.quantization.fake_quant import bake
from compress_env.seeding import derive_generator
from compress_env.task.layers import layer_at

__all__ = ["fisher_losses", "hessian_traces"]

Batches = Iterable[tuple[Tensor, Tensor]]
Changes = Sequence[Sequence[Tensor]]
"""Changes of the weight of each layer, one for each option, shaped as the weight."""
N_VECTORS = 4
"""Random vectors for each minibatch."""


def hessian_traces(
    model: nn.Module,
    layers: Sequence[str],
    batches: Batches,
    *,
    n_images: int = 256,
    n_vectors: int = N_VECTORS,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Estimate the mean of the diagonal of the loss's Hessian by the weights of each layer.

    Hutchinson's estimator, as in HAWQ-v2 (Dong et al., arXiv 1911.03852): the trace, divided by the
    number of weights. What is estimated is the Gauss-Newton part of the Hessian **(ours)**, J'
    (diag(p) - p p') J with J the derivatives of an image's logits and p its probabilities: the
    whole one where no logit errs. It is never negative, and random signs at the logits, one for
    each image and class, give all layers' traces by one backward pass; signs at the weights of all
    layers at once leave mostly noise. Signs are drawn on the CPU, anew for each minibatch.

    Args:
        model: The network; a copy is derived, frozen parameters included.
        layers: Names of the layers.
        batches: Training images (b, C, H, W) float32 and labels (b,), on the model's device.
        n_images: So many images at most are looked at.
        n_vectors: Vectors for each minibatch.
        seed: Of the vectors.

    Returns:
        (T,) mean second derivatives, 0 or more.

    Raises:
        ValueError: If there is no image, labels do not fit, or the network has no derivatives.
        FloatingPointError: If a derivative is not finite.
    """
    whole, generator = copy.deepcopy(model).eval(), derive_generator(seed, 0, 6)
    bake(whole)
    whole.requires_grad_(False)
    weights = [layer_at(whole, name).weight.requires_grad_() for name in layers]
    total, n_seen = np.zeros(len(layers)), 0
    with torch.inference_mode(False), torch.enable_grad():
        for images, _ in first_images(batches, n_images):
            logits = whole(images.clone())
            for _ in range(n_vectors):
                drawn = logits * _directions(logits.detach(), generator)
                slopes = derivatives(drawn.sum(), weights, again=True)
                total += [float(slope.double().square().sum()) for slope in slopes]
            n_seen += len(images)
    if not np.isfinite(total).all():
        raise FloatingPointError("the derivatives of the logits are not finite")
    sizes = np.array([weight.numel() for weight in weights])
    traces: NDArray[np.float64] = total / n_vectors / n_seen / sizes
    return traces


def fisher_losses(
    model: nn.Module,
    layers: Sequence[str],
    changes: Changes,
    batches: Batches,
    *,
    n_images: int = 256,
) -> NDArray[np.float64]:
    """Return the mean over single images of the squared change of the loss, to first order.

    With g an image's gradient by a weight and d the weight's change this is the mean of (g d)^2
    over images, each for itself: twice what the empirical Fisher information expects to be lost.
    A layer's share is read off its outputs: their derivatives times what the change alone makes of
    its inputs, so that one backward pass serves all images of a minibatch.

    Args:
        model: The network, run in evaluation mode and left as it was.
        layers: Names of the layers.
        changes: K changes of the weight of each layer.
        batches: As in `hessian_traces`.
        n_images: So many images at most are looked at.

    Returns:
        (T, K), 0 or more.

    Raises:
        ValueError: As `hessian_traces`.
        FloatingPointError: If a derivative is not finite.
    """
    total, n_seen = np.zeros((len(layers), len(changes[0]))), 0
    for images, labels in first_images(batches, n_images):
        with torch.inference_mode(False), torch.enable_grad(), _watched(model, layers) as calls:
            loss = cross_entropy(model(images.clone()), labels, reduction="sum")
            gates = [gate for each in calls.values() for _, gate in each]
            found = iter(derivatives(loss, gates))
        for t, name in enumerate(layers):
            seen = [(inputs, next(found)) for inputs, _ in calls[name]]
            for k, change in enumerate(changes[t]):
                total[t, k] += _squared(layer_at(model, name), change, seen, len(images))
        n_seen += len(images)
    if not np.isfinite(total).all():
        raise FloatingPointError("the derivatives of the loss are not finite")
    return total / n_seen


def _directions(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random d for each image, (B, K), whose mean d d' is diag(p) - p p'."""
    signs = (2.0 * torch.randint(0, 2, logits.shape, generator=generator) - 1.0).to(logits)
    p = logits.softmax(dim=1)
    drawn = p.sqrt() * signs
    return drawn - p * drawn.sum(dim=1, keepdim=True)


@contextmanager
def _watched(
    model: nn.Module, layers: Sequence[str]
) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Record what layers read inside the block, and zeros that are added to what they write."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}

    def watch(name: str, args: tuple[Any, ...], output: Tensor) -> Tensor:
        gate = torch.zeros_like(output, requires_grad=True)
        calls[name].append((args[0].detach().clone(), gate))  # which later operations may overwrite
        return output + gate

    handles = [
        layer_at(model, name).register_forward_hook(
            lambda layer, args, output, name=name: watch(name, args, output)
        )
        for name in layers
    ]
    with hooked(model, handles):
        yield calls


@torch.no_grad()
def _squared(
    layer: nn.Conv2d | nn.Linear, change: Tensor, calls: Sequence[tuple[Tensor, Tensor]], n: int
) -> float:
    """Return the sum over images of the squared change of the loss, by all calls of a layer."""
    parts = [
        (slope * _respond(layer, inputs, change)).flatten(1).sum(1, keepdim=True)
        for inputs, slope in calls
    ]
    return float(by_image(parts, n).square().sum()) if parts else 0.0


def _respond(layer: nn.Conv2d | nn.Linear, inputs: Tensor, weight: Tensor) -> Tensor:
    """Return what a layer would write with another weight and no bias."""
    if isinstance(layer, nn.Conv2d):
        outputs: Tensor = layer._conv_forward(inputs, weight, None)
        return outputs
    return linear(inputs, weight)
