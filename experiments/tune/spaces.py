"""What `experiments.tune` searches: the range of every hyper-parameter, for each agent.

Names are those of `experiments.search.hyperparameters`; every set of settings that is stored there
at first is inside. An agent around a rule has a space of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

__all__ = ["INFORMED_SPACES", "SPACES", "Choice", "Range", "Space", "contains", "space_of"]


class Range(NamedTuple):
    """Numbers between two bounds, both included."""

    low: float
    high: float
    log: bool = False
    """Whether the logarithm is searched uniformly, instead of the number itself."""


class Choice(NamedTuple):
    """Some values without an order, all of them JSON's."""

    values: tuple[Any, ...]


Space: TypeAlias = dict[str, "Range | Choice"]

LEARNING_RATE = Range(1e-4, 3e-2, log=True)
LOG_STD_INIT = Range(-1.5, 0.0)  # standard deviations from 0.22 to 1, in actions in [-1, 1]
SPREAD = Range(0.025, 0.6, log=True)
"""Standard deviations around a rule, in actions in [-1, 1]."""
GAE_LAMBDA = Choice((0.9, 0.95, 1.0))
ENT_COEF = Choice((0.0, 1e-3, 1e-2))
LEARNING_STARTS: Space = {
    "learning_starts_fraction": Range(0.05, 0.3),
    # Where this is lower than the fraction, it alone decides.
    "learning_starts_max": Choice((50, 100, 200, 400)),
}
DETERMINISTIC: Space = {
    "learning_rate": LEARNING_RATE,
    "action_noise": Range(0.1, 0.6),
    "gradient_steps": Choice((1, 2, 4)),
    **LEARNING_STARTS,
    "batch_size": Choice((32, 64, 128)),
    "tau": Choice((0.005, 0.02, 0.05)),
}

SPACES: dict[str, Space] = {
    "q_critic_ppo": {
        "learning_rate": LEARNING_RATE,
        "actor_learning_rate": LEARNING_RATE,
        # Rewards come at the end, after decisions that the observation does not tell: 40 are the
        # returns of all tasks of the suite but those with more layers.
        "target_steps": Choice((1, 3, 10, 40)),
        "gradient_steps": Choice((1, 2, 4)),
        "n_action_samples": Choice((4, 8, 16)),
        "clip_range": Choice((0.1, 0.2, 0.3)),
        "ent_coef": ENT_COEF,
        "log_std_init": LOG_STD_INIT,
        **LEARNING_STARTS,
        "batch_size": Choice((64, 128, 256)),
    },
    "ppo": {
        "learning_rate": LEARNING_RATE,
        "n_updates": Choice((5, 10, 20, 40)),
        "n_steps_max": Choice((32, 64, 128, 256)),
        "n_epochs": Choice((5, 10, 20)),
        "gae_lambda": GAE_LAMBDA,
        "log_std_init": LOG_STD_INIT,
        "ent_coef": ENT_COEF,
    },
    "a2c": {
        "learning_rate": LEARNING_RATE,
        "n_steps": Choice((5, 10, 20, 40)),
        "gae_lambda": GAE_LAMBDA,
        "log_std_init": LOG_STD_INIT,
        "ent_coef": ENT_COEF,
    },
    "ddpg": DETERMINISTIC,
    "td3": DETERMINISTIC,
    "sac": {
        "learning_rate": LEARNING_RATE,
        "gradient_steps": Choice((1, 2)),
        **LEARNING_STARTS,
        "batch_size": Choice((32, 64, 128)),
        "ent_coef": Choice(("auto", "auto_0.1", "auto_0.01")),
        "tau": Choice((0.005, 0.02, 0.05)),
    },
    "ars": {
        "delta_std": Range(0.01, 0.3, log=True),
        "learning_rate": Range(5e-3, 0.3, log=True),
        "n_delta": Choice((2, 4, 8)),
    },
}
"""Spaces by agent."""
INFORMED_SPACES: dict[str, Space] = {
    "q_critic_ppo": {
        # Around a good rule a policy has less to find and more to lose.
        "actor_learning_rate": Range(1e-4, 3e-3, log=True),
        "log_std_init": Range(-3.5, -0.5),
        "learning_starts_fraction": Range(0.05, 0.3),
        # Rounds for each step, of which the actor learns in one of so many.
        "gradient_steps": Choice((1, 2, 4)),
        "policy_delay": Choice((1, 2, 4)),
        "n_critics": Choice((1, 2, 5)),
        "imitation_coef": Choice((0.0, 1.0, 3.0, 10.0)),
        "n_elites": Choice((4, 8, 16)),
    },
    "ppo": {"learning_rate": LEARNING_RATE, "log_std_init": Range(-3.5, -0.5)},
    "a2c": {"learning_rate": LEARNING_RATE, "log_std_init": Range(-3.5, -0.5)},
    "ddpg": {"learning_rate": LEARNING_RATE, "spread": SPREAD, "action_noise": SPREAD},
    "td3": {"learning_rate": LEARNING_RATE, "spread": SPREAD, "action_noise": SPREAD},
    "sac": {
        "learning_rate": LEARNING_RATE,
        "spread": SPREAD,
        "ent_coef": Choice(("auto", "auto_0.1", "auto_0.01", "auto_0.001")),
    },
    "ars": {
        "delta_std": Range(0.01, 0.3, log=True),
        "learning_rate": Range(5e-3, 0.3, log=True),
    },
    "cma_es": {"sigma0": SPREAD},
    "tpe": {"spread": SPREAD},
    "random": {"spread": SPREAD},
}
"""Spaces by agent, around a rule; settings that are not in one stay as they are stored."""


def space_of(agent: str, *, is_informed: bool) -> Space:
    """Return what is searched for an agent, one of `SPACES` or of `INFORMED_SPACES`."""
    return (INFORMED_SPACES if is_informed else SPACES)[agent]


def contains(space: Space, settings: Mapping[str, Any]) -> bool:
    """Whether settings have all names of a space, and values inside it."""
    return settings.keys() >= space.keys() and all(
        settings[name] in part.values
        if isinstance(part, Choice)
        else part.low <= settings[name] <= part.high
        for name, part in space.items()
    )
