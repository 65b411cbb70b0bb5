"""One agent learns one Gymnasium task from one seed.

`curve.csv` holds the mean return of the deterministic policy at equal distances of steps; for PPO
with any penalty, `updates.csv` holds what each update has done to the policy. Tasks, agents and
their settings are in `experiments.control.agents`. A run that has been stopped starts again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from agents.penalty_ppo import PenaltyPPO
from experiments.common.checks import check_lowest
from experiments.common.cli.command import run_command, run_measurement
from experiments.common.run_folder import RunFolder
from experiments.control.agents import AGENTS, TASKS, check_agent, check_task, make_agent, make_env
from experiments.control.records import CurveRecorder, UpdateRecorder

__all__ = ["Config", "main", "run"]

EVALUATION_SEED = 1_000_000
"""Added to the seeds of environments for those that evaluate."""


@dataclass(frozen=True)
class Config:
    """Settings of a run."""

    algo: str = "ppo"
    """Named agent: ppo (with the clip), kl_ppo, cim_ppo, cim_ppo_metric,
    q_critic_ppo, q_critic_ppo_paper, ddpg, td3 or sac."""
    task: str = "Pendulum-v1"
    """Named task."""
    seed: int = 0
    """Seed of the agent and of the environments."""
    total_timesteps: int | None = None
    """Environment steps, over all environments; the task's when not given."""
    n_envs: int | None = None
    """Environments at a time; when not given, the task's for PPO, 4 for the paper's agent and
    one for others."""
    n_points: int = 20
    """Evaluations after the first one, at equal distances."""
    eval_episodes: int = 10
    """Episodes of each evaluation."""
    out: Path | None = None
    """Run folder; a new one under runs/ when not given."""
    resume: Path | None = None
    """Run folder of a stopped run, which starts again there with its settings."""

    def check(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of range.
            ImportError: If a package that the task needs is missing.
        """
        check_task(self.task)
        check_agent(self.algo, self.task)
        check_lowest(self, 0, "seed")
        check_lowest(self, 1, "total_timesteps", "n_envs", "n_points", "eval_episodes")


class Training:
    """An agent, its environments and what is noted of it."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        """Build everything.

        Raises:
            ValueError: If a setting is wrong.
            ImportError: If a package that the task needs is missing.
        """
        config.check()
        self.config, self.folder = config, folder
        task, agent = TASKS[config.task], AGENTS[config.algo]
        self.total_timesteps = config.total_timesteps or task.total_timesteps
        n_envs = config.n_envs or (task.n_envs if agent.is_ppo else agent.n_envs)
        self._env = make_env(config.task, n_envs=n_envs, seed=config.seed)
        self._agent = make_agent(config.algo, config.task, self._env, config.seed)
        # An agent seeds environment i with seed + i: runs of two seeds would share environments.
        self._env.seed(config.seed * n_envs)
        n_at_once = min(10, config.eval_episodes)
        seed = config.seed * n_at_once + EVALUATION_SEED
        self._evaluation = make_env(
            config.task, n_envs=n_at_once, seed=seed, statistics_of=self._env
        )
        self._curve = CurveRecorder(
            self._evaluation,
            folder,
            total_timesteps=self.total_timesteps,
            n_points=config.n_points,
            n_episodes=config.eval_episodes,
            seed=seed,
        )

    def learn(self) -> dict[str, Any]:
        """Let the agent learn, write what has been noted and return the row of the final table."""
        updates = UpdateRecorder() if isinstance(self._agent, PenaltyPPO) else None
        callbacks: list[BaseCallback] = [self._curve, *([] if updates is None else [updates])]
        start = perf_counter()
        self._agent.learn(self.total_timesteps, callback=CallbackList(callbacks))
        seconds = perf_counter() - start
        self._env.close()
        self._evaluation.close()
        if updates is not None:
            self.folder.write_rows("updates.csv", updates.rows)
        curve = pd.DataFrame(self._curve.rows)
        return {
            "timesteps": self._agent.num_timesteps,
            "final_return": float(curve["mean_return"].iloc[-1]),
            "mean_return": float(curve["mean_return"].iloc[1:].mean()),
            "steps_to_threshold": steps_to_threshold(curve, TASKS[self.config.task].threshold),
            "seconds": seconds,
        }


def steps_to_threshold(curve: pd.DataFrame, threshold: float | None) -> float:
    """Return the steps before the first evaluation at or above a threshold; NaN if there is none.

    Args:
        curve: Columns `timesteps` and `mean_return`.
        threshold: A mean return, or None.
    """
    if threshold is None:
        return float("nan")
    reached = curve.loc[curve["mean_return"] >= threshold, "timesteps"]
    return float(reached.min())


def run(config: Config, console: Console) -> dict[str, Any]:
    """Let the agent learn, and write the run folder.

    Returns:
        The row of the final table.

    Raises:
        ValueError: If a setting is wrong.
        ImportError: If a package that the task needs is missing.
    """
    return run_measurement("control", config, console, Training, _measure)


def _measure(training: Training, console: Console) -> dict[str, Any]:
    row, config = training.learn(), training.config
    console.print(
        f"{config.algo} on {config.task}, seed {config.seed}: mean return "
        f"{row['final_return']:.1f} after {row['timesteps']} steps and {row['seconds']:.0f} s",
        soft_wrap=True,
        highlight=False,
    )
    training.folder.finish([row])
    return row


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
