"""Search the hyper-parameters of agents with Optuna, on a task of digits.

`python -m experiments.tune --agent ppo --n-trials 12 --out runs/tune` tries sets of settings,
beginning with those that `hyperparameters.json` holds, each by searches of compression tasks
(`experiments.trial`), and prefers those whose best network is better on average while a search goes
on. The best sets and the present one are then played again with fresh seeds, and the present one
is given up only if another is better there too. The same command goes on where it was stopped;
with more sets, or other agents, it adds to the folder.

It leaves `tuning.csv` (all sets), `chosen.csv` (those played again), `tune.md`, `tune.png` and
`hyperparameters.json`, which takes the place of the package's only when somebody copies it there.
The black-box searches keep their published defaults.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console

from compress_env.files import replacing
from experiments.common.checks import check_choices, check_lowest
from experiments.common.command import Interrupted, run_command
from experiments.common.provenance import describe_run
from experiments.common.stored import check_tree
from experiments.search.algorithms import check_packages
from experiments.search.hyperparameters import stored_settings
from experiments.trial import trial
from experiments.tune import study as tune_study
from experiments.tune.report import (
    chosen_rows,
    draw_progress,
    format_hyperparameters,
    format_report,
    tuning_rows,
)
from experiments.tune.spaces import SPACES, contains
from experiments.tune.study import Job, Study, import_optuna, read_study, study_path

__all__ = ["Config", "main", "run"]

SPAWN = multiprocessing.get_context("spawn")
LOWEST_SEED = 100
"""Lower seeds are those of benchmarks and of all other experiments."""


@dataclass(frozen=True)
class Config:
    """Settings of the search."""

    agent: tuple[str, ...] = tuple(SPACES)
    """Agents, each of which gives its settings to its family too."""
    n_trials: int = 12
    """Sets of settings for each agent, the present one included."""
    tasks: tuple[str, ...] = ("compress_env/PruneVGG8Digits-v0",)
    """Gymnasium ids of tasks of compress_env."""
    seeds: tuple[int, ...] = (100, 101)
    """Seeds of the agent, from 100 on, with which every set is played on each task."""
    replay_seeds: tuple[int, ...] = (200, 201, 202, 203)
    """Fresh seeds, from 100 on, with which the best sets are played again."""
    n_evaluations: int = 100
    """Distinct networks whose accuracy a search may ask for."""
    n_episodes: int = 200
    """Most episodes of a search: one that repeats a network costs time, though no evaluation."""
    seed: int = 0
    """Seed of the sampler of sets."""
    jobs: int | None = None
    """Agents at a time; one for each core when not given."""
    out: Path | None = None
    """Folder, to begin or to go on with; a new one under runs/ when not given."""

    def check(self) -> None:
        """Check everything.

        Raises:
            ValueError: If a setting is wrong.
            ImportError: If a package is missing.
            FileNotFoundError: If data are not there.
        """
        import_optuna()
        check_choices(self, "agent", "tasks", "seeds", "replay_seeds")
        check_lowest(self, LOWEST_SEED, "seeds", "replay_seeds")
        check_lowest(self, 1, "n_trials", "n_evaluations", "n_episodes", "jobs")
        check_lowest(self, 0, "seed")
        if set(self.seeds) & set(self.replay_seeds):
            raise ValueError(f"expected replay_seeds that are not in seeds, got {self.seeds}")
        for agent in self.agent:
            if agent not in SPACES:
                raise ValueError(f"unknown agent {agent!r}; valid: {', '.join(SPACES)}")
            check_packages(agent)
            if not contains(SPACES[agent], stored_settings(agent)):
                raise ValueError(
                    f"the present settings of {agent} are outside the ranges of "
                    f"experiments/tune/spaces.py: {stored_settings(agent)}"
                )
        for task in self.tasks:
            trial.make_task(trial.Config(task=task))

    def studies(self, folder: Path) -> list[Job]:
        """Return what is searched for, by agent."""
        names = {field.name for field in dataclasses.fields(self)} & set(Job._fields)
        common = {name: getattr(self, name) for name in names - {"agent"}}
        return [Job(agent=agent, folder=folder, **common) for agent in self.agent]


def run(config: Config, console: Console) -> list[Study]:
    """Search, or go on, and write tables, report and figure.

    Args:
        config: The settings.
        console: Where progress and report go.

    Returns:
        What is known of each agent in the folder that has been searched to its end.

    Raises:
        ValueError: If a setting is wrong, or other than those the folder was made with.
        ImportError: If a package is missing.
        Interrupted: If somebody stops it.
    """
    config.check()
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    out = (config.out or Path("runs") / f"tune-{stamp}").absolute()
    check_tree(out)
    try:
        _work(config.studies(out), config.jobs or os.cpu_count() or 1, console)
    except (Interrupted, KeyboardInterrupt) as stop:
        stop.__notes__ = [f"go on with the same command and --out {out}"]  # not those of a trial
        raise
    there = [agent for agent in SPACES if study_path(out, agent).exists()]
    studies = [study for agent in there if (study := read_study(out, agent)).is_finished]
    _write(out, config, studies, console)
    return studies


def _work(jobs: list[Job], n_processes: int, console: Console) -> None:
    """Work on studies, each in one process."""
    if min(n_processes, len(jobs)) == 1:
        for job in jobs:
            tune_study.tune_agent(job, console)
        return
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(min(n_processes, len(jobs)), SPAWN, _begin)
    try:
        for done in as_completed([executor.submit(_work_in_child, job) for job in jobs]):
            done.result()
    finally:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        executor.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children


def _work_in_child(job: Job) -> None:
    tune_study.tune_agent(job, Console())


def _write(out: Path, config: Config, studies: list[Study], console: Console) -> None:
    report = format_report(studies)
    console.print(report, soft_wrap=True, markup=False, highlight=False)
    settings = dataclasses.asdict(config) | describe_run()
    texts = {
        "tune.md": report,
        "hyperparameters.json": format_hyperparameters(studies),
        "config.json": json.dumps(settings, indent=2, default=str) + "\n",
        "tuning.csv": tuning_rows(studies).to_csv(index=False),
        "chosen.csv": chosen_rows(studies).to_csv(index=False),
    }
    for name, text in texts.items():
        with replacing(out / name) as path:
            path.write_text(text, encoding="utf-8")
    with replacing(out / "tune.png") as path:
        draw_progress(studies).savefig(path, dpi=150)


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
