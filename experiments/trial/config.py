"""The settings of a trial, and the environment that they name."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium as gym
import tyro

from compress_env.envs.base import LayerwiseCompressionEnv
from experiments.common.checks import check_lowest, read_object, with_asked
from experiments.search.entrants import (
    ACCEPTED,
    LEARNERS,
    check_agent,
    check_stage,
    n_envs_of,
    values_episodes,
    with_rule,
)
from experiments.search.hyperparameters import check_settings, stored_settings
from experiments.search.names import full_name, task_id
from experiments.search.observing import check_budgets, check_shaping

__all__ = ["Config", "NominateBy", "make_task"]

NominateBy = Literal["accuracy", "critic"]


@dataclass(frozen=True)
class Config:
    """Settings of a trial."""

    algo: Annotated[str, tyro.conf.arg(help=f"Agent: {ACCEPTED}.")] = "random"
    task: str = "compress_env/PruneLeNet5Digits-v1"
    """Task of compress_env, with or without its namespace."""
    seed: int = 0
    """Seed of the agent; the task keeps its own."""
    evaluations: int | None = 300
    """Distinct networks whose accuracy may be asked for; None for no such limit."""
    episodes: int | None = None
    """Most episodes; three times as many as the evaluations would suffice for when not given."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment in place of the task's own, a JSON object."""
    settings: str = "{}"
    """Hyper-parameters of the agent in place of those in hyperparameters.json, a JSON object; the
    run folder holds all of them."""
    n_envs: int | None = None
    """Environments that the agent steps at once, synchronously: one after the other, in this
    process. When not given, 4 for the paper's agent and 1 for others. Evaluations and episodes
    are counted over all."""
    nominate_by: NominateBy = "accuracy"
    """Which episodes are nominated where orders are drawn: the most accurate ones, or those that
    the agent's critic values most (q_critic_ppo)."""
    shaping: float = 0.0
    """Weight of the saliency that decisions lose in a learner's reward (`PotentialReward`), for
    AGENT+RULE, discounted by the agent's own `gamma` (1 if it has none); tables tell the reward
    without it."""
    budgets: tuple[float, ...] = ()
    """Budgets that one policy is for (`SeveralBudgets`), in place of the task's own, each a
    fraction; the rows of table.csv are then of one of them each."""
    data_root: Path | None = None
    """Folder of the data set's files."""
    store: Path | None = None
    """File that keeps what steps lead to, for all runs that name it; in memory when not given."""
    out: Path | None = None
    """Run folder; a new one under runs/ when not given."""
    resume: Path | None = None
    """Run folder of a stopped trial to go on with."""

    def __post_init__(self) -> None:
        """Put the namespace before the task where it is missing."""
        object.__setattr__(self, "task", full_name(self.task))

    def check(self) -> None:
        """Check everything but the keyword arguments of the task.

        Raises:
            ValueError: If a setting is wrong.
            ImportError: If the agent's module, or a package that it needs, cannot be imported.
        """
        check_agent(self.algo)
        check_stage(self.algo, task_id(self.task, others=True))
        check_lowest(self, 0, "seed")
        for name in ("evaluations", "episodes", "n_envs"):
            if getattr(self, name) is not None:
                check_lowest(self, 1, name)
        n_envs_of(self.algo, self.n_envs)
        if self.evaluations is None and self.episodes is None:
            raise ValueError("expected evaluations or episodes, got neither")
        if self.nominate_by == "critic" and not values_episodes(self.algo):
            raise ValueError(
                "nominate_by critic is for agents whose critic values whole episodes "
                f"({', '.join(filter(values_episodes, LEARNERS))}), got {self.algo}"
            )
        check_shaping(self.algo, self.shaping)
        check_budgets(self.algo, self.budgets)
        _ = self.env_options
        check_settings(self.algo, read_object(self, "settings"))

    @property
    def env_options(self) -> dict[str, Any]:
        """Keyword arguments of the environment: `env_kwargs`, and what other settings ask for.

        Raises:
            ValueError: If two disagree, or `env_kwargs` are no JSON object.
        """
        given = with_rule(self.algo, read_object(self, "env_kwargs"))
        limits = {"flops_budget", "params_budget", "filters_budget", "size_budget"}.intersection(
            given
        )
        if self.budgets and limits:
            raise ValueError(
                f"budgets are in place of the task's own: leave {', '.join(sorted(limits))} out of "
                "env_kwargs"
            )
        return with_asked(given, {"data_root": self.data_root, "store": self.store})

    def complete(self) -> Config:
        """Return the same trial with every hyper-parameter in `settings`.

        What is stored in the package may change, a trial that is under way may not.

        Raises:
            ValueError: If `settings` are no JSON object.
        """
        given = stored_settings(self.algo) | read_object(self, "settings")
        return dataclasses.replace(self, settings=json.dumps(given))


def make_task(config: Config, **options: Any) -> LayerwiseCompressionEnv:
    """Make the environment of a trial.

    Args:
        config: Names the task.
        options: Further keyword arguments of the environment.

    Raises:
        ValueError: If there is no such task, it does not take the arguments, or the agent's rule
            is another than their prior.
        FileNotFoundError: If data are not there.
    """
    given = config.env_options | options
    try:
        task = task_id(config.task, others=True)
        # A registered one is meant as it is named: of its version, too.
        env = gym.make(gym.registry.get(task, task), disable_env_checker=True, **given).unwrapped
    except (gym.error.Error, TypeError) as error:
        reason = error.__context__ or error  # Gymnasium adds all arguments to a TypeError
        raise ValueError(f"cannot make the task {config.task!r}: {reason}") from None
    if not isinstance(env, LayerwiseCompressionEnv):
        raise ValueError(f"task must be one of compress_env's, got {config.task!r}")
    return env
