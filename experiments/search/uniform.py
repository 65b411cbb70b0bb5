"""The same value for every layer, solved on the cost that a network comes to."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter

from agents import Uniform
from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.pruning import PruningEnv

__all__ = ["uniform_policy"]

N_EPISODES = 8
CLOSE = 0.005
"""Part of the budget that may stay unused."""


def uniform_policy(
    env: LayerwiseCompressionEnv, spend: Callable[[int, float], object] = lambda n, seconds: None
) -> Uniform:
    """Return the policy that gives every layer the same value and uses the budget.

    Where single weights go, how many of them go with the channels of other layers is known only
    once it is done: the rate that meets the budget on paper leaves some of it unused, which a
    search would use. Up to `N_EPISODES` episodes find a lower rate that meets it too; their
    accuracies are not looked at.

    Args:
        env: The environment, whose episode ends.
        spend: Told how many evaluations and seconds that has taken.
    """
    start = perf_counter()
    value = env.uniform_value()
    if isinstance(env, PruningEnv) and _is_bound(env):
        value = _realised_rate(env, value)
        spend(0, perf_counter() - start)
    return Uniform(value / env.value_scale, env=env)


def _is_bound(env: PruningEnv) -> bool:
    """Tell whether the planned cost is a bound on the cost that it comes to, not the cost."""
    counts_weights = env.macs == "sparse" and env.plan.removes_elements
    return counts_weights and env.budget_unit == "macs" and math.isfinite(env.budget)


def _realised_rate(env: PruningEnv, planned: float) -> float:
    low, high = 0.0, planned
    for _ in range(N_EPISODES):
        middle = (low + high) / 2
        cost = _cost_of(env, middle)
        low, high = (low, middle) if cost <= env.budget else (middle, high)
        if (1.0 - CLOSE) * env.budget <= cost <= env.budget:
            break
    return high


def _cost_of(env: PruningEnv, rate: float) -> float:
    """Return what one rate for every layer costs; infinite if later layers must give more."""
    policy, ended = Uniform(rate, env=env), False
    observation, info = env.reset()
    while not ended:
        if observation[policy.low_index] > rate + 1e-6:
            return math.inf
        action, _ = policy.predict(observation)
        observation, _, ended, _, info = env.step(action)
    return math.inf if "error" in info else float(info["reward_terms"].get("cost", math.inf))
