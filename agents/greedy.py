"""Greedy compression by what each layer costs on its own, behind Stable-Baselines3's ``predict``.

Shape legend: T decisions, K levels of compression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from agents.common.arguments import Range, checked
from agents.importance import GivenRates
from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.quantization.fake_quant import MAX_BITS

__all__ = ["Greedy", "choose_levels"]


class Greedy(GivenRates):
    """The cheapest accuracy first, as told by a one-layer sensitivity profile **(ours)**.

    First the profile is measured: the accuracy lost when one layer alone is compressed to one of K
    levels, everything else as it is and nothing fine-tuned (`compress_layer`). Levels are pruning
    rates from 0 to the highest in equal steps, or bits from 8 down. Then, starting from the first
    level everywhere, that step of one layer is taken which loses the least accuracy for each MAC,
    filter or byte that it saves, until the budget is met; see `choose_levels`. In an episode each
    layer gets its level, as closely as its interval allows.

    Losses of layers are taken to add up, which they do not quite: that is what a search can win.

    Args:
        env: an environment with a budget, of either stage; its unpruned network is measured.
        n_levels: K of pruning rates, at least 2.

    Raises:
        TypeError: if ``env`` is neither a pruning nor a quantization environment.
        ValueError: if the environment has no budget, or ``n_levels`` is too low.
        FloatingPointError: if a score is not finite.
    """

    profile: NDArray[np.float64]
    """(T, K) accuracy lost by each layer at each level; 0 at the first."""
    levels: NDArray[np.float64]
    """(K,) pruning rates, ascending, or bits, descending."""
    n_evaluations: int
    """Networks scored to arrive at the values: 1 + T (K - 1)."""
    seconds: float
    """Wall-clock time of that."""

    def __init__(self, env: gym.Env[Any, Any], *, n_levels: int = 10) -> None:
        """Measure the profile and choose the values."""
        start = perf_counter()
        n_levels = checked("n_levels", n_levels, Range(2, is_whole=True))
        stage = env.unwrapped
        self.levels, cost, budget = _stage_of(stage, n_levels)
        assert isinstance(stage, LayerwiseCompressionEnv)
        if budget == float("inf"):
            raise ValueError("expected an environment with a budget, got none")
        self.profile = _measure(stage, self.levels)
        self.n_evaluations = 1 + self.profile[:, 1:].size
        chosen = choose_levels(self.profile, lambda at: cost(self.levels[list(at)]), budget)
        super().__init__(self.levels[chosen] / stage.value_scale, stage)
        self.seconds = perf_counter() - start


def choose_levels(
    profile: NDArray[np.float64], cost: Callable[[Sequence[int]], float], budget: float
) -> list[int]:
    """Return the level of each layer, found by the steps with the least loss for what they save.

    A step takes one layer from its level to any later one. Of those that save something the one
    with the smallest loss / saving is taken, the larger saving first among equals, then the earlier
    layer. A level that loses less than one before it counts as losing as much.

    Args:
        profile: (T, K) accuracy lost by each layer at each level.
        cost: What the network costs with the given level of each layer.
        budget: The most that it may cost.

    Raises:
        ValueError: If no step saves anything and the budget is not met.
    """
    lost = np.maximum.accumulate(np.maximum(profile, 0.0), axis=1)
    chosen = [0] * len(lost)
    while (now := cost(chosen)) > budget:
        steps = []
        for t, level in enumerate(chosen):
            for later in range(level + 1, lost.shape[1]):
                saved = now - cost([*chosen[:t], later, *chosen[t + 1 :]])
                if saved > 0:
                    loss = lost[t, later] - lost[t, level]
                    steps.append((loss / saved, -saved, t, later))
        if not steps:
            raise ValueError(f"the budget must be at least {now:g} at these levels, got {budget:g}")
        _, _, t, later = min(steps)
        chosen[t] = later
    return chosen


def _stage_of(
    env: gym.Env[Any, Any], n_levels: int
) -> tuple[NDArray[np.float64], Callable[[NDArray[np.float64]], float], float]:
    """Return the levels of a stage, what values cost in it, and its budget."""
    if isinstance(env, PruningEnv):
        plan, budgets = env.plan, env.budgets
        rates = np.linspace(0.0, plan.max_pruning_rate, n_levels)
        if len(budgets) > 1:  # the one that is exceeded most is to be met first
            return rates, lambda values: plan.worst(values.tolist(), budgets), 1.0
        return rates, lambda values: plan.count(values.tolist(), env.budget_unit), env.budget
    if isinstance(env, QuantizationEnv):
        most_bytes = env.most_bytes
        bits = np.arange(MAX_BITS, env.min_bits - 1, -1, dtype=np.float64)
        return bits, lambda values: most_bytes([int(b) for b in values]), env.budget_bytes
    raise TypeError(f"expected a PruningEnv or a QuantizationEnv, got {type(env).__name__}")


def _measure(env: LayerwiseCompressionEnv, levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the accuracy that each layer alone loses at each level, (T, K)."""
    whole = env.task.score(env.task.model)
    return np.array(
        [
            [0.0, *(whole - env.task.score(env.compress_layer(t, value)) for value in levels[1:])]
            for t in range(len(env.walk))
        ]
    )
