"""Symmetric fake quantization of weights, per output channel, with straight-through gradients.

Shape legend: N output channels, D weights in each, Q = 2^(b-1) - 1 the largest integer at b bits
(1 at one bit).
"""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress_env.quantization.scales import (
    MAX_BITS,
    check_bits,
    fit_scale,
    largest_integer,
    optimal_clip,
)

__all__ = [
    "MAX_BITS",
    "FakeQuantize",
    "attach",
    "bake",
    "bits_of",
    "dequantize",
    "fit_scale",
    "float_weight",
    "is_computed",
    "is_quantized",
    "largest_integer",
    "optimal_clip",
    "quantize_to_integers",
    "quantizer_of",
]

QuantizableLayer: TypeAlias = nn.Conv2d | nn.Linear


def quantize_to_integers(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Round weights to the integers that stand for them.

    Args:
        weight: Weights, shape (N, ...), float32.
        scale: Scale per output channel, shape (N,), float32.
        bits: Bits per weight, 1..8.

    Returns:
        Integers in -Q..Q, shape of ``weight``, int8. At one bit the sign: -1, 0 (for zeros), 1.

    Raises:
        ValueError: If ``bits`` is not in 1..8.
    """
    check_bits(bits)
    if bits == 1:
        return weight.detach().sign().to(torch.int8)
    largest = largest_integer(bits)
    # Multiplied by the inverse, as torch.fake_quantize_per_channel_affine does.
    integers = (weight.detach() * _per_channel(scale.reciprocal(), weight)).round()
    return integers.clamp(-largest, largest).to(torch.int8)


def dequantize(integers: Tensor, scale: Tensor) -> Tensor:
    """Return the weights that integers stand for.

    Args:
        integers: Integers, shape (N, ...), int8.
        scale: Scale per output channel, shape (N,), float32.

    Returns:
        Weights, shape of ``integers``, in the dtype of ``scale``.
    """
    return integers.to(scale.dtype) * _per_channel(scale, integers)


class FakeQuantize(nn.Module):
    """Parametrization that shows a layer its quantized weight and trains the float one.

    Scale and clip are fixed from the weight given here. From two bits on a weight becomes
    ``scale * clamp(round(w / scale), -Q, Q)``, where ``scale`` is that of `fit_scale`, a number of
    bfloat16, so that a file needs two bytes for it, and the clip is ``scale * Q`` **(ours)**. At
    one bit a weight becomes
    ``sign(w) * scale``, where ``scale`` is the mean magnitude of the non-zero weights of its
    channel, rounded likewise, and the clip is the channel's largest magnitude. The gradient is
    that of the identity where ``|w| <= clip``, and 0 elsewhere. Zeros stay zeros.

    Args:
        weight: Weight to fix scale and clip from, shape (N, ...), float32.
        bits: Bits per weight, 1..8.
        scale: Scales to take instead, shape (N,), as from a file.

    Raises:
        ValueError: If ``bits`` is not in 1..8, or a weight is not finite.
    """

    bits: int
    scale: Tensor
    clip: Tensor
    zero_point: Tensor

    def __init__(self, weight: Tensor, bits: int, scale: Tensor | None = None) -> None:
        """Fix scale and clip."""
        super().__init__()
        # (N, ...) -> (N, D)
        flat = weight.detach().flatten(1)
        if scale is None:
            scale = fit_scale(flat, bits)
        clip = optimal_clip(flat, bits) if bits == 1 else scale * largest_integer(bits)
        self.bits = bits
        self.register_buffer("clip", clip)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros_like(clip, dtype=torch.int32))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weight, shape and dtype of ``weight``."""
        if not torch.is_grad_enabled():
            return _quantize(weight, self.scale, self.zero_point, self.bits)
        quantized: Tensor = _Quantize.apply(
            weight, self.scale, self.clip, self.zero_point, self.bits
        )
        return quantized

    def extra_repr(self) -> str:
        """Return the bits, for the module's representation."""
        return f"bits={self.bits}"


def attach(layer: QuantizableLayer, bits: int, scale: Tensor | None = None) -> None:
    """Quantize a layer's weight from now on; a former bit-width is replaced.

    Args:
        layer: The layer, changed in place. Its float weight stays the trained parameter.
        bits: Bits per weight, 1..8.
        scale: Scales per output channel, shape (N,); fitted to the weight when None.

    Raises:
        ValueError: If ``bits`` is not in 1..8, or a weight is not finite.
    """
    quantizer = FakeQuantize(float_weight(layer), bits, scale)
    if is_quantized(layer):
        _detach(layer, keep_quantized=False)
    parametrize.register_parametrization(layer, "weight", quantizer)


def bake(model: nn.Module) -> None:
    """Replace every quantized weight of a model by its quantized values, as a plain parameter.

    Args:
        model: The model (or layer), changed in place; its outputs stay the same.
    """
    for module in list(model.modules()):
        if is_quantized(module):
            _detach(module, keep_quantized=True)


def quantizer_of(layer: nn.Module) -> FakeQuantize | None:
    """Return the quantizer of the layer's weight, or None if it is not quantized."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    chain: Any = layer.parametrizations
    return next((step for step in chain["weight"] if isinstance(step, FakeQuantize)), None)


def is_computed(layer: nn.Module) -> bool:
    """Return whether the weight is computed by something else than a quantizer: `weight_norm`."""
    if parametrize.is_parametrized(layer, "weight"):
        chain: Any = layer.parametrizations
        return not all(isinstance(step, FakeQuantize) for step in chain["weight"])
    return not isinstance(layer._parameters.get("weight"), nn.Parameter)


def is_quantized(layer: nn.Module) -> bool:
    """Return whether the layer's weight is quantized by :func:`attach`."""
    return quantizer_of(layer) is not None


def bits_of(layer: nn.Module) -> int | None:
    """Return the bits of the layer's weight, or None if it is not quantized."""
    quantizer = quantizer_of(layer)
    return None if quantizer is None else quantizer.bits


def float_weight(layer: nn.Module) -> Tensor:
    """Return the weight under the quantizer, or the weight of a layer without one."""
    if not is_quantized(layer):
        return cast(Tensor, layer.weight)
    chains: Any = layer.parametrizations
    return cast(Tensor, chains["weight"].original)


class _Quantize(torch.autograd.Function):
    """Levels by ``bits``, with gradient 1 where ``|w| <= clip`` and 0 elsewhere."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, clip: Tensor, zero_point: Tensor, bits: int
    ) -> Tensor:
        ctx.save_for_backward(weight.abs() <= _per_channel(clip, weight))
        return _quantize(weight, scale, zero_point, bits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None, None


def _quantize(weight: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    if bits == 1:
        return weight.sign() * _per_channel(scale, weight)
    largest = largest_integer(bits)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_point, 0, -largest, largest)


def _detach(layer: nn.Module, keep_quantized: bool) -> None:
    """Remove the parametrization of the weight, leaving its quantized or its float values.

    torch keeps a parametrized weight as a property of a class made for the layer, deletes it from
    that class, and lets deep copies share the class. So the layer gets a class of its own first.
    """
    shared = type(layer)
    members = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    layer.__class__ = type(shared.__name__, shared.__bases__, members)
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=keep_quantized)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (N,) values so that they broadcast over (N, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))
