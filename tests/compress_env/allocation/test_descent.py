"""Rates of the least total loss: as good as trying everything, under every budget."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_env.allocation import least_loss
from compress_env.allocation.ladder import ladder_of
from compress_env.pruning.plan import PruningPlan
from tests.compress_env.allocation.networks import plan_of
from tests.compress_env.allocation.test_ranking import small_plan, unused_step
from tests.fakes import PlainNet


def losses_of(plan: PruningPlan, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    found = []
    for t in range(len(plan.decisions)):
        shares = ladder_of(plan, t).shares
        found.append(rng.lognormal() * shares ** rng.uniform(0.7, 4.0))
    return found


def total(plan: PruningPlan, losses: list[Any], rates: list[float]) -> float:
    ladders = [ladder_of(plan, t) for t in range(len(rates))]
    levels = [int(np.abs(x.rates - r).argmin()) for x, r in zip(ladders, rates, strict=True)]
    return float(sum(each[k] for each, k in zip(losses, levels, strict=True)))


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    share=st.floats(0.05, 0.9),
    unit=st.sampled_from(["macs", "params", "filters"]),
)
def test_hardly_worse_than_trying_everything(seed: int, share: float, unit: Any) -> None:
    plan = small_plan(PlainNet)
    losses = losses_of(plan, seed)
    least, full = plan.highest((), unit), plan.full(unit)
    budgets = {unit: least + share * (full - least)}
    rates = least_loss(losses, plan, budgets)
    assert plan.meets(rates, budgets)
    rungs = [ladder_of(plan, t).rates.tolist() for t in range(3)]
    best = min(
        sum(each[k] for each, k in zip(losses, at, strict=True))
        for at in itertools.product(*(range(len(each)) for each in rungs))
        if plan.meets([each[k] for each, k in zip(rungs, at, strict=True)], budgets)
    )
    assert total(plan, losses, rates) <= 1.1 * best + 1e-9


@pytest.mark.parametrize("name", ["vgg8", "resnet20", "mobilenet_v2_narrow"])
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**16), share=st.floats(0.1, 1.0))
def test_budgets_are_met_and_used(name: str, seed: int, share: float) -> None:
    plan = plan_of(name, channel_round=4)
    least, full = plan.highest((), "macs"), plan.full("macs")
    budgets: Any = {"macs": least + share * (full - least), "params": plan.full("params")}
    rates = least_loss(losses_of(plan, seed), plan, budgets)
    assert plan.meets(rates, budgets)
    assert not unused_step(plan, rates, budgets)


@pytest.mark.parametrize("channel_share", [0.0, 0.5])
def test_elements_go_too(channel_share: float) -> None:
    plan = plan_of("lenet5", channel_share=channel_share)
    budgets: Any = {"macs": 0.4 * plan.full("macs")}
    rates = least_loss(losses_of(plan, 1), plan, budgets)
    assert 0.99 * budgets["macs"] <= plan.count(rates, "macs") <= budgets["macs"]


def test_what_costs_nothing_goes_and_what_is_dear_stays() -> None:
    plan = small_plan(PlainNet)  # 4, 6 and 8 channels
    sizes = [len(ladder_of(plan, t).rates) for t in range(3)]
    losses = [np.linspace(0, high, n) for n, high in zip(sizes, (0.0, 1.0, 1e6), strict=True)]
    kept = plan.at_rates(least_loss(losses, plan, {"filters": 18 - 3}))
    assert kept == [(1,), (6,), (8,)]
    assert plan.at_rates(least_loss(losses, plan, {})) == [(4,), (6,), (8,)]


def test_wrong_input_is_refused() -> None:
    plan = small_plan(PlainNet)
    losses = losses_of(plan, 0)
    with pytest.raises(ValueError, match="budgets cannot be met, even at the highest rate"):
        least_loss(losses, plan, {"macs": 1})
    with pytest.raises(ValueError, match=r"expected losses at .* rungs, got"):
        least_loss(losses[:2], plan, {})
    with pytest.raises(ValueError, match="expected finite losses"):
        least_loss([*losses[:2], losses[2] * np.nan], plan, {})
