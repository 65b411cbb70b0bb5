"""One threshold over all channels: what goes, what it costs, and what is realised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_env.allocation import rank_channels
from compress_env.allocation.ladder import ladder_of
from compress_env.pruning.graph.surgery import find_walk
from compress_env.pruning.plan import PruningPlan
from compress_env.task.layers import layer_table
from tests.compress_env.allocation.networks import SHAPES, plan_of
from tests.fakes import BranchedNet, PlainNet, seeded, slow_but


def scores_of(plan: PruningPlan, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.lognormal(size=decision.n_channels) for decision in plan.decisions]


def small_plan(build: Any, **settings: Any) -> PruningPlan:
    model, image = seeded(build), torch.zeros(1, 1, 8, 8)
    given: dict[str, Any] = {
        "channel_share": 1.0,
        "max_pruning_rate": 0.95,
        "channel_round": 1,
        "counts_zeros": True,
    }
    decisions = find_walk(model, image).decisions
    return PruningPlan(decisions, layer_table(model, image), model, **(given | settings))


def unused_step(plan: PruningPlan, rates: list[float], budgets: Any) -> bool:
    """Whether the next less pruned rung of some decision would fit."""
    for t in range(len(rates)):
        ladder = ladder_of(plan, t)
        level = int(np.argmin(np.abs(ladder.rates - rates[t])))
        if level:
            lower = [*rates[:t], float(ladder.rates[level - 1]), *rates[t + 1 :]]
            if plan.meets(lower, budgets):
                return True
    return False


@pytest.mark.parametrize("channel_round", [1, 4])
@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 2**16), share=st.floats(0.02, 1.0), unit=st.sampled_from(["macs", "params"])
)
def test_budgets_are_met_and_used(
    name: str, channel_round: int, seed: int, share: float, unit: Any
) -> None:
    plan = plan_of(name, channel_round=channel_round)
    least, full = plan.highest((), unit), plan.full(unit)
    budgets = {unit: least + share * (full - least)}
    scores = scores_of(plan, seed)
    rates = rank_channels(scores, plan, budgets)
    assert plan.meets(rates, budgets)
    assert not unused_step(plan, rates, budgets)
    if channel_round == 1 and share > 0.2:
        assert plan.count(rates, unit) >= 0.99 * budgets[unit] or name in ("lenet5", "cnn4")
    for decision, kept in zip(plan.decisions, plan.at_rates(rates), strict=True):
        for group, n_keep in zip(decision.groups, kept, strict=True):
            assert n_keep >= 1 and (n_keep % channel_round == 0 or n_keep == group.n_channels)


def test_threshold_by_hand() -> None:
    """Channels go in the order of their scores until the budget of filters is met."""
    plan = small_plan(PlainNet)  # 4, 6 and 8 channels
    scores = [np.array([9, 1, 8, 7]), np.array([2, 9, 9, 3, 9, 9]), np.array([9.0] * 7 + [4])]
    kept = plan.at_rates(rank_channels(scores, plan, {"filters": 18 - 3}))
    assert kept == [(3,), (4,), (8,)]
    kept = plan.at_rates(rank_channels(scores, plan, {"filters": 18 - 4.5}))
    assert kept == [(2,), (4,), (7,)]
    assert plan.at_rates(rank_channels(scores, plan, {})) == [(4,), (6,), (8,)]


def test_equal_scores_are_spread_over_the_decisions() -> None:
    plan = small_plan(PlainNet)
    scores = [np.ones(decision.n_channels) for decision in plan.decisions]
    assert plan.at_rates(rank_channels(scores, plan, {"filters": 9})) == [(2,), (3,), (4,)]


def test_the_best_that_fits_is_taken_back() -> None:
    """The last channel below the threshold is a dear one: cheap ones come back instead."""
    plan = small_plan(PlainNet)
    scores = [np.array([0.5, 9, 9, 9]), np.array([0.4] + [9.0] * 5), np.array([0.1] + [9.0] * 7)]
    dear = plan.count([0.25, 0, 0], "macs")  # without one channel of the first decision
    rates = rank_channels(scores, plan, {"macs": dear})
    assert plan.at_rates(rates) == [(3,), (6,), (8,)]


def test_groups_of_one_decision_share_its_rate() -> None:
    plan = small_plan(BranchedNet)
    ladder = ladder_of(plan, 2)  # two groups, of 5 and 4 channels
    outcomes = [plan.decide((0,) * 2, rate) for rate in ladder.rates]
    assert len(set(outcomes)) == len(outcomes) and outcomes[0] == (5, 4)
    np.testing.assert_allclose(ladder.shares, [1 - sum(each) / 9 for each in outcomes])
    assert (np.diff(ladder.shares) > 0).all() and outcomes[-1] == (1, 1)


@pytest.mark.parametrize("name", slow_but(("lenet5", "resnet20_padded"), SHAPES))
@pytest.mark.parametrize("highest", [0.6, 0.95, 1.0])
def test_rungs_are_all_that_a_rate_can_come_to(name: str, highest: float) -> None:
    plan = plan_of(name, highest=highest)
    for t in range(len(plan.decisions)):
        before: tuple[Any, ...] = (None,) * t
        ladder = ladder_of(plan, t)
        reached = {plan.decide(before, rate) for rate in np.linspace(0.0, highest, 4001)}
        rungs = [plan.decide(before, float(rate)) for rate in ladder.rates]
        assert reached <= set(rungs) and len(set(rungs)) == len(rungs)
        # An action and its interval go through float32.
        for rate, expected in zip(ladder.rates, rungs, strict=True):
            near = np.clip(rate + np.array([-3e-7, 3e-7]), 0.0, highest)
            assert {plan.decide(before, float(each)) for each in near} == {expected}


@pytest.mark.parametrize("channel_share", [0.0, 0.5])
def test_elements_go_by_the_share_of_channels(channel_share: float) -> None:
    plan = plan_of("vgg8", channel_share=channel_share)
    budgets: Any = {"macs": 0.4 * plan.full("macs")}
    scores = scores_of(plan, 3)
    rates = rank_channels(scores, plan, budgets)
    assert 0.99 * budgets["macs"] <= plan.count(rates, "macs") <= budgets["macs"]
    # One threshold explains all rates; of the last layer, which is cheap, most is taken back.
    thresholds = [np.quantile(each, rate) for each, rate in zip(scores, rates, strict=True)]
    low = [float((each <= np.median(thresholds)).mean()) for each in scores]
    np.testing.assert_allclose(rates[:-1], low[:-1], atol=0.06)
    assert rates[-1] < low[-1]


def test_two_budgets_are_met_at_once() -> None:
    plan = plan_of("vgg8")
    budgets: Any = {"macs": 0.5 * plan.full("macs"), "params": 0.3 * plan.full("params")}
    rates = rank_channels(scores_of(plan, 0), plan, budgets)
    assert plan.meets(rates, budgets) and plan.worst(rates, budgets) > 0.99


def test_wrong_input_is_refused() -> None:
    plan = small_plan(PlainNet)
    scores = [np.ones(decision.n_channels) for decision in plan.decisions]
    with pytest.raises(ValueError, match="budgets cannot be met, even at the highest rate"):
        rank_channels(scores, plan, {"macs": 1})
    with pytest.raises(ValueError, match=r"expected scores of \[4, 6, 8\] channels, got \[4, 6\]"):
        rank_channels(scores[:2], plan, {})
    with pytest.raises(ValueError, match="expected finite scores"):
        rank_channels([*scores[:2], np.full(8, np.nan)], plan, {})
