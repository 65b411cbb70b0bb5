"""Who chooses rates and bits in the main job, by name."""

from __future__ import annotations

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor

from agents import CMAES, Portfolio
from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.pruning import PruningEnv
from experiments.search.algorithms import make_learner, make_single
from experiments.search.entrants import BITS_ONLY, PRUNING_ONLY
from experiments.search.episodes import EpisodeLog
from experiments.search.playing import play

__all__ = ["make_agent", "make_policy"]

SPREAD = 0.3
"""Standard deviation of the first points of CMA-ES around what the best rule does."""


def make_policy(
    name: str, env: LayerwiseCompressionEnv, log: EpisodeLog, seed: int
) -> PolicyPredictor:
    """Return an agent of one episode; what it knows nothing of is left to `Uniform`.

    Args:
        name: Its name, one of `experiments.search.entrants.SINGLE`.
        env: The environment.
        log: Told of the evaluations and the time that choosing takes.
        seed: Of those that draw.
    """
    unknown = BITS_ONLY if isinstance(env, PruningEnv) else PRUNING_ONLY
    return make_single("uniform" if name in unknown else name, env, log, seed)


def make_agent(
    name: str, env: LayerwiseCompressionEnv, log: EpisodeLog, n_evaluations: int, seed: int
) -> BaseAlgorithm:
    """Return a learner, or a search; that of CMA-ES starts from what the best rule does.

    Args:
        name: Its name.
        env: The environment.
        log: The environment, or several, as the agent sees them; told what the rules take.
        n_evaluations: Evaluations that the agent will have.
        seed: Of the agent.
    """
    if name == "cma_es" and log.walk_length > 1:
        portfolio = Portfolio(env)
        log.spend(portfolio.n_evaluations, portfolio.seconds)
        start = play(env, portfolio).actions
        return CMAES("MlpPolicy", log, seed=seed, start=start, sigma0=SPREAD)
    return make_learner(name, log, n_steps=n_evaluations * log.walk_length, seed=seed)
