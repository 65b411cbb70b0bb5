"""Run agents on the suite's tasks and seeds at the same number of evaluations, and rank them.

`python -m experiments.benchmark --algo my_module:MyAgent random cma_es --out runs/mine` runs each
agent on every task from every seed (`experiments.trial`), in several processes, and writes
`leaderboard.csv`, `.md` and `.png`, and `anytime.png` where trials are confirmed. Agents that
always choose the same come first, then the searches, seed by seed. The same command goes on where
it was stopped and repeats nothing that is finished; other agents, tasks or seeds with the same
`--out` are added.

`python -m experiments.benchmark verify RUN` replays what a folder holds. `... table RUN [RUN ...]`
makes one leaderboard from several folders. `... best RUN [RUN ...] --out FILE` writes a table of
the best known accuracies, which scores are measured by, with what the runs have found.
`... replay TASK [TASK ...]` trains the best known allocations again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Annotated

import gymnasium as gym
import pandas as pd
import tyro
from matplotlib.figure import Figure
from rich.console import Console

from compress_env.suite import SUITE
from experiments.benchmark import replay as benchmark_replay
from experiments.benchmark import verify as benchmark_verify
from experiments.benchmark.confirmed import is_confirmed
from experiments.benchmark.confirmed_report import fill_page, leaderboard_of
from experiments.benchmark.curves import draw_anytime, draw_anytime_scores
from experiments.benchmark.report import draw_scores
from experiments.benchmark.table import (
    BEST_KNOWN,
    Reference,
    read_best_known,
    read_runs,
    select,
    update_best_known,
    write_best_known,
)
from experiments.common.checks import check_choices, check_lowest
from experiments.common.cli.command import ending_in_one_line
from experiments.common.cli.parsing import parse_command
from experiments.common.cli.say import say
from experiments.common.drawing.outputs import write_outputs
from experiments.search.entrants import ACCEPTED, SINGLE, can_act, check_stage
from experiments.search.names import full_name, short_name
from experiments.search.observing import check_shaping, sees_context
from experiments.sweep.cells import Cell, make_cell
from experiments.sweep.folder import SweepFolder
from experiments.sweep.pools import Outcome
from experiments.trial.trial import Config as Trial
from experiments.trial.trials import run_trials, save_networks, with_stored

__all__ = ["BestConfig", "Config", "TableConfig", "find_best", "main", "make_table", "run"]

DRAWING = ("sbpf", "greedy", "portfolio")
"""Agents that always choose the same of one seed, but try networks for that under drawn orders."""
OF_A_STAGE = "Rules of pruning are not run on tasks of quantization, nor those of bits on others."
KNOWN_COPY = "best_known.csv"
ANYTIME = "anytime.png"


@dataclass(frozen=True)
class Config:
    """Settings of a benchmark."""

    algo: Annotated[tuple[str, ...], tyro.conf.arg(help=f"Agents: {ACCEPTED}. {OF_A_STAGE}")] = (
        *SINGLE,
        "random",
        "cma_es",
    )
    task: tuple[str, ...] = ()
    """Tasks, with or without their namespace; all of the suite when not given."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the agents; where orders are drawn, agents that follow from the network alone are
    run from the first one."""
    evaluations: int = 300
    """Distinct networks whose accuracy a trial may ask for."""
    n_envs: int | None = None
    """Environments that each search steps at once, synchronously, see `experiments.trial`; agents
    that always choose the same have one."""
    shaping: float = 0.0
    """Weight of the saliency that decisions lose in the reward of learners around a rule, see
    `experiments.trial`; others have none."""
    jobs: int | None = None
    """Trials at a time; one for each core when not given."""
    out: Path | None = None
    """Folder, to begin or to go on with; a new one under runs/ when not given."""
    best_known: Path = BEST_KNOWN
    """Table of the best known accuracies."""
    data_root: Path | None = None
    """Folder of the data sets' files."""

    def trials(self) -> list[Trial]:
        """Make the settings of all trials.

        Returns:
            Agents that always choose the same first, then the others, seed by seed.

        Raises:
            ValueError: If one is wrong.
        """
        check_choices(self, "algo", "seeds")
        check_lowest(self, 1, "evaluations", "n_envs", "jobs")
        root = None if self.data_root is None else self.data_root.absolute()
        if self.shaping and not any(map(sees_context, self.algo)):
            check_shaping(self.algo[0], self.shaping)
        tasks = self.task or tuple(task.id for task in SUITE)
        trials = [
            Trial(
                algo,
                task,
                seed,
                evaluations=self.evaluations,
                n_envs=None if algo in SINGLE else self.n_envs,
                shaping=self.shaping if sees_context(algo) else 0.0,
                data_root=root,
            ).complete()
            for task in tasks
            for algo in self.algo
            for seed in self.seeds
        ]
        first = min(self.seeds)
        played = [
            t for t in trials if can_act(t.algo, t.task) and (t.seed == first or _has_seeds(t))
        ]
        for algo in dict.fromkeys(self.algo):
            if algo not in {trial.algo for trial in played}:
                check_stage(algo, full_name(tasks[0]))
        return sorted(played, key=lambda t: (0, 0) if t.algo in SINGLE else (1, t.seed))


def _has_seeds(trial: Trial) -> bool:
    """Tell whether another seed of an agent may come to something else.

    Where no order is drawn all agents have all seeds, as they always had.
    """
    spec = gym.registry.get(trial.task)
    is_noisy = spec is not None and spec.kwargs.get("transition_noise", False)
    return not is_noisy or trial.algo not in SINGLE or trial.algo in DRAWING


