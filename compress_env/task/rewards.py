"""Rewards: pure functions of what a compressed network scores and costs, in a dict by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from typing import NamedTuple

__all__ = ["REWARDS", "Reward", "RewardInput", "get_reward", "lower_bound"]


class RewardInput(NamedTuple):
    """What a reward may depend on.

    Attributes:
        accuracy: Validation accuracy, a fraction in [0, 1].
        cost: Live cost F: dense MACs per image when pruning, bytes when quantizing.
        cost_low: F with every layer at its extreme.
        cost_high: F of the network before compression.
        macs: Dense multiply-accumulates per image of the live network.
        params: Stored parameters of the live network.
    """

    accuracy: float
    cost: float
    cost_low: float
    cost_high: float
    macs: int
    params: int


Reward = Callable[[RewardInput], float]
"""A reward: any callable of a `RewardInput`; larger is better."""


def err(x: RewardInput) -> float:
    """R_err = -(1 - accuracy), in [-1, 0] (arXiv 1912.02254)."""
    return -(1.0 - x.accuracy)


def flops(x: RewardInput) -> float:
    """R_FLOPs = accuracy * (F_high - F) / (F_high - F_low), in [0, 1] (arXiv 1912.02254).

    F_high and F_low are exact bounds of the cost model (ours); the paper has the highest and
    lowest FLOPs in observation.
    """
    return x.accuracy * (x.cost_high - x.cost) / max(x.cost_high - x.cost_low, 1.0)


def amc_flops(x: RewardInput) -> float:
    """R = -(1 - accuracy) * ln(MACs) (AMC, arXiv 1802.03494, section 3.4)."""
    return -(1.0 - x.accuracy) * math.log(x.macs)


def amc_params(x: RewardInput) -> float:
    """R = -(1 - accuracy) * ln(parameters) (AMC, arXiv 1802.03494, section 3.4)."""
    return -(1.0 - x.accuracy) * math.log(x.params)


REWARDS: dict[str, Reward] = {
    "err": err,
    "flops": flops,
    "amc_flops": amc_flops,
    "amc_params": amc_params,
}
"""Rewards by name."""


def get_reward(reward: str | Reward) -> Reward:
    """Return a reward by name, or the callable itself.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If `reward` is neither a name nor a callable.
    """
    if callable(reward):
        return reward
    if not isinstance(reward, str):
        raise TypeError(f"reward must be a name or a callable, got {type(reward).__name__}")
    if reward not in REWARDS:
        raise ValueError(f"unknown reward {reward!r}; valid: {', '.join(REWARDS)}")
    return REWARDS[reward]


def lower_bound(reward: Reward, unpruned: RewardInput) -> float:
    """Reward of a failed step: the lowest that a step could have earned **(ours)**.

    It is looked for where no image is right and nothing is saved, which is the lowest place of
    every named reward, and at some other accuracies and costs, for callables that fall elsewhere.

    Raises:
        ValueError: If the reward is not finite at the former.
    """
    try:
        bound = float(reward(unpruned._replace(accuracy=0.0, cost=unpruned.cost_high)))
    except (ArithmeticError, ValueError) as error:
        raise ValueError(f"the reward must be finite at accuracy 0: {error}") from None
    if not math.isfinite(bound):
        raise ValueError(f"the reward must be finite at accuracy 0, got {bound}")
    return min([bound, *_finite_values(reward, _other_places(unpruned))])


def _other_places(unpruned: RewardInput) -> Iterator[RewardInput]:
    """Yield inputs from the whole range of accuracies and costs."""
    low, high = unpruned.cost_low, unpruned.cost_high
    least = low / high
    costs = {low, (low + high) / 2.0, high, unpruned.cost}
    macs = {unpruned.macs, max(1, int(least * unpruned.macs))}
    params = {unpruned.params, max(1, int(least * unpruned.params))}
    for accuracy, cost, *counts in product((0.0, 0.5, 1.0), costs, macs, params):
        yield RewardInput(accuracy, cost, low, high, *map(int, counts))


def _finite_values(reward: Reward, places: Iterator[RewardInput]) -> Iterator[float]:
    for place in places:
        with suppress(ArithmeticError, LookupError, ValueError):
            value = float(reward(place))
            if math.isfinite(value):
                yield value
