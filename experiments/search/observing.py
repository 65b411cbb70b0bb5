"""What an agent by name is shown, and earns, of an environment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv

from agents import EpisodeSearch
from compress_env.counts import check_number
from compress_env.envs.wrappers.context import LayerContext
from compress_env.envs.wrappers.several import SeveralBudgets
from compress_env.envs.wrappers.shaping import PotentialReward
from experiments.search.entrants import ENTRANTS, agent_of, rule_of

__all__ = ["check_budgets", "check_shaping", "discount_as", "looks", "sees_context", "wrap"]


def looks(name: str) -> bool:
    """Whether an agent's actions follow from what it observes; those of black-box searches do not.

    Args:
        name: A name that `check_agent` accepts.
    """
    entrant = ENTRANTS.get(agent_of(name))
    if entrant is None:
        return True
    found = entrant.learner
    return found is not None and not (isinstance(found, type) and issubclass(found, EpisodeSearch))


def sees_context(name: str) -> bool:
    """Whether an agent is shown a `LayerContext`: it looks, and is informed by a rule."""
    return looks(name) and rule_of(name) is not None


def wrap(
    name: str, env: gym.Env[Any, Any], *, shaping: float = 0.0, budgets: Sequence[float] = ()
) -> gym.Env[Any, Any]:
    """Return the environment as an agent observes it: with context if it is informed and looks.

    Args:
        name: A name that `check_agent` accepts.
        env: The environment.
        shaping: Weight of a `PotentialReward`, for an agent that is shown the context; 0 for none.
            It does not discount, as our learners do not; for others there is `discount_as`.
        budgets: Budgets of a `SeveralBudgets`, if there are any.
    """
    observed = LayerContext(env) if sees_context(name) else env
    if shaping and sees_context(name):
        observed = PotentialReward(observed, shaping)
    return SeveralBudgets(observed, budgets) if budgets else observed


def discount_as(agent: Any, actors: VecEnv) -> None:
    """Let a `PotentialReward` discount as an agent does, or no policy would keep its rank.

    Args:
        agent: An agent; one without an attribute `gamma` does not discount.
        actors: Environments with a `PotentialReward`, of episodes that have not begun.

    Raises:
        ValueError: If `gamma` is out of range.
        TypeError: If it is no number.
    """
    gamma = check_number("gamma", getattr(agent, "gamma", 1.0))
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"shaping is for agents whose gamma is in [0, 1], got {gamma}")
    actors.env_method("set_wrapper_attr", "gamma", gamma)


def check_shaping(name: str, shaping: float) -> None:
    """Check the weight of a `PotentialReward` for an agent.

    Raises:
        ValueError: If it is negative, or not 0 for an agent that is not shown a `LayerContext`.
    """
    if not (math.isfinite(shaping) and shaping >= 0.0):
        raise ValueError(f"shaping must be 0 or more, got {shaping}")
    if shaping and not sees_context(name):
        raise ValueError(
            "shaping is for learners around a rule, as q_critic_ppo+kl_curve, which are shown the "
            f"saliency that it is made of; got {name}"
        )


def check_budgets(name: str, budgets: Sequence[float]) -> None:
    """Check budgets of a `SeveralBudgets` for an agent; none are right for everybody.

    Raises:
        ValueError: If two are the same, one is out of range, or the agent does not look at what it
            observes.
    """
    if len(set(budgets)) < len(budgets):
        raise ValueError(f"expected budgets that differ, got {tuple(budgets)}")
    for budget in budgets:
        if not 0.0 < budget <= 1.0:
            raise ValueError(f"budgets must be above 0 and at most 1, got {budget}")
    if budgets and not looks(name):
        raise ValueError(
            f"budgets are for learners, which look at the budget of an episode; {name} does not"
        )
