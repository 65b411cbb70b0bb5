"""Every agent by name: how it is made, whose hyper-parameters it has, and what it can do."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm

from agents import CIMPPO, CMAES, KLPPO, TPE, QCriticPPO
from agents.rules import BIT_RULES, PRUNING_RULES
from compress_env.names import check_name
from experiments.search.foreign import find

__all__ = [
    "ACCEPTED",
    "BITS_ONLY",
    "CONTRIB",
    "ENTRANTS",
    "LEARNERS",
    "POLICIES",
    "PRUNING_ONLY",
    "SINGLE",
    "Entrant",
    "check_agent",
    "check_algorithm",
    "check_packages",
    "goes_on",
    "learner_class",
]


class Entrant(NamedTuple):
    """What must be known of an agent."""

    learner: type[BaseAlgorithm] | str | None = None
    """Its class, or what sb3-contrib calls that; None for an agent that does not learn."""
    family: str | None = None
    """Whose hyper-parameters it has, of those in `hyperparameters.json`; None for an agent that
    keeps its published defaults, or has none."""
    lacks: tuple[str, ...] = ()
    """Settings of its family that it does not have."""
    own: Mapping[str, Any] = MappingProxyType({})
    """Settings that its family does not have, and were not searched for."""
    fixed: Mapping[str, Any] = MappingProxyType({})
    """Arguments of its class that are no settings."""
    is_single: bool = False
    """Whether it always does the same, so that one episode is all there is."""
    knows_bits: bool = True
    """Whether it chooses numbers of bits too, not pruning rates alone."""
    knows_rates: bool = True
    """Whether it chooses pruning rates too, not numbers of bits alone."""


ENTRANTS = {
    "q_critic_ppo": Entrant(QCriticPPO, "q_critic_ppo", fixed={"advantage": "q_baseline"}),
    "ppo": Entrant(PPO, "ppo"),
    "kl_ppo": Entrant(KLPPO, "ppo"),
    # The coefficient of its penalty follows the divergence, as that of `kl_ppo` does: a fixed one
    # hardly lets the policy move (docs/control.md).
    "cim_ppo": Entrant(CIMPPO, "ppo", own={"kl_target": 0.01}),
    "a2c": Entrant(A2C, "a2c"),
    "ddpg": Entrant(DDPG, "ddpg"),
    "td3": Entrant(TD3, "td3"),
    "sac": Entrant(SAC, "sac"),
    "q_critic_ppo_q": Entrant(QCriticPPO, "q_critic_ppo", fixed={"advantage": "q"}),
    "cma_es": Entrant(CMAES),
    "tpe": Entrant(TPE),
    "random": Entrant(),
    "uniform": Entrant(is_single=True),
    **{name: Entrant(is_single=True) for name in PRUNING_RULES},
    **{name: Entrant(is_single=True, knows_rates=False) for name in BIT_RULES},
    "afie": Entrant(is_single=True, knows_bits=False),
    "sbpf": Entrant(is_single=True, knows_bits=False),
    "greedy": Entrant(is_single=True),
    "portfolio": Entrant(is_single=True),
    "tqc": Entrant("TQC", "sac"),
    # One step of conjugate gradients, no entropy bonus.
    "trpo": Entrant("TRPO", "ppo", lacks=("n_epochs", "ent_coef")),
    # No target networks, and a higher learning rate is part of the method.
    "crossq": Entrant("CrossQ", "sac", lacks=("learning_rate", "tau")),
    "ars": Entrant("ARS", "ars"),
}
"""All agents that have a name."""

CONTRIB = tuple(name for name, each in ENTRANTS.items() if isinstance(each.learner, str))
"""Learners of sb3-contrib."""
LEARNERS = tuple(
    name for name, each in ENTRANTS.items() if each.learner is not None and name not in CONTRIB
)
"""Other agents that learn, and black-box searches."""
POLICIES = tuple(name for name, each in ENTRANTS.items() if each.learner is None)
"""Agents that do not learn."""
SINGLE = tuple(name for name, each in ENTRANTS.items() if each.is_single)
"""Those of them that always do the same."""
PRUNING_ONLY = tuple(name for name, each in ENTRANTS.items() if not each.knows_bits)
"""Those of them that choose pruning rates and know nothing of bits."""
BITS_ONLY = tuple(name for name, each in ENTRANTS.items() if not each.knows_rates)
"""Those of them that choose bits and know nothing of pruning rates."""
NOT_RESUMABLE = ("ars",)
"""Learners whose state between two episodes is inside one call of `learn`."""


ACCEPTED = (
    f"{', '.join((*LEARNERS, *POLICIES))}; of sb3-contrib {', '.join(CONTRIB)}; or "
    "my_module:MyAgent, looked for in the current directory too"
)
"""All names of agents, as `--help` tells them."""


def check_algorithm(name: str) -> None:
    """Check the name of an agent that needs no other package.

    Raises:
        ValueError: If no such agent has it.
    """
    check_name("algorithm", name, (*LEARNERS, *POLICIES))


def check_agent(name: str) -> None:
    """Check the name of any agent, also of anybody's, and that what it needs is there.

    Raises:
        ValueError: If there is no such agent, or it is not called as an agent is.
        ImportError: If its module cannot be imported, or a package is missing.
    """
    if ":" in name:
        find(name)
    else:
        check_name("algorithm", name, (*ENTRANTS, "my_module:MyAgent"))
    check_packages(name)


def check_packages(name: str) -> None:
    """Check that the package which an agent needs is installed, if it needs one.

    Raises:
        ImportError: If it is missing.
    """
    if name in CONTRIB:
        _import_contrib()
    if name == "tpe" and importlib.util.find_spec("optuna") is None:
        raise ImportError("tpe needs optuna: pip install 'compress-env[benchmark]'")


def _import_contrib() -> Any:
    """Return sb3-contrib.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module("sb3_contrib")
    except ImportError:
        raise ImportError(
            f"{', '.join(CONTRIB)} need sb3-contrib: pip install 'compress-env[contrib]'"
        ) from None


def learner_class(name: str) -> type[BaseAlgorithm]:
    """Return the class of a learner by name.

    Raises:
        ImportError: If it is of sb3-contrib, which is not installed.
    """
    found = ENTRANTS[name].learner
    assert found is not None
    found_class: type[BaseAlgorithm]
    found_class = getattr(_import_contrib(), found) if isinstance(found, str) else found
    return found_class


def goes_on(name: str) -> bool:
    """Whether a stopped search of this agent goes on episode by episode; others start again."""
    return ":" not in name and name not in NOT_RESUMABLE
