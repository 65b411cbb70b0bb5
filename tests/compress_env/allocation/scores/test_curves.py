"""What one decision does to the answers: divergences by hand, and curves that rise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress_env.allocation.ladder import Ladder, ladder_of
from compress_env.allocation.scores.curves import (
    Probes,
    kl_curves,
    kl_divergence,
    losses_at,
    rungs_to_measure,
)
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from tests.compress_env.allocation.networks import SHAPES, plan_of
from tests.fakes import BranchedNet, make_data, seeded


def test_divergence_by_hand() -> None:
    before, after = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert kl_divergence(before, after) == pytest.approx(expected)
    assert kl_divergence(before, before + 7.0) == pytest.approx(0.0, abs=1e-12)
    twice = kl_divergence(before.repeat(2, 1), torch.cat([after, before]))
    assert twice == pytest.approx(expected / 2)
    with pytest.raises(FloatingPointError, match="expected finite logits"):
        kl_divergence(before, after * math.nan)


def test_curves_compare_with_nothing_done() -> None:
    """Decision t at value v moves the first logit by t + v."""

    def network(t: int, value: float | None) -> nn.Module:
        layer = nn.Linear(1, 2)
        layer.bias.data = torch.tensor([0.0 if value is None else t + value, 0.0])
        layer.weight.data.zero_()
        return layer

    def answers(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model(torch.zeros(1, 1))  # type: ignore[no-any-return]

    first, second = kl_curves(Probes(network, answers), [[0.0, 1.0], [0.5]])
    assert first[0] == 0.0 and len(first) == 2
    zero = torch.zeros(1, 2)
    assert first[1] == pytest.approx(kl_divergence(zero, torch.tensor([[1.0, 0.0]])))
    assert second[0] == pytest.approx(kl_divergence(zero, torch.tensor([[1.5, 0.0]])))


@pytest.mark.parametrize("name", ["lenet5", "densenet_small", "mobilenet_v1"])
def test_nine_rates_of_a_decision_at_most(name: str) -> None:
    plan = plan_of(name)
    for t in range(len(plan.decisions)):
        ladder = ladder_of(plan, t)
        rungs = rungs_to_measure(ladder)
        assert 1 <= len(rungs) <= 9 and rungs[0] > 0 and rungs[-1] == len(ladder.rates) - 1
        assert (np.diff(rungs) > 0).all()
        if len(ladder.rates) > 10:
            assert np.diff(ladder.shares[rungs]).max() < 0.2 and len(rungs) == 9
    assert name in SHAPES


def test_losses_rise_and_are_interpolated() -> None:
    ladder = Ladder(np.linspace(0, 1, 6), np.linspace(0, 1, 6))
    found = losses_at(ladder, np.array([2, 4, 5]), np.array([4.0, 2.0, 8.0]))
    np.testing.assert_allclose(found, [0.0, 2.0, 4.0, 4.0, 4.0, 8.0])


def test_environments_carry_out_one_decision_alone() -> None:
    data = make_data()
    for env in (
        PruningEnv(seeded(BranchedNet), data, flops_budget=0.5, device="cpu", store=None),
        QuantizationEnv(seeded(BranchedNet), data, size_budget=0.5, device="cpu", store=None),
    ):
        probes = env._source().probes
        before = env.task.model.state_dict()
        untouched = probes.answers(probes.network(1, None))
        assert untouched.shape == (32, 3)  # all calibration images
        value = 0.5 if isinstance(env, PruningEnv) else 2.0
        one = probes.answers(probes.network(1, value))
        torch.testing.assert_close(one, probes.answers(env.compress_layer(1, value)))
        assert kl_divergence(untouched, one) > 0.0
        if isinstance(env, PruningEnv):
            same = probes.answers(probes.network(1, 0.0))
            assert kl_divergence(untouched, same) == pytest.approx(0.0, abs=1e-9)
        after = env.task.model.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
