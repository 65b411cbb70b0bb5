"""Inputs rounded to 256 levels."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress_env.quantization.activations import (
    InputQuantizer,
    Range,
    attach_input,
    detach_input,
    has_quantizers,
    input_quantizer_of,
    measure_input_range,
)


def test_levels_by_hand() -> None:
    quantizer = InputQuantizer(Range(0.0, 25.5))  # levels 0.1 apart
    x = torch.tensor([-1.0, 0.0, 0.04, 0.06, 12.34, 25.5, 99.0])
    expected = torch.tensor([0.0, 0.0, 0.0, 0.1, 12.3, 25.5, 25.5])
    torch.testing.assert_close(quantizer(x), expected)


@given(low=st.floats(-1e3, 1e3), width=st.floats(0, 1e3))
def test_zero_is_a_level_and_all_errors_are_half_a_level(low: float, width: float) -> None:
    quantizer = InputQuantizer(Range(low, low + width))
    assert quantizer(torch.zeros(1)).item() == 0.0
    x = torch.linspace(min(low, 0.0), max(low + width, 0.0), 300)
    # The zero point is rounded too: values at the ends may be another half level off.
    assert float((quantizer(x) - x).abs().max()) <= 1.001 * float(quantizer.scale) + 1e-30


def test_gradients_pass_inside_the_range_only() -> None:
    x = torch.tensor([-0.5, 0.1, 0.9, 1.5], requires_grad=True)
    InputQuantizer(Range(0.0, 1.0))(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_copies_have_quantizers_of_their_own_and_it_can_be_taken_off() -> None:
    layer = nn.Linear(4, 2)
    x = torch.rand(8, 4)
    plain = layer(x)
    attach_input(layer, measure_input_range(layer, "", [(x, None)]))
    twin = copy.deepcopy(layer)
    attach_input(layer, Range(0.0, 0.1))  # replaces the first
    assert has_quantizers(layer) and len(layer._forward_pre_hooks) == 1
    torch.testing.assert_close(twin(x), plain, rtol=0, atol=0.01)
    assert not torch.allclose(layer(x), plain, atol=0.01)
    detach_input(layer)
    assert torch.equal(layer(x), plain)
    assert input_quantizer_of(layer) is None and not has_quantizers(layer)


@pytest.mark.parametrize(
    "span", [Range(1.0, 0.0), Range(0.0, float("inf")), Range(float("nan"), 1)]
)
def test_bad_ranges_are_refused(span: Range) -> None:
    with pytest.raises(ValueError, match="expected a finite range, low first"):
        InputQuantizer(span)


def test_bad_images_are_refused() -> None:
    layer = nn.Linear(4, 2)
    with pytest.raises(ValueError, match="at least one calibration image"):
        measure_input_range(layer, "", [])
    with pytest.raises(FloatingPointError, match="are not finite"):
        measure_input_range(layer, "", [(torch.full((1, 4), float("nan")), None)])
