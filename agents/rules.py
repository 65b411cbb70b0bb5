"""Allocations by a rule, without a search, behind Stable-Baselines3's ``predict``.

The rules are those of `compress_env.allocation` that look at no score: an engineer would use them
instead of a search, and they cost seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from agents.importance import GivenRates
from compress_env.allocation.rules import BIT_RULES, PRUNING_RULES
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.names import check_name

__all__ = ["BIT_RULES", "IN_PORTFOLIO", "PRUNING_RULES", "RULES", "Portfolio", "Rule"]

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
        stage = _stage_of(env.unwrapped, name)
        self.values = np.array(stage.allocate(name))
        super().__init__(self.values / stage.value_scale, stage)
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
        tried = {"uniform": GivenRates(_uniform(stage), stage)} | _rules(stage, names)
        results = {name: _play(stage, policy) for name, policy in tried.items()}
        self.rewards = {name: reward for name, (reward, _) in results.items()}
        self.choice = max(results, key=lambda name: results[name])
        if results[self.choice] == FAILED:
            raise RuntimeError("expected an episode that ends, got none")
        super().__init__(tried[self.choice].rates, stage)
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


def _stage_of(env: gym.Env[Any, Any], rule: str) -> PruningEnv | QuantizationEnv:
    """Return the environment, if it is of the stage that a rule is for."""
    if rule in PRUNING_RULES:
        if not isinstance(env, PruningEnv):
            raise TypeError(f"{rule} chooses pruning rates, got a {type(env).__name__}")
        return env
    if not isinstance(env, QuantizationEnv):
        raise TypeError(f"{rule} chooses bits, got a {type(env).__name__}")
    return env
