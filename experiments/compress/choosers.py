"""Who chooses rates and bits in the main job, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor
from torch import nn

from agents import CMAES, Portfolio, Random
from agents.common.schedules import RolloutSchedule
from agents.importance import GivenRates
from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.pruning import PruningEnv
from experiments.compress.config import MIXED_BITS, Config
from experiments.search.algorithms import make_learner, make_single
from experiments.search.entrants import BITS_ONLY, PRUNING_ONLY, agent_of
from experiments.search.episodes import EpisodeLog
from experiments.search.hyperparameters import INFORMED, stored_settings
from experiments.search.playing import play

__all__ = ["AroundRule", "check_decisions", "make_agent", "make_policy"]

SPREAD: float = INFORMED["cma_es"]["sigma0"]
"""Standard deviation of the first points of CMA-ES around what the best rule does, as around a
rule."""


class AroundRule(Random):
    """Random search around what the best rule does, which is its first episode."""

    def __init__(self, log: EpisodeLog, start: float, seed: int) -> None:
        """Draw actions about `start`, in [-1, 1].

        Args:
            log: The environments, of one decision each; tells whether an episode has ended.
            start: The rule's action.
            seed: Of what is drawn.
        """
        super().__init__(log.observation_space, log.action_space, seed, SPREAD)
        self._log, self._start = log, start

    def predict(self, *args: Any, **others: Any) -> tuple[NDArray[Any], Any]:
        """Return the rule's action until an episode has ended, then actions around it."""
        drawn, state = super().predict(*args, **others)
        moved = drawn if self._log.episodes else np.zeros_like(drawn)
        return np.clip(self._start + moved, -1.0, 1.0).astype(drawn.dtype), state


def check_decisions(config: Config, numbers: Mapping[str, int]) -> None:
    """Check that CMA-ES has several decisions to make where somebody has asked for it.

    Args:
        config: The settings.
        numbers: Decisions of an episode, by stage.

    Raises:
        ValueError: If it has one.
    """
    if config.policy is not None or agent_of(config.algo or "") != "cma_es":
        return
    for stage, n_decisions in numbers.items():
        if n_decisions == 1:
            raise ValueError(
                f"CMA-ES takes at least 2 dimensions, got 1, the only decision of {stage}; random "
                "and tpe search one"
            )


def make_policy(
    name: str, env: LayerwiseCompressionEnv, log: EpisodeLog, seed: int
) -> PolicyPredictor:
    """Return an agent of one episode; what it knows nothing of is left to `Uniform`.

    Args:
        name: Its name, one of `experiments.search.entrants.SINGLE`, or `MIXED_BITS`.
        env: The environment.
        log: Told of the evaluations and the time that choosing takes.
        seed: Of those that draw.
    """
    if name == MIXED_BITS:
        return _mixed_bits(env)
    unknown = BITS_ONLY if isinstance(env, PruningEnv) else PRUNING_ONLY
    return make_single("uniform" if name in unknown else name, env, log, seed)


def _mixed_bits(env: LayerwiseCompressionEnv) -> GivenRates:
    """Give convolutions 8 bits and linear layers 5."""
    model = env.task.model
    layers = [model.get_submodule(layer.name) for layer in env.walk]
    bits = np.array([5.0 if isinstance(layer, nn.Linear) else 8.0 for layer in layers])
    return GivenRates(bits / env.value_scale, env)


def make_agent(
    name: str, env: LayerwiseCompressionEnv, log: EpisodeLog, config: Config
) -> BaseAlgorithm | Random:
    """Return a learner, or a search; that of CMA-ES starts from what the best rule does.

    One decision, which CMA-ES cannot search, is searched at random around that.

    Args:
        name: Its name.
        env: The environment.
        log: The environment, or several, as the agent sees them; told what the rules take.
        config: Says how many evaluations the agent will have, its seed and its schedule.
    """
    if agent_of(name) == "random":
        own = stored_settings(name)
        return Random(log.observation_space, log.action_space, config.seed, **own)
    if name == "cma_es":
        portfolio = Portfolio(env)
        log.spend(portfolio.n_evaluations, portfolio.seconds)
        start = play(env, portfolio).actions
        if len(start) == 1:
            return AroundRule(log, float(start[0]), config.seed)
        return CMAES("MlpPolicy", log, seed=config.seed, start=start, sigma0=SPREAD)
    n_steps = config.n_evaluations * log.walk_length
    n_rollouts = -(-config.n_episodes // log.num_envs) * log.num_envs

    def rate(initial: float) -> RolloutSchedule:
        drops, decay = config.agent_rate_drops, config.agent_rate_decay
        return RolloutSchedule(initial, n_rollouts, drops, decay)

    is_fixed = not config.agent_rate_drops and config.agent_rate_decay == 1.0
    return make_learner(
        name, log, n_steps=n_steps, seed=config.seed, rate=None if is_fixed else rate
    )
