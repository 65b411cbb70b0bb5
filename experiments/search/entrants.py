"""Every agent by name: how it is made, whose hyper-parameters it has, and what it can do.

`AGENT+RULE` is an informed agent: action 0 stands for what the rule gives (the environment's
`prior`), and an agent that looks at observations is shown a `LayerContext`
(`experiments.search.observing`).
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import gymnasium as gym
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from agents import CIMPPO, CMAES, KLPPO, TPE, QCriticPPO
from agents.q_critic_ppo import PAPER, PAPER_ENVS
from agents.rules import BIT_RULES, PRUNING_RULES
from compress_env.names import check_name
from experiments.common.checks import with_asked
from experiments.search.foreign import find

__all__ = [
    "ACCEPTED",
    "BITS_ONLY",
    "CONTRIB",
    "ENTRANTS",
    "IMPROVEMENTS",
    "INFORMABLE",
    "LEARNERS",
    "POLICIES",
    "PRIOR_RULES",
    "PRUNING_ONLY",
    "SINGLE",
    "Entrant",
    "agent_of",
    "can_act",
    "check_agent",
    "check_algorithm",
    "check_packages",
    "check_stage",
    "env_options",
    "goes_on",
    "learner_class",
    "n_envs_of",
    "rule_of",
    "stage_of",
    "stages_of",
    "values_episodes",
    "with_rule",
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
    n_envs: int = 1
    """Environments that it steps at once where nothing else is said."""
    is_single: bool = False
    """Whether it always does the same, so that one episode is all there is."""
    knows_bits: bool = True
    """Whether it chooses numbers of bits too, not pruning rates alone."""
    knows_rates: bool = True
    """Whether it chooses pruning rates too, not numbers of bits alone."""


def _paper(**changes: Any) -> Entrant:
    """Return the agent of arXiv 1912.02254, with other arguments where they are given."""
    arguments = {**PAPER, "tau": 0.01, "target_policy_noise": 0.2} | changes
    own = {name: arguments.pop(name) for name in PAPER_OWN if name not in changes}
    return Entrant(QCriticPPO, own=own, fixed=arguments, n_envs=PAPER_ENVS)


PAPER_OWN = (
    *("learning_rate", "n_epochs", "gradient_steps", "batch_size"),
    *("clip_range", "tau", "target_policy_noise"),
)
"""Arguments of the paper's agent that are settings."""
IMPROVEMENTS = {
    "q_critic_ppo_paper": _paper(),
    # V and advantages of several steps in place of Q, otherwise with the same networks and noise.
    "q_critic_ppo_paper_v": Entrant(
        PPO,
        own={"learning_rate": PAPER["learning_rate"], "n_epochs": PAPER["n_epochs"]},
        fixed={
            "n_steps": 8,
            "batch_size": 8 * PAPER_ENVS,
            "clip_range": PAPER["clip_range"],
            "normalize_advantage": PAPER["normalize_advantage"],
            "policy_kwargs": {"net_arch": [64], "activation_fn": nn.ReLU, "log_std_init": -0.5},
        },
        n_envs=PAPER_ENVS,
    ),
    "q_critic_ppo_paper_no_clip": _paper(clip_range=math.inf),
    "q_critic_ppo_paper_no_smoothing": _paper(tau=1.0),
    "q_critic_ppo_paper_no_noise": _paper(target_policy_noise=0.0),
}
"""The paper's agent, and each of its four improvements over PPO switched off in turn."""

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
    **IMPROVEMENTS,
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
INFORMABLE = tuple(name for name, each in ENTRANTS.items() if not each.is_single)
"""Agents that search around a rule when its name follows theirs, as in `ppo+l1`."""
PRIORS: dict[str, tuple[str, ...]] = {
    "pruning": ("uniform", *PRUNING_RULES),
    "quantization": ("uniform", *BIT_RULES),
}
"""Rules that an agent can be informed by, by the stage that they are for."""
OTHERWISE = {"pruning": "uniform", "quantization": "relative_error"}
"""What a stage has instead of a rule for the other."""
VALUES = {"pruning": "pruning rates", "quantization": "bits"}
"""What is decided, by stage."""
PRIOR_RULES = tuple(dict.fromkeys(rule for rules in PRIORS.values() for rule in rules))
"""All of them."""
ENTRY_POINTS = {
    gym.spec(f"compress_env/{task}-v0").entry_point: stage
    for task, stage in (("Pruning", "pruning"), ("Quantization", "quantization"))
}
NOT_RESUMABLE = ("ars",)
"""Learners whose state between two episodes is inside one call of `learn`."""


ACCEPTED = (
    f"{', '.join((*LEARNERS, *POLICIES))}; of sb3-contrib {', '.join(CONTRIB)}; "
    "my_module:MyAgent, looked for in the current directory too; or AGENT+RULE, such as ppo+l1 or "
    f"cma_es+relative_error, around a rule ({', '.join(PRIOR_RULES)})"
)
"""All names of agents, as `--help` tells them."""


def agent_of(name: str) -> str:
    """Return the name of an agent without that of a rule."""
    return name.partition("+")[0]


def rule_of(name: str) -> str | None:
    """Return the rule in a name, None of a blind agent."""
    _, plus, rule = name.partition("+")
    return rule if plus else None


