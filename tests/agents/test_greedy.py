"""Greedy compression by one-layer profiles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from torch import nn

from agents import Greedy
from agents.greedy import choose_levels
from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.task.layers import compute_layers
from tests.agents.fakes import TargetEnv
from tests.fakes import BranchedNet, PlainNet, make_data, seeded

PROFILE = np.array([[0.0, 0.1, 0.5], [0.0, 0.3, 0.3], [0.0, 0.0, 0.2]])


@cache
def data() -> Any:
    return make_data()


def additive(at: Sequence[int]) -> float:
    """Layers of 100, 50 and 10 whose levels leave all, half and nothing."""
    return sum(size * (2 - level) / 2 for size, level in zip((100, 50, 10), at, strict=True))


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (160, [0, 0, 0]),
        (156, [0, 0, 1]),  # free
        (155, [0, 0, 1]),
        (154, [1, 0, 1]),  # 0.1 / 50 against 0.3 / 50 for all of layer 2 and 0.2 / 5
        (104, [1, 2, 1]),  # 0.3 / 50 against 0.4 / 50
        (54, [2, 2, 1]),
        (3, [2, 2, 2]),
    ],
)
def test_levels_by_hand(budget: float, expected: list[int]) -> None:
    assert choose_levels(PROFILE, additive, budget) == expected


def test_gain_from_compression_counts_as_no_loss() -> None:
    assert choose_levels(np.array([[0.0, -0.5], [0.0, 0.0]]), lambda at: 10 - sum(at), 9) == [1, 0]
    dip = np.array([[0.0, 0.4, 0.1], [0.0, 0.3, 0.3]])  # 0.1 at the last level counts as 0.4
    assert choose_levels(dip, lambda at: 10 - sum(at), 9) == [0, 2]


def test_budget_out_of_reach_is_refused() -> None:
    with pytest.raises(ValueError, match="the budget must be at least 0 at these levels, got -1"):
        choose_levels(PROFILE, additive, -1)


def weight_of(model: nn.Module, name: str) -> int:
    return compute_layers(model)[name].weight.shape[1]


def play(env: LayerwiseCompressionEnv, agent: Greedy) -> tuple[list[float], dict[str, Any]]:
    observation, info = env.reset()
    values = []
    for _ in env.walk:
        action, _ = agent.predict(observation, deterministic=True)
        observation, _, _, _, info = env.step(action)
        values.append(info[env.value_name])
    return values, info


QUICK: dict[str, Any] = {"finetune_steps": 0, "device": "cpu", "reward_at": "episode"}


@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
@pytest.mark.parametrize("stage", [PruningEnv, QuantizationEnv])
def test_values_are_executed_and_meet_the_budget(stage: Any, build: type[nn.Module]) -> None:
    budget = {"flops_budget": 0.5} if stage is PruningEnv else {"size_budget": 0.65}
    env = stage(seeded(build), data(), **budget, **QUICK)
    agent = Greedy(env)
    values, info = play(env, agent)
    n_levels = 10 if stage is PruningEnv else 8
    assert agent.profile.shape == (len(env.walk), n_levels)
    assert agent.n_evaluations == 1 + len(env.walk) * (n_levels - 1)
    assert agent.seconds > 0
    assert info["reward_terms"]["cost"] <= next(iter(budget.values())) * env.unpruned.cost_high
    if stage is QuantizationEnv:
        np.testing.assert_allclose(values, agent.rates * env.value_scale)
    else:  # rates in whole channels
        np.testing.assert_allclose(values, agent.rates, atol=0.5)
        assert env.plan.count(agent.rates.tolist(), "macs") <= env.budget


def test_profile_tells_which_layer_a_scorer_minds() -> None:
    def mind(model: nn.Module) -> float:
        return 1.0 if weight_of(model, "conv2") == 4 else 0.2

    env = PruningEnv(
        seeded(PlainNet), data(), scorer=mind, method="magnitude", flops_budget=0.5, **QUICK
    )
    agent = Greedy(env, n_levels=4)
    names = [layer.name for layer in env.walk]
    minded = names.index("conv2")
    np.testing.assert_allclose(agent.profile[minded, 1:], 0.8)
    assert not np.delete(agent.profile, minded, axis=0).any()
    others = np.delete(agent.rates, minded)
    assert (others > 0).any()


def test_one_layer_alone_is_compressed() -> None:
    env = QuantizationEnv(seeded(PlainNet), data(), **QUICK)
    model = env.compress_layer(1, 2)
    levels = {
        n: len(set(layer.weight[0].flatten().tolist()))
        for n, layer in compute_layers(model).items()
    }
    assert levels["conv2"] <= 3 < min(v for name, v in levels.items() if name != "conv2")
    pruning = PruningEnv(seeded(PlainNet), data(), method="magnitude", **QUICK)
    pruned = pruning.compress_layer(1, 0.5)
    changed = [
        name
        for name, layer in compute_layers(pruned).items()
        if layer.weight.shape != compute_layers(pruning.task.model)[name].weight.shape
    ]
    first, second = pruning.walk[0].name, pruning.walk[1].name
    assert changed == [first, second]  # the filters that the second reads are the first's


class TestRefusals:
    def test_no_budget(self) -> None:
        with pytest.raises(ValueError, match="expected an environment with a budget, got none"):
            Greedy(PruningEnv(seeded(PlainNet), data(), method="magnitude", **QUICK))

    def test_other_environments(self) -> None:
        with pytest.raises(TypeError, match=r"expected a PruningEnv or .*, got TargetEnv"):
            Greedy(TargetEnv())

    def test_too_few_levels(self) -> None:
        with pytest.raises(ValueError, match="n_levels must be at least 2, got 1"):
            Greedy(TargetEnv(), n_levels=1)
