"""Fake quantization: levels, clip, gradients, attaching and baking."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress_env.quantization.fake_quant import (
    FakeQuantize,
    attach,
    bake,
    bits_of,
    dequantize,
    is_quantized,
    largest_integer,
    optimal_clip,
    quantize_to_integers,
    quantizer_of,
)

ALL_BITS = range(1, 9)


def test_the_largest_integer_of_symmetric_levels() -> None:
    assert [largest_integer(bits) for bits in ALL_BITS] == [1, 1, 3, 7, 15, 31, 63, 127]


def random_weight(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def squared_error(weight: Tensor, clip: Tensor, bits: int) -> Tensor:
    """Per channel, written out independently of the module."""
    largest = 2 ** (bits - 1) - 1
    scale = (clip / largest)[:, None]
    restored = scale * torch.clamp(torch.round(weight / scale), -largest, largest)
    errors: Tensor = (weight - restored).double().square()
    return errors.sum(dim=1)


def make_layer(kind: str) -> nn.Conv2d | nn.Linear:
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Linear(20, 6)
    return nn.Conv2d(4, 6, 3) if kind == "conv" else nn.Conv2d(6, 6, 3, groups=6)


LAYERS = pytest.mark.parametrize("kind", ["linear", "conv", "depthwise"])


@LAYERS
@pytest.mark.parametrize("bits", ALL_BITS)
def test_the_number_of_levels_fits_the_bits(kind: str, bits: int) -> None:
    layer = make_layer(kind)
    attach(layer, bits)
    quantized = layer.weight.detach().flatten(1)
    for channel in quantized:
        assert 2 <= len(torch.unique(channel)) <= max(2**bits - 1, 2)
    assert bits_of(layer) == bits


@pytest.mark.parametrize("shape", [(6, 9), (8, 25), (6, 150), (12, 400)], ids=str)
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_clip_is_within_a_percent_of_a_brute_force_search(
    shape: tuple[int, int], bits: int
) -> None:
    weight = random_weight(bits, *shape)
    largest = weight.abs().amax(dim=1)
    errors = [squared_error(weight, largest * f, bits) for f in torch.linspace(0.02, 1, 1500)]
    brute_force = torch.stack(errors).amin(dim=0)
    found = squared_error(weight, optimal_clip(weight, bits), bits)
    assert (found <= 1.01 * brute_force).all()


@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(2, 8),
    n_weights=st.integers(1, 60),
    outlier=st.floats(1, 1000),
)
@settings(max_examples=60, deadline=None)
def test_the_clip_is_never_worse_than_the_largest_magnitude(
    seed: int, bits: int, n_weights: int, outlier: float
) -> None:
    weight = random_weight(seed, 3, n_weights)
    weight[:, 0] *= outlier
    naive = squared_error(weight, weight.abs().amax(dim=1).clamp_min(1e-9), bits)
    found = squared_error(weight, optimal_clip(weight, bits), bits)
    slack = 1e-9 * weight.double().square().sum(dim=1)
    assert (found <= naive * (1 + 1e-5) + slack).all()


def test_errors_fall_with_the_bits_and_eight_are_nearly_lossless() -> None:
    weight = random_weight(0, 16, 150)
    errors = []
    for bits in ALL_BITS:
        restored = FakeQuantize(weight, bits)(weight)
        errors.append(float((weight - restored).square().mean() / weight.square().mean()))
    assert all(after < 0.6 * before for before, after in itertools.pairwise(errors))
    assert errors[-1] < 1e-4


def test_one_bit_is_the_sign_times_the_mean_magnitude() -> None:
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.0], [0.5, 0.5, -0.5, 0.5]])
    expected = torch.tensor([[2.0, -2.0, 2.0, 0.0], [0.5, 0.5, -0.5, 0.5]])
    torch.testing.assert_close(FakeQuantize(weight, 1)(weight), expected)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_zeros_stay_zeros_and_dead_channels_are_finite(bits: int) -> None:
    weight = random_weight(1, 5, 40)
    weight[:, ::3] = 0
    weight[2] = 0
    restored = FakeQuantize(weight, bits)(weight)
    assert torch.isfinite(restored).all()
    assert not restored[weight == 0].any()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_constant_channels_are_kept(bits: int) -> None:
    weight = torch.full((2, 10), 0.3)
    weight[1] = -0.3
    # Scales have eight significant bits.
    torch.testing.assert_close(FakeQuantize(weight, bits)(weight), weight, rtol=2**-8, atol=0)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_scales_take_two_bytes_and_are_near_the_best(bits: int) -> None:
    weight = random_weight(4, 40, 150)
    quantizer = FakeQuantize(weight, bits)
    assert not (quantizer.scale.view(torch.int32) & 0xFFFF).any()
    exact = weight.abs().mean(dim=1)
    if bits > 1:
        largest = 2 ** (bits - 1) - 1
        assert torch.equal(quantizer.clip, quantizer.scale * largest)
        exact = optimal_clip(weight, bits) / largest
        best = squared_error(weight, exact * largest, bits)
        found = squared_error(weight, quantizer.clip, bits)
        assert (found <= 1.25 * best).all() and found.sum() <= 1.03 * best.sum()
    torch.testing.assert_close(quantizer.scale, exact, rtol=2**-8, atol=0)


def test_a_given_scale_is_taken() -> None:
    weight = torch.tensor([[1.0, -3.0, 0.4], [0.0, 8.0, 2.0]])
    quantizer = FakeQuantize(weight, 3, torch.tensor([1.0, 2.0]))
    assert quantizer(weight).tolist() == [[1.0, -3.0, 0.0], [0.0, 6.0, 2.0]]
    assert quantizer.clip.tolist() == [3.0, 6.0]


@pytest.mark.parametrize("bits", ALL_BITS)
def test_gradients_are_those_of_the_identity_within_the_clip_and_zero_outside(bits: int) -> None:
    quantizer = FakeQuantize(random_weight(2, 3, 50), bits)
    clip = quantizer.clip[:, None]
    # The clip itself, and the next numbers of float32 inside and outside of it.
    edges = torch.cat([clip, clip.nextafter(clip * 0), clip.nextafter(clip * 2)], dim=1)
    inner = torch.linspace(-1, 1, 41) * clip
    outer = torch.linspace(1.001, 2, 20) * clip
    weight = torch.cat([edges, -edges, inner, outer, -outer], dim=1).requires_grad_()
    upstream = random_weight(3, *weight.shape)
    quantizer(weight).backward(upstream)
    inside = torch.tensor([1, 1, 0, 1, 1, 0] + [1] * 41 + [0] * 40)
    assert weight.grad is not None
    assert torch.equal(weight.grad, upstream * inside)


@pytest.mark.parametrize("bits", range(2, 9))
def test_values_are_those_of_torch(bits: int) -> None:
    weight, largest = random_weight(5, 6, 4, 3, 3), 2 ** (bits - 1) - 1
    quantizer = FakeQuantize(weight, bits)
    expected = torch.fake_quantize_per_channel_affine(
        weight, quantizer.scale, torch.zeros(6, dtype=torch.int32), 0, -largest, largest
    )
    assert torch.equal(quantizer(weight), expected)


def test_one_bit_gradients_pass_up_to_the_largest_magnitude() -> None:
    quantizer = FakeQuantize(torch.tensor([[1.0, -2.0], [4.0, 1.0]]), 1)
    weight = torch.tensor([[1.9, -2.1, 0.0], [3.9, -4.1, 0.1]], requires_grad=True)
    upstream = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    quantizer(weight).backward(upstream)
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 0.0, 3.0], [4.0, 0.0, 6.0]]


@LAYERS
@pytest.mark.parametrize("bits", [1, 3])
def test_training_moves_the_float_weight_and_not_the_scale(kind: str, bits: int) -> None:
    layer = make_layer(kind)
    attach(layer, bits)
    quantizer = quantizer_of(layer)
    assert quantizer is not None
    before, scale = layer.weight.detach().clone(), quantizer.scale.clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    inputs = torch.ones(2, 20) if kind == "linear" else torch.ones(2, layer.weight.shape[0], 5, 5)
    if kind == "conv":
        inputs = inputs[:, :4]
    layer(inputs).square().sum().backward()
    optimizer.step()
    assert torch.equal(quantizer.scale, scale)
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_integers_stand_for_the_quantized_weight_bit_for_bit(bits: int) -> None:
    weight = random_weight(3, 7, 4, 3, 3)
    weight[:, 1] = 0
    quantizer = FakeQuantize(weight, bits)
    integers = quantize_to_integers(weight, quantizer.scale, bits)
    assert integers.dtype == torch.int8
    assert int(integers.abs().max()) <= max(2 ** (bits - 1) - 1, 1)
    restored = dequantize(integers, quantizer.scale)
    assert torch.equal(restored, quantizer(weight))
    assert torch.equal(quantize_to_integers(restored, quantizer.scale, bits), integers)


@LAYERS
@pytest.mark.parametrize("bits", ALL_BITS)
def test_baking_keeps_the_values_and_drops_the_parametrization(kind: str, bits: int) -> None:
    layer = make_layer(kind)
    names = list(layer.state_dict())
    attach(layer, bits)
    expected = layer.weight.detach().clone()
    bake(layer)
    assert torch.equal(layer.weight, expected)
    assert sorted(layer.state_dict()) == sorted(names)
    assert isinstance(layer.weight, nn.Parameter)
    assert not is_quantized(layer) and bits_of(layer) is None


def test_baking_a_model_leaves_its_outputs_and_float_layers_alone() -> None:
    conv, linear = make_layer("conv"), nn.Linear(24, 3)
    model = nn.Sequential(conv, nn.Flatten(), linear)
    attach(conv, 2)
    images, weight = torch.randn(2, 4, 4, 4), linear.weight.detach().clone()
    expected = model(images)
    bake(model)
    assert torch.equal(model(images), expected)
    assert torch.equal(linear.weight, weight)


def test_attaching_again_starts_from_the_float_weight() -> None:
    layer, fresh = make_layer("conv"), make_layer("conv")
    attach(layer, 1)
    attach(layer, 5)
    attach(fresh, 5)
    assert bits_of(layer) == 5
    assert torch.equal(layer.weight, fresh.weight)


@pytest.mark.parametrize("bits", [1, 4])
def test_a_copy_is_quantized_and_independent(bits: int) -> None:
    layer = make_layer("linear")
    attach(layer, bits)
    twin = copy.deepcopy(layer)
    assert bits_of(twin) == bits
    assert torch.equal(twin.weight, layer.weight)
    expected = layer.weight.detach().clone()
    attach(twin, 8)
    bake(twin)
    assert bits_of(layer) == bits
    assert torch.equal(layer.weight, expected)
    assert not torch.equal(twin.weight, expected)


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_bits_outside_one_to_eight_are_rejected(bits: int) -> None:
    layer = make_layer("linear")
    with pytest.raises(ValueError, match=rf"expected bits in 1\.\.8, got {bits}"):
        attach(layer, bits)
    with pytest.raises(ValueError, match=rf"expected bits in 1\.\.8, got {bits}"):
        quantize_to_integers(layer.weight, torch.ones(6), bits)
    assert not is_quantized(layer)


def test_weights_that_are_not_finite_are_rejected() -> None:
    layer = make_layer("linear")
    attach(layer, 3)
    with torch.no_grad():
        next(p for p in layer.parameters() if p.dim() == 2)[0, 0] = float("nan")
    with pytest.raises(ValueError, match="expected finite weights"):
        attach(layer, 4)
    assert bits_of(layer) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("bits", ALL_BITS)
def test_cuda_gives_the_same_levels_as_the_cpu(bits: int) -> None:
    layer = make_layer("conv")
    on_gpu = copy.deepcopy(layer).to("cuda")
    attach(layer, bits)
    attach(on_gpu, bits)
    torch.testing.assert_close(on_gpu.weight.cpu(), layer.weight, rtol=1e-5, atol=1e-7)
    quantizer = quantizer_of(on_gpu)
    assert quantizer is not None and quantizer.scale.is_cuda
    integers = quantize_to_integers(on_gpu.weight, quantizer.scale, bits)
    assert torch.equal(dequantize(integers, quantizer.scale), on_gpu.weight)
