"""Who chooses rates and bits in the main job, by name."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor
from torch import nn

from agents import CMAES, Portfolio
from agents.common.schedules import RolloutSchedule
from agents.importance import GivenRates
from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.pruning import PruningEnv
from experiments.compress.config import MIXED_BITS, Config
from experiments.search.algorithms import make_learner, make_single
from experiments.search.entrants import BITS_ONLY, PRUNING_ONLY
from experiments.search.episodes import EpisodeLog
from experiments.search.hyperparameters import INFORMED
from experiments.search.playing import play

__all__ = ["make_agent", "make_policy"]

SPREAD: float = INFORMED["cma_es"]["sigma0"]
"""Standard deviation of the first points of CMA-ES around what the best rule does, as around a
rule."""


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
) -> BaseAlgorithm:
    """Return a learner, or a search; that of CMA-ES starts from what the best rule does.

    Args:
        name: Its name.
        env: The environment.
        log: The environment, or several, as the agent sees them; told what the rules take.
        config: Says how many evaluations the agent will have, its seed and its schedule.
    """
    if name == "cma_es" and log.walk_length > 1:
        portfolio = Portfolio(env)
        log.spend(portfolio.n_evaluations, portfolio.seconds)
        start = play(env, portfolio).actions
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
