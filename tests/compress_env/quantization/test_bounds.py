"""The most that a packed file can take, against files of any values."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_env.quantization.activations import Range, attach_input
from compress_env.quantization.bounds import size_bounds
from compress_env.quantization.fake_quant import attach
from compress_env.quantization.packing import pack
from compress_env.task.layers import compute_layers
from tests.compress_env.quantization.fakes import DepthwiseNet
from tests.fakes import BranchedNet, seeded


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    zeros=st.sampled_from([0.0, 0.5, 0.95]),
    noise=st.floats(0.0, 2.0),
    inputs=st.booleans(),
)
def test_no_file_exceeds_the_bound_however_weights_move(
    seed: int, zeros: float, noise: float, inputs: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = seeded(BranchedNet, seed)
    layers = compute_layers(model)
    for layer in layers.values():
        layer.weight.data[torch.rand(layer.weight.shape, generator=generator) < zeros] = 0
    bounds = size_bounds(model, layers, inputs=inputs)
    bits = {name: int(torch.randint(1, 9, (), generator=generator)) for name in layers}
    moved = copy.deepcopy(model)
    for name, layer in compute_layers(moved).items():
        attach(layer, bits[name])
        if inputs:
            attach_input(layer, Range(-0.3, float(seed)))
    for parameter in moved.parameters():
        step = noise * parameter.detach().std(correction=0) + 1e-3
        draw = torch.randn(parameter.shape, generator=generator)
        parameter.data += (parameter != 0) * step * draw
    size = len(pack(moved))
    assert size <= bounds.total(bits)
    assert bounds.total(bits) - size <= 0.4 * size


def test_the_bound_of_a_dense_layer_by_hand() -> None:
    model = DepthwiseNet()
    bounds = size_bounds(model, ["conv", "head"])
    # 6 x 3 x 3 x 3 and 4 x 12 weights at 1, 2 (5 to a byte), 3, ... bits
    assert bounds.weights["conv"] == (21, 33, 61, 81, 102, 122, 142, 162)
    assert bounds.weights["head"][:3] == (6, 10, 18)
    assert bounds.total({"conv": 1, "head": 8}) == bounds.others + 21 + 48
    # Everything else in float32, but for two counts of batches and ten scales of two bytes
    n_floats = 6 + 4 * 6 + 12 * 9 + 2 * 12 + 4
    overhead = bounds.others - 4 * n_floats - 2 * 8 - 2 * 10
    assert 0 < overhead < 400


def test_the_bound_leaves_the_network_alone() -> None:
    model = DepthwiseNet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    size_bounds(model, ["conv"], inputs=True)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert set(model.state_dict()) == set(before)
    with pytest.raises(KeyError):
        size_bounds(model, ["norm"])
