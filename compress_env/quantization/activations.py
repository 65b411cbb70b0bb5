"""Eight-bit activations: a layer's input rounded to 256 levels, with ranges from calibration."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress_env.quantization.fake_quant import is_quantized
from compress_env.task.layers import compute_layers

__all__ = [
    "ACTIVATION_BITS",
    "InputQuantizer",
    "Range",
    "attach_input",
    "detach_input",
    "has_quantizers",
    "input_quantizer_of",
    "measure_input_range",
]

ACTIVATION_BITS = 8
"""The only number of bits for inputs."""
_LEVELS = 2**ACTIVATION_BITS - 1
_NAME = "input_quantizer"


class Range(NamedTuple):
    """The interval that a layer's inputs lie in."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""


class InputQuantizer(nn.Module):
    """Rounds activations to 256 levels: ``scale * (clamp(round(x / scale) + z, 0, 255) - z)``.

    Affine and per tensor. The levels span the given range, extended to hold 0, which is then a
    level itself, so that padding and the zeros of a ReLU stay exact. Gradients pass straight
    through inside of it and not outside.

    Args:
        span: Range to cover.

    Raises:
        ValueError: If the range is not finite, or its ends are the wrong way round.
    """

    scale: Tensor
    """Width of a level, () float32, positive."""
    zero_point: Tensor
    """Number of the level that stands for 0, () int32, in 0..255."""

    def __init__(self, span: Range) -> None:
        """Fix the levels."""
        super().__init__()
        if not -float("inf") < span.low <= span.high < float("inf"):
            raise ValueError(f"expected a finite range, low first, got {tuple(span)}")
        low, high = min(span.low, 0.0), max(span.high, 0.0)
        scale = max((high - low) / _LEVELS, torch.finfo(torch.float32).tiny)
        zero_point = min(max(round(-low / scale), 0), _LEVELS)
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the rounded activations, shape and dtype of ``inputs``."""
        return torch.fake_quantize_per_tensor_affine(
            inputs, self.scale, self.zero_point, 0, _LEVELS
        )


def attach_input(layer: nn.Conv2d | nn.Linear, span: Range) -> None:
    """Quantize a layer's input from now on, to levels that span a range; a former one is replaced.

    Args:
        layer: The layer, changed in place: it gets the submodule `input_quantizer`.
        span: Range of its inputs, as from :func:`measure_input_range`.

    Raises:
        ValueError: As for `InputQuantizer`.
    """
    quantizer = InputQuantizer(span).to(layer.weight.device)
    detach_input(layer)
    layer.add_module(_NAME, quantizer)
    layer.register_forward_pre_hook(_quantize_input)


def detach_input(layer: nn.Module) -> None:
    """Leave a layer's input as it is from now on."""
    hooks = layer._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if hook is _quantize_input]:
        del hooks[key]
    if input_quantizer_of(layer) is not None:
        delattr(layer, _NAME)


def input_quantizer_of(layer: nn.Module) -> InputQuantizer | None:
    """Return the quantizer of a layer's input, or None if it has none."""
    quantizer = getattr(layer, _NAME, None)
    return quantizer if isinstance(quantizer, InputQuantizer) else None


def has_quantizers(model: nn.Module) -> bool:
    """Return whether a weight or an input of any layer is quantized."""
    return any(
        is_quantized(module) or input_quantizer_of(module) is not None for module in model.modules()
    )


@torch.no_grad()
def measure_input_range(
    model: nn.Module, layer: str, batches: Iterable[tuple[Tensor, Any]]
) -> Range:
    """Return the smallest and the largest input of a layer over batches of images.

    Args:
        model: The network, in evaluation mode afterwards.
        layer: Dotted name of a convolution or linear layer.
        batches: Pairs of images, (b, C, H, W), and anything.

    Raises:
        FloatingPointError: If an input is not finite.
        ValueError: If there is no image, or the layer gets its input by keyword.
    """
    extremes: list[Tensor] = []
    note = partial(_note_extremes, layer, extremes)
    handle = compute_layers(model)[layer].register_forward_pre_hook(note)
    try:
        model.eval()
        for images, _ in batches:
            model(images)
    finally:
        handle.remove()
    if not extremes:
        raise ValueError("expected at least one calibration image, got none")
    low, high = (float(end) for end in torch.stack(extremes).T.flatten().aminmax())
    if not torch.isfinite(torch.tensor([low, high])).all():
        raise FloatingPointError(f"inputs of {layer!r} are not finite")
    return Range(low, high)


def _note_extremes(
    name: str, extremes: list[Tensor], module: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    if not inputs:
        raise ValueError(f"{name!r} gets its input by keyword: call it as {name}(inputs)")
    extremes.append(torch.stack(inputs[0].aminmax()))


# At module level, so that copies of a layer find their own quantizer.
def _quantize_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    quantizer = input_quantizer_of(layer)
    assert quantizer is not None
    return (quantizer(inputs[0]), *inputs[1:])
