"""Symmetric fake quantization of weights, per output channel, with straight-through gradients.

Shape legend: N output channels, D weights in each, Q = 2^(b-1) - 1 the largest integer at b bits
(1 at one bit), G points of a grid.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

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

MAX_BITS = 8
QuantizableLayer: TypeAlias = nn.Conv2d | nn.Linear

# Keeps 1 / scale and every product with it finite for channels that are zero.
_MIN_SCALE = 1e-12
# Grid points per search: as many as the work allows, within these bounds.
_GRID_WORK = 6_000_000
_MIN_GRID, _MAX_GRID = 64, 512
# Elements held at a time while the grid is evaluated.
_CHUNK_ELEMENTS = 2**18
_REFINEMENT_STEPS = 2


class _Fit(NamedTuple):
    """Best point of a grid, per channel."""

    gain: Tensor
    """Squared error saved against all-zero weights, shape (N,)."""
    scale: Tensor
    """Least-squares scale for the integers at the best point, shape (N,)."""
    clip: Tensor
    """The best point itself, shape (N,)."""


def largest_integer(bits: int) -> int:
    """Return Q, the largest integer that stands for a weight: 2^(bits-1) - 1, and 1 at one bit.

    Args:
        bits: Bits per weight, 1..8.
    """
    return max((1 << (bits - 1)) - 1, 1)


def optimal_clip(weight: Tensor, bits: int) -> Tensor:
    """Return, per output channel, the clip that minimises the squared quantization error.

    A geometric grid from the mean to the maximum of the magnitudes, and a finer one around its
    best point. At each point the least-squares scale for the point's integers is what counts, and
    the best one is refined by alternating rounding and least squares (ours).

    Args:
        weight: Weights, shape (N, D), floating.
        bits: Bits per weight, 1..8. At one bit the clip bounds only the gradient, and is the
            largest magnitude.

    Returns:
        Clips, shape (N,), positive, in the dtype of ``weight``; the scale is clip / Q.

    Raises:
        ValueError: If ``bits`` is not in 1..8, or a weight is not finite.
    """
    _check_bits(bits)
    if not torch.isfinite(weight).all():
        raise ValueError("expected finite weights, got some that are not")
    magnitude = weight.detach().abs()
    largest = magnitude.amax(dim=1).clamp_min(_MIN_SCALE * largest_integer(bits))
    if bits == 1:
        return largest
    # The zeros of a pruned channel are exact at every scale.
    mean = (magnitude.sum(dim=1) / (magnitude > 0).sum(dim=1).clamp_min(1)).clamp_min(_MIN_SCALE)
    return _search(magnitude, torch.minimum(mean, largest), largest, bits)


def fit_scale(weight: Tensor, bits: int) -> Tensor:
    """Return, per output channel, the scale that `FakeQuantize` takes for a weight.

    Args:
        weight: Weight, shape (N, ...), floating.
        bits: Bits per weight, 1..8.

    Returns:
        Numbers of bfloat16, positive, shape (N,), in the dtype of ``weight``.

    Raises:
        ValueError: If ``bits`` is not in 1..8, or a weight is not finite.
    """
    # (N, ...) -> (N, D)
    flat = weight.detach().flatten(1)
    clip = optimal_clip(flat, bits)
    scale = _mean_magnitude(flat) if bits == 1 else clip / largest_integer(bits)
    return scale.clamp_min(_MIN_SCALE).bfloat16().to(scale.dtype)


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
    _check_bits(bits)
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
    ``scale * clamp(round(w / scale), -Q, Q)``, where ``scale`` is that of the error-minimising clip
    rounded to bfloat16, so that a file needs two bytes for it, and the clip is ``scale * Q``
    **(ours)**: both change by less than 2^-8 of themselves. At one bit a weight becomes
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


def _search(magnitude: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Search coarsely in low..high, then finely around the best, then refine; return clips."""
    largest = largest_integer(bits)
    n_points = min(max(_GRID_WORK // max(magnitude.numel(), 1), _MIN_GRID), _MAX_GRID)
    n_coarse = n_points // 4
    coarse = _grid_fit(magnitude, low, high, largest, n_coarse)
    window = (high / low) ** (2 / (n_coarse - 1))
    fine = _grid_fit(
        magnitude,
        coarse.clip / window,
        torch.minimum(coarse.clip * window, high),
        largest,
        n_points - n_coarse,
    )
    scale = torch.where(fine.gain > coarse.gain, fine.scale, coarse.scale)
    for _ in range(_REFINEMENT_STEPS):
        _, scale = _least_squares(magnitude, scale[None], largest)
        scale = scale[0]
    return (scale * largest).clamp_min(_MIN_SCALE * largest)


def _grid_fit(magnitude: Tensor, low: Tensor, high: Tensor, largest: int, n_points: int) -> _Fit:
    """Return the best point per channel of a geometric grid of clips from low to high."""
    steps = torch.linspace(0, 1, n_points, dtype=low.dtype, device=low.device)
    n_chunks = min(1 + n_points * magnitude.numel() // _CHUNK_ELEMENTS, n_points)
    best = _Fit(torch.full_like(low, -1.0), high / largest, high)
    for part in torch.tensor_split(steps, n_chunks):
        clips = low * (high / low) ** part[:, None]
        gains, scales = _least_squares(magnitude, clips / largest, largest)
        gain, index = gains.max(dim=0, keepdim=True)
        better = gain[0] > best.gain
        best = _Fit(
            torch.where(better, gain[0], best.gain),
            torch.where(better, scales.gather(0, index)[0], best.scale),
            torch.where(better, clips.gather(0, index)[0], best.clip),
        )
    return best


def _least_squares(magnitude: Tensor, scales: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Return gains and least-squares scales, (G, N) each, for the integers at given scales.

    With integers q, the squared error over the scale is smallest at ``s = w.q / q.q``, where it is
    ``w.w - (w.q)^2 / q.q``.
    """
    # (N, D) / (G, N, 1) -> (G, N, D)
    integers = (magnitude / scales[..., None]).round_().clamp_(max=largest)
    product = torch.einsum("nd,gnd->gn", magnitude, integers)
    square = integers.square_().sum(dim=-1)
    fitted = torch.where(square > 0, product / square.clamp_min(1), scales)
    return product * fitted, fitted


def _mean_magnitude(weight: Tensor) -> Tensor:
    """Return the mean magnitude of the non-zero weights of each channel, shape (N,)."""
    return weight.abs().sum(dim=1) / (weight != 0).sum(dim=1).clamp_min(1)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (N,) values so that they broadcast over (N, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"expected bits in 1..{MAX_BITS}, got {bits}")
