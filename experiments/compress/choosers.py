"""Who chooses rates and bits in the main job, by name."""

from __future__ import annotations

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor

from agents import AFIE, CMAES, SBPF, Greedy, Rule
from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.pruning import PruningEnv
from experiments.compress.config import RULE
from experiments.search.algorithms import SINGLE, make_learner
from experiments.search.episodes import EpisodeLog
from experiments.search.playing import play
from experiments.search.uniform import uniform_policy

__all__ = ["AT_ONCE", "make_agent", "make_policy"]

RULES = {"pruning": "l1", "quantization": "relative_error"}
"""Which search-free rule decides, by stage."""
AT_ONCE = (RULE, *SINGLE)
"""Those that always do the same, so that one episode is all there is."""
SPREAD = 0.3
"""Standard deviation of the first points of CMA-ES around what the rule does."""


def make_policy(
    name: str, env: LayerwiseCompressionEnv, log: EpisodeLog, seed: int
) -> PolicyPredictor:
    """Return one of `AT_ONCE`; those that know nothing of bits leave them to `Uniform`.

    Args:
        name: Its name.
        env: The environment.
        log: Told of the evaluations and the time that choosing takes.
        seed: Of those that draw.
    """
    agent: AFIE | SBPF | Greedy | Rule
    if name == RULE:
        agent = _rule(env)
    elif name == "greedy":
        agent = Greedy(env)
    elif name == "uniform" or not isinstance(env, PruningEnv):
        return uniform_policy(env, log.spend)
    else:
        agent = AFIE(env) if name == "afie" else SBPF(env, seed=seed)
    log.spend(agent.n_evaluations, agent.seconds)
    return agent


def make_agent(
    name: str, env: LayerwiseCompressionEnv, log: EpisodeLog, n_evaluations: int, seed: int
) -> BaseAlgorithm:
    """Return a learner, or a search; that of CMA-ES starts from what the rule does.

    Args:
        name: Its name.
        env: The environment.
        log: The environment, or several, as the agent sees them.
        n_evaluations: Evaluations that the agent will have.
        seed: Of the agent.
    """
    if name == "cma_es" and log.walk_length > 1:
        start = play(env, _rule(env)).actions
        return CMAES("MlpPolicy", log, seed=seed, start=start, sigma0=SPREAD)
    return make_learner(name, log, n_steps=n_evaluations * log.walk_length, seed=seed)


def _rule(env: LayerwiseCompressionEnv) -> Rule:
    return Rule(env, RULES["pruning" if isinstance(env, PruningEnv) else "quantization"])
