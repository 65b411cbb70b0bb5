"""AFIE against numbers worked by hand, and what it makes of degenerate layers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from compress_env.allocation import afie
from compress_env.allocation.scores.afie import entropy_of
from tests.fakes import BranchedNet, PlainNet, seeded


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data = weight
    return layer


def test_two_by_two_layer_by_hand() -> None:
    # Singular values 3 and 1, scaled to 1 and 0: e / (e + 1) and 1 / (e + 1).
    row = afie(nn.Sequential(linear(torch.tensor([[0.0, 3.0], [1.0, 0.0]])))).loc["0"]
    likely = math.e / (math.e + 1.0)
    entropy = -likely * math.log(likely) - (1 - likely) * math.log(1 - likely)
    assert entropy == pytest.approx(0.582203)
    assert (row["smallest"], row["largest"]) == pytest.approx((1.0, 3.0))
    assert row["entropy"] == pytest.approx(entropy)
    assert row["afie"] == pytest.approx(0.2911015)
    assert row["width_only"] == pytest.approx(math.log(2) / 2)
    assert row["entropy_ratio"] == pytest.approx(entropy / math.log(2))


def test_convolution_is_averaged_over_its_kernel() -> None:
    conv = nn.Conv2d(2, 2, (1, 2))
    # [[0, 3], [1, 0]] is the mean over the kernel's two elements
    conv.weight.data = torch.tensor([[[[1.0, -1.0]], [[2.0, 4.0]]], [[[0.0, 2.0]], [[5.0, -5.0]]]])
    row = afie(nn.Sequential(conv)).loc["0"]
    assert row["averaged"]
    assert row["afie"] == pytest.approx(0.2911015)


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(1, 2, (1, 2)), nn.Conv2d(2, 2, (1, 2), groups=2)], ids=["grey", "depthwise"]
)
def test_single_input_channel_keeps_its_kernel(conv: nn.Conv2d) -> None:
    conv.weight.data = torch.tensor([[[[0.0, 3.0]]], [[[1.0, 0.0]]]])
    row = afie(nn.Sequential(conv)).loc["0"]
    assert not row["averaged"]
    assert row["afie"] == pytest.approx(0.2911015)


@pytest.mark.parametrize(
    ("weight", "entropy"),
    [
        (torch.eye(4), math.log(4)),
        (torch.zeros(4, 3), math.log(3)),
        (torch.full((4, 4), 0.1), None),
        (torch.ones(1, 5), 0.0),
        (torch.ones(5, 1), 0.0),
    ],
    ids=["all equal", "zeros", "constant", "one filter", "one input"],
)
def test_degenerate_layers_have_finite_scores(weight: Tensor, entropy: float | None) -> None:
    table = afie(nn.Sequential(linear(weight)))
    row = table.loc["0"]
    assert np.isfinite(table.to_numpy(np.float64)).all()
    if entropy is not None:
        assert row["entropy"] == pytest.approx(entropy)
        assert row["entropy_ratio"] == pytest.approx(1.0)
    else:  # one singular value of 0.4, three of 0
        assert row["entropy"] == pytest.approx(entropy_of(np.array([1.0, 0.0, 0.0, 0.0])))


@given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=30))
def test_entropy_is_nearly_that_of_equal_values(values: list[float]) -> None:
    """What the softmax of numbers in [0, 1] can lose is less than an eighth of a nat."""
    entropy = entropy_of(np.array(values))
    assert math.log(len(values)) - 0.125 <= entropy <= math.log(len(values)) + 1e-12


def test_score_does_not_depend_on_scale_or_order() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, generator=generator)
    scores = [
        afie(nn.Sequential(linear(each)))["afie"].item()
        for each in (weight, -7.0 * weight, weight.flip(0), weight.flip(1))
    ]
    np.testing.assert_allclose(scores, scores[0], rtol=1e-6)


@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
def test_every_layer_has_a_row_and_the_network_stays(build: type[nn.Module]) -> None:
    model = seeded(build)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = afie(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert table.index.tolist() == list(layers)
    assert table["n_filters"].tolist() == [len(m.weight) for m in layers.values()]
    assert (table["entropy"] <= table["width_only"] * table["n_filters"] + 1e-12).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_wrong_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a network with a Conv2d or Linear layer"):
        afie(nn.ReLU())
    with pytest.raises(ValueError, match="finite weights, got some in '0'"):
        afie(nn.Sequential(linear(torch.full((2, 2), math.nan))))
