"""Budgets of every unit, alone and together: every sequence of actions meets them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from agents import AFIE, SBPF, Greedy, Uniform
from compress_env.envs.pruning import PruningEnv, PruningMethod
from compress_env.pruning.budgets import Budgets
from compress_env.pruning.plan import PruningPlan
from compress_env.task.layers import sparse_params
from tests.fakes import BranchedNet, PlainNet, make_data, seeded

QUICK: dict[str, Any] = {
    "finetune_steps": 0,
    "device": "cpu",
    "variational": {"n_steps": 0},
    "reward_at": "episode",
    "scorer": lambda model: 0.5,
    "store": None,
}


@cache
def data() -> Any:
    return make_data()


def make(build: type[nn.Module], **options: Any) -> PruningEnv:
    return PruningEnv(seeded(build), data(), **(QUICK | options))


def plan_of(build: type[nn.Module], method: PruningMethod) -> PruningPlan:
    return _plan_of(build is PlainNet, method)


@cache
def _plan_of(is_plain: bool, method: PruningMethod) -> PruningPlan:
    return make(PlainNet if is_plain else BranchedNet, method=method).plan


def lowest(build: type[nn.Module], method: PruningMethod, unit: Any) -> float:
    plan = plan_of(build, method)
    return plan.highest((), unit) / plan.full(unit)


def play(env: PruningEnv, seed: int) -> dict[str, Any]:
    """Take random actions, half of them the gentlest, which leave the budget to later layers."""
    rng, n = np.random.default_rng(seed), len(env.walk)
    env.reset()
    info: dict[str, Any] = {}
    for action in np.where(rng.random(n) < 0.5, -1.0, rng.uniform(-1, 1, n)):
        *_, info = env.step(np.array([action], np.float32))
        assert "error" not in info
    return info


@pytest.mark.parametrize("method", ["magnitude", "variational", "channel+variational"])
@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**16), share=st.floats(0.0, 1.0))
def test_every_action_sequence_meets_a_budget_of_parameters(
    build: type[nn.Module], method: PruningMethod, seed: int, share: float
) -> None:
    least = lowest(build, method, "params")
    budget = least + share * (1.0 - least)
    env = make(build, method=method, params_budget=budget)
    info = play(env, seed)
    counted = info["dense_params" if env.macs == "dense" else "sparse_params"]
    assert counted <= budget * sum(p.numel() for p in env.task.model.parameters()) + 1e-6
    live = env.live_model()
    assert info["dense_params"] == sum(p.numel() for p in live.parameters())
    assert info["sparse_params"] == sparse_params(live)


@pytest.mark.parametrize("method", ["magnitude", "channel+variational"])
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**16),
    shares=st.fixed_dictionaries(
        {},
        optional={
            "flops_budget": st.floats(0.0, 1.0),
            "params_budget": st.floats(0.0, 1.0),
            "filters_budget": st.floats(0.0, 1.0),
        },
    ),
)
def test_several_budgets_are_all_met(
    method: PruningMethod, seed: int, shares: dict[str, float]
) -> None:
    units = {"flops_budget": "macs", "params_budget": "params", "filters_budget": "filters"}
    least = {name: lowest(BranchedNet, method, units[name]) for name in shares}
    given = {name: least[name] + share * (1 - least[name]) for name, share in shares.items()}
    env = make(BranchedNet, method=method, **given)
    info = play(env, seed)
    plan, kind = env.plan, env.macs
    found = {"macs": info[f"{kind}_macs"], "params": info[f"{kind}_params"]}
    found["filters"] = plan._cost.filters(plan._kept(env._executed))
    for name, budget in given.items():
        assert found[units[name]] <= budget * plan.full(units[name]) + 1e-6  # type: ignore[arg-type]


def test_parameters_that_are_counted_are_those_of_the_method() -> None:
    assert make(PlainNet, method="magnitude").macs == "dense"
    elements = plan_of(PlainNet, "variational")
    rates = [0.5] * len(elements.decisions)
    weights = [4 * 6 * 9, 6 * 4 * 8, 8 * 3]  # of conv2, fc1 and fc2
    assert elements.count(rates, "params") == elements.full("params") - sum(weights) / 2
    dense = make(PlainNet, method="variational", macs="dense")
    assert dense.plan.count(rates, "params") == dense.plan.full("params")


@pytest.mark.parametrize("method", ["magnitude", "channel+variational"])
@pytest.mark.parametrize(
    "budgets",
    [{"params_budget": 0.5}, {"params_budget": 0.6, "flops_budget": 0.5}],
    ids=["params", "both"],
)
def test_agents_meet_what_the_environment_allows(
    budgets: dict[str, float], method: PruningMethod
) -> None:
    env = make(BranchedNet, method=method, **budgets)
    uniform = env.uniform_value()
    n = len(env.walk)
    assert env.plan.meets([uniform] * n, env.budgets)
    assert not env.plan.meets([uniform - 0.01] * n, env.budgets)
    for agent in (Uniform(uniform), AFIE(env), SBPF(env, n_trials=1), Greedy(env)):
        observation, info = env.reset()
        for _ in env.walk:
            action, _ = agent.predict(observation)
            observation, _, _, _, info = env.step(action)
        assert info[f"{env.macs}_params"] <= budgets["params_budget"] * env.plan.full("params")
        if "flops_budget" in budgets:
            assert info[f"{env.macs}_macs"] <= 0.5 * env.plan.full("macs")


def test_budgets_are_named_by_unit() -> None:
    env = make(PlainNet, method="magnitude", filters_budget=0.9, params_budget=0.5)
    assert list(env.budgets) == ["params", "filters"]
    assert (env.budget_unit, env.budget) == ("params", 0.5 * env.plan.full("params"))
    free = make(PlainNet, method="magnitude")
    assert (free.budgets, free.budget_unit, free.budget) == ({}, "macs", float("inf"))
    with pytest.raises(ValueError, match="budget counts params, filters, got unit='macs'"):
        AFIE(env, unit="macs")


def test_one_budget_more_changes_nothing_where_it_does_not_bind() -> None:
    one, two = (
        make(PlainNet, method="magnitude", flops_budget=0.5, **more)
        for more in ({}, {"params_budget": 1.0})
    )
    for env in (one, two):
        env.reset()
        env.step(np.array([0.0], np.float32))
    np.testing.assert_array_equal(one._get_obs(), two._get_obs())


@given(rates=st.lists(st.floats(0.0, 0.95), min_size=3, max_size=3), share=st.floats(0.2, 1.0))
@settings(deadline=None)
def test_budgets_can_be_met_as_long_as_the_highest_rates_would(
    rates: list[float], share: float
) -> None:
    plan = plan_of(PlainNet, "magnitude")
    budgets: Budgets = {"macs": share * plan.full("macs"), "params": share * plan.full("params")}
    assert plan.can_meet((), rates, budgets) == plan.meets(rates, budgets)
    executed = tuple(plan.at_rates(rates[:1]))
    extreme = [*rates[:2], plan.max_pruning_rate]
    assert plan.can_meet(executed, rates[1:2], budgets) == plan.meets(extreme, budgets)