def stages_of(name: str) -> tuple[str, ...]:
    """Return the stages whose tasks an agent can act on: `pruning`, `quantization` or both."""
    agent, rule = agent_of(name), rule_of(name)
    entrant = ENTRANTS.get(agent, Entrant())
    knows = {"pruning": entrant.knows_rates, "quantization": entrant.knows_bits}
    if agent in PRUNING_RULES:  # a job of both stages has another rule for the bits
        knows["quantization"] = False
    return tuple(s for s in PRIORS if knows[s] and (rule is None or rule in PRIORS[s]))


def can_act(name: str, task: str) -> bool:
    """Tell whether an agent, and its rule, choose what a registered task asks for.

    Args:
        name: A name that `check_agent` accepts.
        task: The id of a task; of those that nobody has registered nothing is known.
    """
    stage = stage_of(task)
    return stage is None or stage in stages_of(name)


def stage_of(task: str) -> str | None:
    """Return the stage that a task is of, None of a task that nobody has registered."""
    spec = gym.registry.get(task)
    return None if spec is None else ENTRY_POINTS.get(spec.entry_point)


def check_stage(name: str, task: str) -> None:
    """Check that an agent, and its rule, choose what a registered task asks for: see `can_act`.

    Raises:
        ValueError: If they do not.
    """
    if can_act(name, task):
        return
    (other,), stage = stages_of(name), stage_of(task)
    assert stage is not None
    rule, hint = rule_of(name), ""
    if rule is not None:
        hint = f"; valid here: {', '.join(f'{agent_of(name)}+{r}' for r in PRIORS[stage])}"
    raise ValueError(
        f"{rule or name} chooses {VALUES[other]}, {task} asks for {VALUES[stage]}{hint}"
    )


def env_options(name: str, stage: str | None = None) -> dict[str, Any]:
    """Return the keywords of an environment that an agent's name asks for.

    Args:
        name: A name that `check_agent` accepts.
        stage: What is decided, for a job of several stages: where the rule is for the other one,
            this has a rule of its own.
    """
    rule = rule_of(name)
    if rule is None:
        return {}
    return {"prior": rule if stage is None or rule in PRIORS[stage] else OTHERWISE[stage]}


def with_rule(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return keywords of an environment, and those that an agent's name asks for (`env_options`).

    Args:
        name: A name that `check_agent` accepts.
        given: What somebody has given.

    Raises:
        ValueError: If the two disagree.
    """
    return with_asked(given, env_options(name), name)


def check_algorithm(name: str, *, takes_rule: bool = True) -> None:
    """Check the name of an agent that needs no other package.

    Args:
        name: The name.
        takes_rule: Whether it may be followed by that of a rule.

    Raises:
        ValueError: If no such agent has it.
    """
    agent = agent_of(name) if takes_rule else name
    check_name("algorithm", agent, (*LEARNERS, *POLICIES))
    _check_rule(name)


def check_agent(name: str) -> None:
    """Check the name of any agent, also of anybody's, and that what it needs is there.

    Raises:
        ValueError: If there is no such agent, or it is not called as an agent is.
        ImportError: If its module cannot be imported, or a package is missing.
    """
    if ":" in name:
        find(agent_of(name))
    else:
        check_name("algorithm", agent_of(name), (*ENTRANTS, "my_module:MyAgent"))
    _check_rule(name)
    check_packages(name)


def _check_rule(name: str) -> None:
    agent, rule = agent_of(name), rule_of(name)
    if rule is None:
        return
    if agent in SINGLE:
        raise ValueError(
            f"{agent} does not search, so it takes no rule, got {name!r}; those that do: "
            f"{', '.join(INFORMABLE)}"
        )
    check_name("rule", rule, PRIOR_RULES)


def check_packages(name: str) -> None:
    """Check that the package which an agent needs is installed, if it needs one.

    Raises:
        ImportError: If it is missing.
    """
    if agent_of(name) in CONTRIB:
        _import_contrib()
    if agent_of(name) == "tpe" and importlib.util.find_spec("optuna") is None:
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
    found = ENTRANTS[agent_of(name)].learner
    assert found is not None
    found_class: type[BaseAlgorithm]
    found_class = getattr(_import_contrib(), found) if isinstance(found, str) else found
    return found_class


def n_envs_of(name: str, asked: int | None) -> int:
    """Return how many environments an agent steps at once.

    Args:
        name: A name that `check_agent` accepts.
        asked: How many it should; as many as it usually has when None.

    Raises:
        ValueError: If it acts in one alone, and in several it should.
    """
    entrant = ENTRANTS.get(agent_of(name), Entrant())
    if asked is None:
        return entrant.n_envs
    if asked > 1 and (entrant.is_single or ":" in name):
        raise ValueError(f"{name} acts in one environment, got n_envs={asked}")
    return asked


def values_episodes(name: str) -> bool:
    """Whether an agent's critic values whole episodes, as `QCriticPPO.episode_values` does."""
    found = ENTRANTS.get(agent_of(name), Entrant()).learner
    return isinstance(found, type) and issubclass(found, QCriticPPO)


def goes_on(name: str) -> bool:
    """Whether a stopped search of this agent goes on episode by episode; others start again."""
    return ":" not in name and agent_of(name) not in NOT_RESUMABLE
