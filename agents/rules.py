"""Allocations by a rule, without a search, behind Stable-Baselines3's ``predict``.

The rules are those of `compress_env.allocation.rules`: an engineer would use them instead of a
search, and they cost seconds.
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

from agents.common.arguments import Range, checked
from agents.importance import GivenRates
from compress_env.allocation.rules import BIT_RULES, PRUNING_RULES
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.names import check_name

__all__ = [
    "BITS_IN_PORTFOLIO",
    "BIT_RULES",
    "IN_PORTFOLIO",
    "PRUNING_RULES",
    "RULES",
    "Portfolio",
    "Rule",
]

RULES = (*PRUNING_RULES, *BIT_RULES)
"""The names of all rules."""
IN_PORTFOLIO = ("l1", "l2", "batch_norm", "taylor", "fisher", "kl_curve")
"""Rules of pruning that a portfolio tries; `lamp` and rules by layer ruin most networks."""
BITS_IN_PORTFOLIO = ("relative_error", "hawq_v2", "fisher_bits")
"""Rules of quantization that it tries; `kl_bits` takes longest and was best nowhere."""


class Rule(GivenRates):
    """The values that a rule gives, each as closely as the layer's interval allows.

    See `compress_env.allocation.rules`. Where only channels go, and of bits, values are executed
    exactly.

    Args:
        env: a pruning or quantization environment with a budget; its unpruned network is looked at.
        name: one of `PRUNING_RULES` or `BIT_RULES`.

    Raises:
        TypeError: if ``env`` is of another stage than the rule.
        ValueError: if no rule has the name, the environment has no budget, a weight is not finite,
            or the network has no derivatives that the rule needs.
        FloatingPointError: if a gradient, an answer or a score is not finite.
    """

    values: NDArray[np.float64]
    """(T,) pruning rates or bits, one for each decision."""
    n_evaluations: int
    """Networks scored to arrive at the values."""
    n_probes: int
    """Networks run on training images alone to arrive at the values."""
    seconds: float
    """Wall-clock time of that."""

    def __init__(self, env: gym.Env[Any, Any], name: str) -> None:
        """Apply the rule."""
        start = perf_counter()
        check_name("rule", name, RULES)
        stage = _stage_of(env.unwrapped, name)
        found = stage.apply_rule(name)
        self.n_evaluations, self.n_probes = found.n_evaluations, found.n_probes
        self.values = np.array(found.values)
        super().__init__(self.values / stage.value_scale, stage)
        self.seconds = perf_counter() - start


class Portfolio(GivenRates):
    """The best of the rules, and of the same value everywhere, by the reward of an episode each.

    Ties go to accuracy, then to the first. Rules that this network has no use for (batch norms it
    does not have, derivatives that cannot be had) are left out, and so is `kl_curve` where single
    elements go, each of whose probes trains.

    Args:
        env: a pruning or quantization environment with a budget, whose episode ends.
        n_orders: episodes of each rule, whose mean counts, where ``env`` draws a new order of
            minibatches for every episode (``transition_noise``). All rules are tried under the same
            orders, drawn from ``env``. Otherwise there is one order, and one episode.

    Raises:
        TypeError: if ``env`` is of neither stage.
        ValueError: if the environment has no budget, or ``n_orders`` is below 1.
        RuntimeError: if every episode fails.
    """

    choice: str
    """The name of the rule that is best; `uniform` for the same value everywhere."""
    rewards: dict[str, float]
    """Sum of the rewards of each that was tried, by name; the mean over orders."""
    n_evaluations: int
    """Networks scored to arrive at the values."""
    n_probes: int
    """Networks run on training images alone to arrive at the values."""
    seconds: float
    """Wall-clock time of that."""

    def __init__(self, env: gym.Env[Any, Any], *, n_orders: int = 1) -> None:
        """Try the rules."""
        start, stage = perf_counter(), env.unwrapped
        n_orders = checked("n_orders", n_orders, Range(1, is_whole=True))
        if not isinstance(stage, PruningEnv | QuantizationEnv):
            raise TypeError(f"expected a PruningEnv or a QuantizationEnv, got {type(env).__name__}")
        rules = _rules(stage, _names_for(stage))
        tried = {"uniform": GivenRates(_uniform(stage), stage)} | rules
        orders = _orders(stage, n_orders)
        results = {name: _mean_of(stage, policy, orders) for name, policy in tried.items()}
        self.rewards = {name: reward for name, (reward, _) in results.items()}
        self.choice = max(results, key=lambda name: results[name])
        if results[self.choice] == FAILED:
            raise RuntimeError("expected an episode that ends, got none")
        super().__init__(tried[self.choice].rates, stage)
        per_episode = len(stage.walk) if stage.reward_at == "layer" else 1
        n_before = sum(rule.n_evaluations for rule in rules.values())
        self.n_evaluations = n_before + per_episode * len(orders) * len(tried)
        self.n_probes = sum(rule.n_probes for rule in rules.values())
        self.seconds = perf_counter() - start


FAILED = (-math.inf, -math.inf)
"""Reward and accuracy of an episode that has failed."""
Options = dict[str, Any] | None
"""What `reset` is given."""


def _uniform(env: PruningEnv | QuantizationEnv) -> NDArray[np.float64]:
    return np.full(len(env.walk), env.uniform_value() / env.value_scale)


def _names_for(env: PruningEnv | QuantizationEnv) -> Sequence[str]:
    """Return the rules that are worth a try."""
    if isinstance(env, QuantizationEnv):
        return BITS_IN_PORTFOLIO
    return [n for n in IN_PORTFOLIO if n != "kl_curve" or not env.plan.removes_elements]


def _rules(env: PruningEnv | QuantizationEnv, names: Sequence[str]) -> dict[str, Rule]:
    """Return the rules that an environment's network has a use for."""
    found = {}
    for name in names:
        with suppress(FloatingPointError, ValueError):
            found[name] = Rule(env, name)
    if not found:
        Rule(env, names[0])  # which says why
    return found


def _orders(env: PruningEnv | QuantizationEnv, n_orders: int) -> list[Options]:
    """Return what `reset` is given, so that all rules meet the same orders of minibatches."""
    if not env.transition_noise:
        return [None]
    return [{"noise_seed": int(env.np_random.integers(2**31))} for _ in range(n_orders)]


def _mean_of(
    env: PruningEnv | QuantizationEnv, policy: GivenRates, orders: Sequence[Options]
) -> tuple[float, float]:
    """Return the mean sum of rewards of an episode under each order, and its mean accuracy."""
    results = [_play(env, policy, order) for order in orders]
    if FAILED in results:
        return FAILED
    rewards, accuracies = zip(*results, strict=True)
    return float(np.mean(rewards)), float(np.mean(accuracies))


def _play(
    env: PruningEnv | QuantizationEnv, policy: GivenRates, order: Options
) -> tuple[float, float]:
    """Return the sum of rewards of an episode, and its accuracy."""
    observation, info = env.reset(options=order)
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
