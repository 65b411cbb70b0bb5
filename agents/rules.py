"""Allocations by a rule, without a search, behind Stable-Baselines3's ``predict``.

The rules are those of `compress_env.allocation` that look at no score: an engineer would use them
instead of a search, and they cost seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from agents.importance import GivenRates
from compress_env.allocation import (
    channel_norms,
    choose_least,
    fisher_scores,
    gate_gradients,
    rank_channels,
    rank_per_cost,
    relative_errors,
    taylor_scores,
)
from compress_env.allocation.saliency import Norm, by_mean
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import SCALES, QuantizationEnv
from compress_env.names import check_name
from compress_env.pruning.graph.surgery import Decision
from compress_env.quantization.fake_quant import MAX_BITS
from compress_env.seeding import derive_generator
from compress_env.task.layers import layer_at

__all__ = ["BIT_RULES", "IN_PORTFOLIO", "PRUNING_RULES", "RULES", "Portfolio", "Rule"]

N_IMAGES = 256
"""Training images whose gradients rules look at, drawn by the seed of the task."""


def _by_norm(norm: Norm, env: PruningEnv) -> list[float]:
    scores = channel_norms(env.task.model, env.plan.decisions, norm)
    return rank_channels(scores, env.plan, env.budgets)


def _by_fisher(env: PruningEnv) -> list[float]:
    return rank_per_cost(fisher_scores(_gradients(env)), env.plan, env.budgets)


def _by_taylor(env: PruningEnv) -> list[float]:
    scores = taylor_scores(_gradients(env))
    by_group = [
        np.concatenate([by_mean(part) for part in np.split(each, _group_ends(decision))])
        for each, decision in zip(scores, env.plan.decisions, strict=True)
    ]
    return rank_channels(by_group, env.plan, env.budgets)


def _group_ends(decision: Decision) -> NDArray[np.int64]:
    """Return where one group of a decision ends and the next begins."""
    ends: NDArray[np.int64] = np.cumsum([group.n_channels for group in decision.groups])[:-1]
    return ends


def _gradients(env: PruningEnv) -> list[NDArray[np.float64]]:
    n_batches = -(-N_IMAGES // env.task.config.batch_size)
    batches = env.task.train_batches(n_batches, derive_generator(env.task_seed, 0, 4))
    return gate_gradients(env.task.model, env.plan.decisions, batches, N_IMAGES)


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
    "taylor": _by_taylor,
    "fisher": _by_fisher,
}
"""Rules that choose pruning rates, by name: one threshold over the norms, or the first-order Taylor
scores, of all channels; or the Fisher information of a channel's gate for what it costs."""
BIT_RULES: dict[str, Callable[[QuantizationEnv], list[float]]] = {
    "relative_error": _by_relative_error,
}
"""Rules that choose bits, by name."""
RULES = (*PRUNING_RULES, *BIT_RULES)
"""The names of all rules."""
IN_PORTFOLIO = ("l1", "l2", "batch_norm", "taylor", "fisher")
"""Rules of pruning that a portfolio tries; `lamp` ruins most networks."""


class Rule(GivenRates):
    """The values that a rule gives, each as closely as the layer's interval allows.

    See `compress_env.allocation`: `rank_channels` of `channel_norms` or `taylor_scores`,
    `rank_per_cost` of `fisher_scores`, and `choose_least` of `relative_errors`. Where only channels
    go, and of bits, values are executed exactly.

    Args:
        env: a pruning or quantization environment with a budget; its unpruned network is looked at.
        name: one of `PRUNING_RULES` or `BIT_RULES`.

    Raises:
        TypeError: if ``env`` is of another stage than the rule.
        ValueError: if no rule has the name, the environment has no budget, or a weight is not
            finite.
        FloatingPointError: if a gradient is not finite.
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


class Portfolio(GivenRates):
    """The best of the rules, and of the same value everywhere, by the reward of one episode each.

    Ties go to accuracy, then to the first. Rules that this network has no use for (batch norms it
    does not have, parameters without gradients) are left out.

    Args:
        env: a pruning or quantization environment with a budget, whose episode ends.

    Raises:
        TypeError: if ``env`` is of neither stage.
        ValueError: if the environment has no budget.
        RuntimeError: if every episode fails.
    """

    choice: str
    """The name of the rule that is best; `uniform` for the same value everywhere."""
    rewards: dict[str, float]
    """Sum of the rewards of each that was tried, by name."""
    n_evaluations: int
    """Networks scored to arrive at the values."""
    seconds: float
    """Wall-clock time of that."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Try the rules."""
        start, stage = perf_counter(), env.unwrapped
        if not isinstance(stage, PruningEnv | QuantizationEnv):
            raise TypeError(f"expected a PruningEnv or a QuantizationEnv, got {type(env).__name__}")
        names = IN_PORTFOLIO if isinstance(stage, PruningEnv) else tuple(BIT_RULES)
        tried = {"uniform": GivenRates(_uniform(stage))} | _rules(stage, names)
        results = {name: _play(stage, policy) for name, policy in tried.items()}
        self.rewards = {name: reward for name, (reward, _) in results.items()}
        self.choice = max(results, key=lambda name: results[name])
        if results[self.choice] == FAILED:
            raise RuntimeError("expected an episode that ends, got none")
        super().__init__(tried[self.choice].rates)
        per_episode = len(stage.walk) if stage.reward_at == "layer" else 1
        self.n_evaluations = per_episode * len(tried)
        self.seconds = perf_counter() - start


FAILED = (-math.inf, -math.inf)
"""Reward and accuracy of an episode that has failed."""


def _uniform(env: PruningEnv | QuantizationEnv) -> NDArray[np.float64]:
    return np.full(len(env.walk), env.uniform_value() / env.value_scale)


def _rules(env: PruningEnv | QuantizationEnv, names: Sequence[str]) -> dict[str, Rule]:
    """Return the rules that an environment's network has a use for."""
    found = {}
    for name in names:
        with suppress(FloatingPointError, ValueError):
            found[name] = Rule(env, name)
    if not found:
        Rule(env, names[0])  # which says why
    return found


def _play(env: PruningEnv | QuantizationEnv, policy: GivenRates) -> tuple[float, float]:
    """Return the sum of rewards of an episode, and its accuracy."""
    observation, info = env.reset()
    reward, ended = 0.0, False
    while not ended:
        action, _ = policy.predict(observation)
        observation, _, ended, _, info = env.step(action)
        reward += info["reward_terms"]["reward"]
    return FAILED if "error" in info else (reward, float(info["accuracy"]))


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
