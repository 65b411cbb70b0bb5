"""Agents that prune by the importance of layers, behind Stable-Baselines3's ``predict``.

They look at the network once, when they are built, and then give each layer the rate that its score
leads to. Which channels of a layer go is up to the environment (`method`).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from agents.baselines import actions_for, asked_for_actions, place_in_walk
from agents.common.arguments import SEED, checked, in_a_line
from compress_env.allocation import afie, allocate, allocate_in_rounds, sensitivity
from compress_env.envs.base import LayerState
from compress_env.envs.pruning import PruningEnv
from compress_env.pruning.cost import Unit

__all__ = ["AFIE", "SBPF", "GivenRates"]

INDEX = LayerState._fields.index("index")
LOW, HIGH = LayerState._fields.index("action_low"), LayerState._fields.index("action_high")
Observations = NDArray[Any] | dict[str, NDArray[Any]]
_logger = logging.getLogger(__name__)


class GivenRates:
    """One given rate for each decision, as closely as the layer's interval allows.

    Args:
        rates: (T,) pruning rates in [0, 1], in the order of the walk.
        env: that is acted on; needed if its `prior` is not ``"middle"``, see `agents.Uniform`.

    Raises:
        ValueError: if a rate is outside [0, 1], or there is none.
    """

    def __init__(self, rates: NDArray[np.float64], env: gym.Env[Any, Any] | None = None) -> None:
        """Check and keep the rates."""
        self._asked = asked_for_actions(env)
        self.rates = np.array(rates, np.float64)
        is_valid = (self.rates >= 0.0) & (self.rates <= 1.0)
        if self.rates.ndim != 1 or self.rates.size == 0 or not is_valid.all():
            raise ValueError(f"expected rates in [0, 1], at least one, got {in_a_line(rates)}")

    def predict(
        self,
        observation: Observations,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], tuple[NDArray[Any], ...] | None]:
        """Return the action that stands for the rate of the layer about to be decided.

        Args:
            observation: (9,), a `LayerState`, or a batch (n, 9).
            state: handed back.
            episode_start: not used.
            deterministic: not used: the policy is deterministic.

        Returns:
            Actions in [-1, 1], float32, (1,) or (n, 1), and ``state``.

        Raises:
            ValueError: if the observation has another shape, is a dict, or is none of this walk, or
                is not the present one of an environment with a prior.
        """
        actions_for(0.0, observation, LOW, HIGH)  # which says what is wrong
        place = place_in_walk(np.asarray(observation)[..., INDEX], len(self.rates))
        return actions_for(self.rates[place], observation, LOW, HIGH, self._asked), state


class AFIE(GivenRates):
    """Rates by the entropy of each layer's weights (Lu et al., arXiv 2208.06660).

    No image is looked at. See `compress_env.allocation.scores.afie` and `allocate`.

    Args:
        env: a pruning environment; its unpruned network is scored.
        target: fraction to be removed; when None, what the environment's budgets ask for.
        unit: what the target counts; that of the environment's budget when None.

    Raises:
        TypeError: if ``env`` is no pruning environment.
        ValueError: if there is neither a target nor a budget, or the target cannot be met.
    """

    scores: pd.DataFrame
    """What the scores come from: one row per layer."""
    table: pd.DataFrame
    """What the rates come from: one row per decision."""
    n_evaluations = 0
    """Networks scored to arrive at the rates."""
    seconds: float
    """Wall-clock time of that."""

    def __init__(
        self, env: gym.Env[Any, Any], target: float | None = None, unit: Unit | None = None
    ) -> None:
        """Score the layers and allocate the rates."""
        start = perf_counter()
        pruning = _pruning_env(env)
        targets = _targets_of(pruning, target, unit)
        self.scores = afie(pruning.task.model)
        self.table = allocate(self.scores["afie"], targets, plan=pruning.plan)
        super().__init__(self.table["pruning_rate"].to_numpy(), pruning)
        self.seconds = perf_counter() - start


class SBPF(GivenRates):
    """Rates by each layer's sensitivity to damage (Lu et al., arXiv 2208.04588).

    Scores are those of the environment's task: validation accuracy, or what its scorer says. With
    several rounds the pruned and fine-tuned networks that later rounds measure come from episodes
    of ``env``, each from the unpruned network at the rates so far **(ours)**; reset it afterwards.
    See `compress_env.allocation.scores.sensitivity` and `allocate_in_rounds`.

    Args:
        env: a pruning environment.
        target: fraction to be removed; when None, what the environment's budgets ask for.
        unit: what the target counts; that of the environment's budget when None.
        damage: standard deviation of the noise in those of a layer's weights.
        n_trials: trials for each layer and round.
        n_rounds: rounds of measuring, pruning a share and fine-tuning.
        seed: of the noise.

    Raises:
        TypeError: if ``env`` is no pruning environment.
        ValueError: if there is neither a target nor a budget, the target cannot be met, or another
            argument is out of range.
        FloatingPointError: if a score is not finite.
        RuntimeError: if an episode between two rounds fails.
    """

    scores: pd.DataFrame
    """What the scores of the last round come from: one row per layer."""
    table: pd.DataFrame
    """What the rates come from: one row per decision."""
    n_evaluations: int
    """Networks scored to arrive at the rates."""
    seconds: float
    """Wall-clock time of that."""

    def __init__(
        self,
        env: gym.Env[Any, Any],
        target: float | None = None,
        unit: Unit | None = None,
        *,
        damage: float = 1.0,
        n_trials: int = 5,
        n_rounds: int = 1,
        seed: int = 0,
    ) -> None:
        """Damage the layers, score the network and allocate the rates."""
        start = perf_counter()
        seed = checked("seed", seed, replace(SEED, may_be_none=False))
        pruning = _pruning_env(env)
        targets = _targets_of(pruning, target, unit)
        layers = list(dict.fromkeys(name for each in pruning.plan.producers for name in each))
        self.n_evaluations = 0

        def measure(model: nn.Module) -> pd.Series:
            settings: dict[str, Any] = {"damage": damage, "n_trials": n_trials, "seed": seed}
            self.scores = sensitivity(model, pruning.task.score, layers=layers, **settings)
            self.n_evaluations += 1 + len(layers) * n_trials
            found: pd.Series = self.scores["sensitivity"]
            if not found.any():
                _logger.warning("no layer is sensitive to damage: all get the same rate")
            return found

        def prune(rates: list[float]) -> nn.Module:
            network, n_evaluations = _play(pruning, rates)
            self.n_evaluations += n_evaluations
            return network

        self.table = allocate_in_rounds(
            pruning.task.model,
            measure,
            prune,
            targets,
            plan=pruning.plan,
            n_rounds=n_rounds,
        )
        super().__init__(self.table["pruning_rate"].to_numpy(), pruning)
        self.seconds = perf_counter() - start


def _pruning_env(env: gym.Env[Any, Any]) -> PruningEnv:
    pruning = env.unwrapped
    if not isinstance(pruning, PruningEnv):
        raise TypeError(f"expected a PruningEnv, got {type(pruning).__name__}")
    return pruning


def _targets_of(env: PruningEnv, target: float | None, unit: Unit | None) -> dict[Unit, float]:
    if target is not None:
        return {unit or env.budget_unit: target}
    if not env.budgets:
        raise ValueError("expected a target, as the environment has no budget, got none")
    if unit is not None and unit not in env.budgets:
        raise ValueError(
            f"the environment's budget counts {', '.join(env.budgets)}, got unit={unit!r}"
        )
    return {each: 1.0 - limit / env.plan.full(each) for each, limit in env.budgets.items()}


def _play(env: PruningEnv, rates: list[float]) -> tuple[nn.Module, int]:
    """Return the network that an episode at given rates ends with, and what it has evaluated."""
    policy = GivenRates(np.asarray(rates), env)
    observation, info = env.reset()
    n_before = info["n_evaluations"]
    for layer in env.walk:
        action, _ = policy.predict(observation)
        observation, _, _, _, info = env.step(action)
        if "error" in info:
            raise RuntimeError(f"pruning {layer.name!r} failed: {info['error']}")
    return env.compressed_model(), info["n_evaluations"] - n_before
