"""Rewards against numbers worked by hand."""

from __future__ import annotations

import math

import pytest

from compress_env.task.rewards import REWARDS, Reward, RewardInput, get_reward, lower_bound

INPUT = RewardInput(accuracy=0.9, cost=40.0, cost_low=20.0, cost_high=100.0, macs=1000, params=50)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("err", -0.1),
        ("flops", 0.9 * 60 / 80),
        ("amc_flops", -0.1 * math.log(1000)),
        ("amc_params", -0.1 * math.log(50)),
    ],
)
def test_formula(name: str, expected: float) -> None:
    assert get_reward(name)(INPUT) == pytest.approx(expected)


@pytest.mark.parametrize("name", REWARDS)
def test_lower_bound_is_below_every_outcome(name: str) -> None:
    unpruned = INPUT._replace(cost=100.0)
    bound = lower_bound(REWARDS[name], unpruned)
    outcomes = [
        REWARDS[name](INPUT._replace(accuracy=a, cost=c, macs=m, params=p))
        for a in (0.0, 0.5, 1.0)
        for c in (20.0, 100.0)
        for m in (10, 1000)
        for p in (5, 50)
    ]
    assert bound == min(outcomes)


@pytest.mark.parametrize("reward", [lambda x: math.log(x.accuracy), lambda x: -math.inf])
def test_reward_without_a_lower_bound_is_refused(reward: Reward) -> None:
    with pytest.raises(ValueError, match="must be finite at accuracy 0"):
        lower_bound(reward, INPUT)


def test_callable_is_taken_as_it_is() -> None:
    assert get_reward(lambda x: x.accuracy - x.cost)(INPUT) == pytest.approx(-39.1)


def test_flops_reward_of_an_incompressible_network_is_finite() -> None:
    assert REWARDS["flops"](INPUT._replace(cost=20, cost_low=20, cost_high=20)) == 0.0


def test_unknown_reward_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown reward 'x'; valid: err, flops, amc_flops"):
        get_reward("x")
    with pytest.raises(TypeError, match="name or a callable, got int"):
        get_reward(3)  # type: ignore[arg-type]
