"""Channels by what they are worth for what they cost."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_env.allocation import market, rank_per_cost
from compress_env.allocation.ladder import ladder_of
from compress_env.pruning.plan import PruningPlan
from tests.compress_env.allocation.networks import SHAPES, plan_of
from tests.compress_env.allocation.test_ranking import scores_of, small_plan, unused_step
from tests.fakes import PlainNet


def slow(scores: list[Any], plan: PruningPlan, limit: float) -> list[tuple[int, ...]]:
    """Look at every decision before every step; nothing is taken back."""
    ordered = [np.sort(each) for each in scores]
    ladders = [ladder_of(plan, t) for t in range(len(scores))]
    levels = [0] * len(scores)

    def cost(at: list[int]) -> int:
        return plan.count([float(x.rates[k]) for x, k in zip(ladders, at, strict=True)], "macs")

    while cost(levels) > limit:
        prices = {}
        for t, level in enumerate(levels):
            if level + 1 < len(ladders[t].rates):
                after = [*levels[:t], level + 1, *levels[t + 1 :]]
                prices[ordered[t][level] / (cost(levels) - cost(after)), t] = t
        levels[prices[min(prices)]] += 1
    return plan.at_rates([float(x.rates[k]) for x, k in zip(ladders, levels, strict=True)])


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**16), share=st.floats(0.02, 1.0))
def test_steps_are_those_of_a_full_search(seed: int, share: float) -> None:
    plan = small_plan(PlainNet)
    scores = scores_of(plan, seed)
    least, full = plan.highest((), "macs"), plan.full("macs")
    limit = least + share * (full - least)
    with mock.patch.object(market, "WELL_USED", 0.0):  # no exchanges
        found = plan.at_rates(rank_per_cost(scores, plan, {"macs": limit}))
    for (kept,), (expected,) in zip(found, slow(scores, plan, limit), strict=True):
        assert kept >= expected  # what fits is taken back


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**16), share=st.floats(0.1, 1.0))
def test_budgets_are_met_and_used(name: str, seed: int, share: float) -> None:
    plan = plan_of(name, channel_round=8)
    least, full = plan.highest((), "macs"), plan.full("macs")
    budgets: Any = {"macs": least + share * (full - least), "params": plan.full("params")}
    rates = rank_per_cost(scores_of(plan, seed), plan, budgets)
    assert plan.meets(rates, budgets)
    assert not unused_step(plan, rates, budgets)


@pytest.mark.parametrize("channel_share", [0.0, 0.5])
def test_elements_are_ranked_too(channel_share: float) -> None:
    plan = plan_of("lenet5", channel_share=channel_share)
    budgets: Any = {"macs": 0.4 * plan.full("macs")}
    rates = rank_per_cost(scores_of(plan, 1), plan, budgets)
    # A channel less, with all its elements, is up to a fiftieth of a layer.
    assert 0.97 * budgets["macs"] <= plan.count(rates, "macs") <= budgets["macs"]


def test_what_cannot_be_met_is_refused() -> None:
    plan = small_plan(PlainNet)
    with pytest.raises(ValueError, match="budgets cannot be met, even at the highest rate"):
        rank_per_cost(scores_of(plan, 0), plan, {"macs": 1})