@dataclass(frozen=True)
class TableConfig:
    """Settings of a leaderboard made from folders."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of benchmarks."""
    task: tuple[str, ...] = ()
    """Tasks that count; all when not given."""
    out: Path | None = None
    """Folder for leaderboard.csv, .md and .png; standard output when not given."""
    page: Path | None = None
    """Markdown page whose part between two comments, leaderboard and end of leaderboard, the
    leaderboard takes the place of."""
    best_known: Path = BEST_KNOWN
    """Table of the best known accuracies."""


@dataclass(frozen=True)
class BestConfig:
    """Settings of a new table of the best known accuracies."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of benchmarks, with trials of `uniform` on each task that is new in the table."""
    out: Path
    """File to write."""
    best_known: Path = BEST_KNOWN
    """Table to start from."""


def run(config: Config, console: Console) -> list[Outcome]:
    """Run a benchmark, or go on with one, and write the leaderboard.

    Args:
        config: The settings.
        console: Where progress and the leaderboard go.

    Returns:
        The trials that have failed.

    Raises:
        ValueError: If a setting is wrong; nothing has been written then.
        FileNotFoundError: If data are not there.
        Interrupted: If somebody stops it.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    path = (config.out or Path("runs") / f"benchmark-{stamp}").absolute()
    folder = SweepFolder(path, rows_suffice=True)
    known = read_best_known(config.best_known)
    cells = with_stored(folder, [make_cell("trial", trial) for trial in config.trials()])
    _check_alike(config, cells)
    save_networks(cells, folder, console)
    failed = run_trials(cells, folder, console, jobs=config.jobs)
    if len(failed) < len(cells):
        write_best_known(folder.path / KNOWN_COPY, known)
        _write_leaderboard(folder.path, read_runs([folder.path]), known, console)
    return failed


def _check_alike(config: Config, cells: Sequence[Cell]) -> None:
    """Check that a folder holds nothing that a leaderboard could not take.

    Raises:
        ValueError: If trials have other evaluations, episodes, keywords of the task or shaping, or
            are for several budgets.
    """
    expected = {
        "evaluations": config.evaluations,
        "episodes": None,
        "env_kwargs": "{}",
        "shaping": config.shaping,
        "budgets": (),
    }
    for cell, (name, value) in product(cells, expected.items()):
        if name == "shaping" and not sees_context(cell.config.algo):
            continue
        found = getattr(cell.config, name)
        if found != value:
            raise ValueError(
                f"{str(config.out)!r} holds trials with {name}={found!r}, got {value!r}; "
                "choose another folder"
            )


def _write_leaderboard(
    out: Path, trials: pd.DataFrame, known: dict[str, Reference], console: Console
) -> None:
    table, text = leaderboard_of(trials, known)
    figures = _confirmed_figures(trials, known) if is_confirmed(trials) else {}
    write_outputs(
        out,
        "leaderboard",
        text,
        console,
        tables={"leaderboard.csv": table},
        figures=figures or {"leaderboard.png": draw_scores(table)},
    )


def _confirmed_figures(trials: pd.DataFrame, known: Mapping[str, Reference]) -> dict[str, Figure]:
    names = {task: re.sub(r"[^-.0-9A-Za-z]", "_", short_name(task)) for task in set(trials["task"])}
    curves = {
        f"anytime-{names[task]}.png": draw_anytime(rows)
        for task, rows in trials.groupby("task", sort=False)
    }
    return {ANYTIME: draw_anytime_scores(trials, known), **curves}


def make_table(config: TableConfig, console: Console) -> None:
    """Make a leaderboard from one or several folders.

    Raises:
        ValueError: If they hold no trials, trials that do not go together, or none of a task.
    """
    trials = select(read_runs(config.runs), task=config.task)
    known = read_best_known(config.best_known)
    if config.out is None:
        say(console, leaderboard_of(trials, known)[1])
    else:
        config.out.mkdir(parents=True, exist_ok=True)
        _write_leaderboard(config.out, trials, known, console)
    if config.page is not None:
        figure = None if config.out is None else config.out / ANYTIME
        fill_page(config.page, leaderboard_of(trials, known)[1], figure)


def find_best(config: BestConfig, console: Console) -> None:
    """Write a table of the best known accuracies.

    Raises:
        ValueError: If the folders hold no trials, or none of `uniform` on a task that is new.
    """
    known = read_best_known(config.best_known)
    updated = update_best_known(known, read_runs(config.runs))
    for task, reference in updated.items():
        if reference != known.get(task):
            say(console, f"{task}: {reference.best} by {reference.found_by}")
    write_best_known(config.out, updated)


COMMANDS: dict[str, Callable[[list[str]], Sequence[Outcome] | None]] = {
    "verify": benchmark_verify.main,
    "replay": benchmark_replay.main,
    "table": lambda rest: make_table(parse_command(TableConfig, rest, command="table"), Console()),
    "best": lambda rest: find_best(parse_command(BestConfig, rest, command="best"), Console()),
}


def main() -> None:
    """Run from the command line; exit with 1 if a trial has failed."""
    name, rest = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    with ending_in_one_line():
        if name in COMMANDS:
            failed = COMMANDS[name](rest)
        else:
            failed = run(parse_command(Config, sys.argv[1:], __doc__), Console())
    if failed:
        sys.exit(1)
