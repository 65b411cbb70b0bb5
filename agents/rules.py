"""Allocations by a rule, without a search, behind Stable-Baselines3's ``predict``.

The rules are those of `compress_env.allocation` that look at no score: an engineer would use them
instead of a search, and they cost seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from agents.importance import GivenRates
from compress_env.allocation import channel_norms, choose_least, rank_channels, relative_errors
from compress_env.allocation.saliency import Norm
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import SCALES, QuantizationEnv
from compress_env.names import check_name
from compress_env.quantization.fake_quant import MAX_BITS
from compress_env.task.layers import layer_at

__all__ = ["BIT_RULES", "PRUNING_RULES", "RULES", "Rule"]


def _by_norm(norm: Norm, env: PruningEnv) -> list[float]:
    scores = channel_norms(env.task.model, env.plan.decisions, norm)
    return rank_channels(scores, env.plan, env.budgets)


def _by_relative_error(env: QuantizationEnv) -> list[float]:
    bits = list(range(env.min_bits, MAX_BITS + 1))
    weights = [layer_at(env.task.model, layer.name).weight for layer in env.walk]
    losses = relative_errors(weights, bits, SCALES[env.scales])
    fewest, n_layers = env.most_bytes([]), len(env.walk)
    # What a layer takes beyond its fewest bits is its own: the bytes of a file are a sum.
    costs = np.array(
        [[env.most_bytes([env.min_bits] * t + [n]) - fewest for n in bits] for t in range(n_layers)]
    )
    chosen = choose_least(losses, costs, env.budget_bytes - fewest)
    return [float(bits[k]) for k in chosen]


PRUNING_RULES: dict[str, Callable[[PruningEnv], list[float]]] = {
    "l1": partial(_by_norm, "l1"),
    "l2": partial(_by_norm, "l2"),
    "batch_norm": partial(_by_norm, "batch_norm"),
    "lamp": partial(_by_norm, "lamp"),
}
"""Rules that choose pruning rates, by name: one threshold over the norms of all channels."""
BIT_RULES: dict[str, Callable[[QuantizationEnv], list[float]]] = {
    "relative_error": _by_relative_error,
}
"""Rules that choose bits, by name."""
RULES = (*PRUNING_RULES, *BIT_RULES)
"""The names of all rules."""


class Rule(GivenRates):
    """The values that a rule gives, each as closely as the layer's interval allows.

    See `compress_env.allocation`: `rank_channels` of `channel_norms`, and `choose_least` of
    `relative_errors`. Where only channels go, and of bits, they are executed exactly.

    Args:
        env: a pruning or quantization environment with a budget; its unpruned network is looked at.
        name: one of `PRUNING_RULES` or `BIT_RULES`.

    Raises:
        TypeError: if ``env`` is of another stage than the rule.
        ValueError: if no rule has the name, the environment has no budget, or a weight is not
            finite.
    """

    values: NDArray[np.float64]
    """(T,) pruning rates or bits, one for each decision."""
    n_evaluations = 0
    """Networks scored to arrive at the values."""
    seconds: float
    """Wall-clock time of that."""

    def __init__(self, env: gym.Env[Any, Any], name: str) -> None:
        """Apply the rule."""
        start = perf_counter()
        check_name("rule", name, RULES)
        self.values = np.array(_apply(env.unwrapped, name))
        is_pruning = isinstance(env.unwrapped, PruningEnv)
        super().__init__(self.values if is_pruning else self.values / MAX_BITS)
        self.seconds = perf_counter() - start


def _apply(env: gym.Env[Any, Any], name: str) -> list[float]:
    if name in PRUNING_RULES:
        if not isinstance(env, PruningEnv):
            raise TypeError(f"{name} chooses pruning rates, got a {type(env).__name__}")
        if not env.budgets:
            raise ValueError("expected an environment with a budget, got none")
        return PRUNING_RULES[name](env)
    if not isinstance(env, QuantizationEnv):
        raise TypeError(f"{name} chooses bits, got a {type(env).__name__}")
    if env.budget_bytes == float("inf"):
        raise ValueError("expected an environment with a budget, got none")
    return BIT_RULES[name](env)
