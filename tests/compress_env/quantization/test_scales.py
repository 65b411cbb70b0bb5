"""Scales: the best of those that can be stored, against all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress_env.quantization.fake_quant import dequantize, quantize_to_integers
from compress_env.quantization.scales import fit_scale, largest_integer, rounded_scale

# Every positive number of bfloat16 that is neither subnormal nor infinite.
STORED = torch.arange(0x0080, 0x7F80, dtype=torch.int16).view(torch.bfloat16).float()
KINDS: dict[str, Any] = {
    "normal": lambda w: w,
    "one outlier": lambda w: torch.cat([30.0 * w[:, :1], w[:, 1:]], dim=1),
    "heavy tails": lambda w: w**3,
    "equal": lambda w: w[:, :1].abs().expand_as(w),
    "mostly zero": lambda w: w * (w.abs() > 1.0),
    "tiny": lambda w: 1e-7 * w,
    "huge": lambda w: 1e7 * w,
}


def draw(kind: str, seed: int, *shape: int) -> Tensor:
    weight: Tensor = KINDS[kind](torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    return weight.clone()


def squared_error(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Of each channel, in float64."""
    restored = dequantize(quantize_to_integers(weight, scale, bits), scale.double())
    return (weight - restored).square().sum(dim=1)


def least_squared_error(weight: Tensor, bits: int) -> float:
    """Of one channel, (D,), over all stored scales that are not far too small or too large."""
    top, largest = float(weight.abs().max()), largest_integer(bits)
    near = STORED[(top / (60 * largest) < STORED) & (top * 1.1 > STORED)]
    if len(near) == 0:
        return 0.0
    return float(squared_error(weight.expand(len(near), -1), near, bits).min())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n_weights=st.integers(1, 64), bits=st.integers(1, 8))
def test_no_scale_that_can_be_stored_is_better_in_small_channels(
    kind: str, seed: int, n_weights: int, bits: int
) -> None:
    weight = draw(kind, seed, 3, n_weights)
    scale = fit_scale(weight, bits)
    assert not (scale.view(torch.int32) & 0xFFFF).any() and (scale > 0).all()
    for found, channel in zip(squared_error(weight, scale, bits), weight, strict=True):
        floor = 1e-13 * float(channel.double().square().sum())  # rounding in float32
        assert float(found) <= 1.0001 * least_squared_error(channel, bits) + floor


def test_it_makes_a_difference_for_depthwise_filters_at_eight_bits() -> None:
    weight = draw("normal", 0, 200, 9)
    errors = [squared_error(weight, fit(weight, 8), 8) for fit in (fit_scale, rounded_scale)]
    assert (errors[0] <= errors[1] * 1.0001).all() and 1.2 * errors[0].sum() < errors[1].sum()


@pytest.mark.parametrize("bits", range(1, 9))
def test_large_channels_are_as_before_and_near_the_best(bits: int) -> None:
    weight = draw("normal", bits, 4, 144)
    scale = fit_scale(weight, bits)
    assert torch.equal(scale, rounded_scale(weight, bits))
    least = sum(least_squared_error(channel, bits) for channel in weight)
    assert float(squared_error(weight, scale, bits).sum()) < 1.15 * least


@pytest.mark.parametrize("fit", [fit_scale, rounded_scale])
def test_what_is_no_weight_or_no_bits_is_refused(fit: Any) -> None:
    with pytest.raises(ValueError, match="expected finite weights"):
        fit(torch.tensor([[1.0, torch.nan]]), 8)
    for bits in (0, 9):
        with pytest.raises(ValueError, match=rf"expected bits in 1..8, got {bits}"):
            fit(torch.ones(1, 2), bits)


@pytest.mark.parametrize("bits", range(1, 9))
def test_extreme_channels_have_finite_scales(bits: int) -> None:
    weight = torch.tensor([[0.0, 0.0], [1e-30, 0.0], [2e38, -1e38], [1e19, 1.0]])
    scale = fit_scale(weight, bits)
    assert torch.isfinite(scale).all() and (scale > 0).all()
