"""The layer table and the cost model against independent counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import Permute

from compress_env.networks.models import build_model
from compress_env.task.layers import (
    dense_params,
    describe_layer,
    largest_bits_within,
    layer_table,
    round_channels,
    smallest_rate_within,
    sparse_macs,
    sparse_params,
)
from tests.fakes import BranchedNet, PlainNet, seeded


@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
def test_macs_agree_with_the_flop_counter(build: type[nn.Module]) -> None:
    model, image = seeded(build), torch.zeros(1, 1, 8, 8)
    table = layer_table(model, image)
    with FlopCounterMode(display=False) as counter:
        model(image)
    assert 2 * sum(layer.macs for layer in table) == counter.get_total_flops()


def test_lenet5_has_its_known_costs() -> None:
    model = build_model("lenet5", 10, (1, 28, 28))
    table = layer_table(model, torch.zeros(1, 1, 28, 28))
    # 28*28*25*6 + 10*10*150*16 + 400*120 + 120*84 + 84*10
    assert sum(layer.macs for layer in table) == 416_520
    assert dense_params(model) == 61_706


def test_table_is_in_execution_order_and_leaves_the_mode_alone() -> None:
    model = seeded(BranchedNet).train()
    table = layer_table(model, torch.zeros(2, 1, 8, 8))
    names = ["stem.0", "block1.0", "block2", "depthwise", "left", "right.0", "merge", "head"]
    assert [layer.name for layer in table] == names
    depthwise = table[3]
    assert (depthwise.groups, depthwise.stride, depthwise.positions) == (8, 2, 16)
    assert depthwise.n_weights == 8 * 9
    assert model.training


def test_layer_called_twice_is_counted_twice() -> None:
    layer = nn.Linear(3, 3)
    table = layer_table(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(1, 3))
    assert [(x.n_calls, x.positions, x.macs) for x in table] == [(2, 2, 18)]


def test_linear_layers_on_channels_last_images_count_every_place() -> None:
    model = nn.Sequential(Permute([0, 2, 3, 1]), nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 5))
    table = layer_table(model, torch.zeros(2, 6, 8, 8))
    assert [(x.positions, x.macs) for x in table] == [(64, 64 * 60), (64, 64 * 50)]


def test_sparse_counts_leave_out_zeros() -> None:
    layer = nn.Conv2d(1, 2, 3)
    model = nn.Sequential(layer)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(1.0)
        layer.weight[0] = 0.0
    assert (sparse_params(model), dense_params(model)) == (11, 20)
    assert sparse_macs(model, {"0": 36}) == 324


def test_describe_layer_refuses_other_modules() -> None:
    with pytest.raises(TypeError, match="expected Conv2d or Linear at 'x', got ReLU"):
        describe_layer("x", nn.ReLU(), 1)


@pytest.mark.parametrize(
    ("n", "rate", "multiple", "kept"),
    [
        (10, 0.0, 1, 10),
        (10, 0.94, 1, 1),
        (10, 1.0, 1, 1),
        (10, 0.25, 1, 7),
        (10, 0.26, 1, 7),
        (64, 0.5, 8, 32),
        (64, 0.9, 8, 8),
        (20, 0.0, 8, 20),
        (20, 0.09, 8, 20),
        (20, 0.11, 8, 16),
        (3, 0.5, 8, 3),
    ],
)
def test_round_channels(n: int, rate: float, multiple: int, kept: int) -> None:
    assert round_channels(n, rate, multiple) == kept


@given(
    n=st.integers(1, 300),
    low=st.floats(0, 1),
    high=st.floats(0, 1),
    multiple=st.integers(1, 16),
)
def test_kept_channels_never_grow_with_the_rate(
    n: int, low: float, high: float, multiple: int
) -> None:
    low, high = sorted((low, high))
    gentle, harsh = round_channels(n, low, multiple), round_channels(n, high, multiple)
    assert 1 <= harsh <= gentle <= n


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    limit=st.floats(0.05, 1.0),
    multiple=st.integers(1, 4),
)
def test_smallest_rate_is_feasible_and_a_smaller_one_is_not(
    sizes: list[int], limit: float, multiple: int
) -> None:
    def kept(rate: float) -> int:
        return sum(round_channels(n, rate, multiple) for n in sizes)

    budget = max(limit * sum(sizes), kept(1.0))
    rate = smallest_rate_within(sizes, 1.0, lambda r: kept(r) <= budget, multiple)
    assert kept(rate) <= budget
    assert rate == 0.0 or kept(rate - 1e-4) > budget


def test_largest_bits() -> None:
    assert largest_bits_within(1, 8, lambda b: b <= 5) == 5
    assert largest_bits_within(2, 8, lambda b: b <= 1) == 2
