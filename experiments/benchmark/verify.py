"""Replay what a benchmark's folder holds, and compare it with what is written there.

`python -m experiments.benchmark verify RUN` makes each task from the network that the trials have
started from, takes the actions of every trial's best episode and final policy again, trains what it
stands by under all orders of the confirmation, and compares accuracies, costs and returns with
`sweep.csv`; compares `sweep.csv` with the trials' own tables and
episodes where these are there too; and makes the leaderboard again. On the machine of the run
everything must be equal to the last digit. On another one sums are rounded in another order,
fine-tuning takes another course, and accuracies differ by some images: `--tolerance 0.02` allows
for that. Where a network is not the one that the recipe makes here, or scores are measured by other
accuracies than the package's `best_known.csv` has, a line says so, which is no mismatch. What the
final policy chose is taken as it is: that its actions lead to what is stored is checked, not that
an agent would learn to take them. `--task`, `--algo` and `--seeds` choose trials to be replayed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import tyro
from rich.console import Console

from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.networks.checkpoints import default_data_root
from experiments.benchmark.confirmed_report import leaderboard_of
from experiments.benchmark.replay import Confirmed, agree, order_in, replay_confirmation
from experiments.benchmark.table import (
    BEST_KNOWN,
    read_best_known,
    read_runs,
    select,
)
from experiments.common.cli.parsing import parse_command
from experiments.common.cli.say import say
from experiments.common.stored import parse, read_table
from experiments.search.entrants import SINGLE
from experiments.search.names import task_id
from experiments.search.playing import play_actions
from experiments.sweep.cells import Cell
from experiments.sweep.folder import SweepFolder
from experiments.trial.confirmation import is_confirmed_number
from experiments.trial.networks import network_path, stored_digest, weights_digest
from experiments.trial.nomination import searched
from experiments.trial.table import columns_of_best
from experiments.trial.trial import Config as Trial
from experiments.trial.trial import make_task
from experiments.trial.trials import NUMBERS

__all__ = ["Config", "main", "verify"]

Row = dict[Hashable, Any]


@dataclass(frozen=True)
class Config:
    """Settings of a verification."""

    run: tyro.conf.Positional[Path]
    """Folder of a benchmark."""
    task: tuple[str, ...] = ()
    """Tasks whose trials are replayed; all when not given."""
    algo: tuple[str, ...] = ()
    """Agents whose trials are replayed; all when not given."""
    seeds: tuple[int, ...] = ()
    """Seeds whose trials are replayed; all when not given."""
    tolerance: float = 0.0
    """Largest difference allowed, as a fraction of a number where that is above 1."""
    data_root: Path | None = None
    """Folder of the data sets' files; that of this machine when not given, whatever the run's."""
    recipes: bool = True
    """Whether to make each task's network by its recipe too, to compare it with the folder's; one
    that has not been made here before is trained for that, LeNet-5 on MNIST for minutes."""


def verify(config: Config, console: Console) -> list[str]:
    """Replay a benchmark.

    Args:
        config: The settings.
        console: Where progress goes.

    Returns:
        A line for each mismatch.

    Raises:
        ValueError: If the folder is of something else, or a task cannot be made: those of other
            packages would be made by code that a file names.
        FileNotFoundError: If data are not there.
    """
    if not 0.0 <= config.tolerance < math.inf:
        raise ValueError(f"tolerance must be 0 or more, got {config.tolerance}")
    torch.set_num_threads(1)  # as when the trials were run
    trials = read_runs([config.run])
    chosen = select(trials, task=config.task, agent=config.algo, seed=config.seeds)
    for task in dict.fromkeys(chosen["task"]):
        task_id(task)

    for note in _compare_data_roots(config, SweepFolder(config.run).stored_cells()):
        say(console, note)
    found = []
    for task in dict.fromkeys(chosen["task"]):
        rows = chosen[chosen["task"] == task]
        if config.recipes and _has_another_network(config, task):
            say(console, f"{task}: the network is not the one that is trained here")
        # What stands after the plus in an agent's name says what its actions are about.
        for _, mine in rows.groupby(rows["agent"].str.partition("+")[2], sort=False):
            env, confirmed = _make_task(config, task, mine["agent"].iloc[0]), Confirmed({})
            for row in mine.to_dict("records"):
                folder = config.run / row["cell"]
                lines = [
                    *_replay(env, row, config.tolerance),
                    *replay_confirmation(env, row, folder, config.tolerance, confirmed),
                    *_check_files(folder, env, row),
                ]
                found += [f"{folder.name}: {line}" for line in lines]
        say(console, f"{task}: {len(rows)} trials replayed")
    for note in _compare_references(config.run / "best_known.csv", set(chosen["task"])):
        say(console, note)
    return [*found, *_check_leaderboard(config.run, trials)]


def _compare_data_roots(config: Config, cells: Sequence[Cell]) -> list[str]:
    """Say which folder the data are taken from, where the trials had another one."""
    used = {cell.config.data_root for cell in cells} - {config.data_root, None}
    mine = config.data_root or default_data_root()
    return [
        f"the trials were run with data in {str(theirs)!r}, they are verified with those in "
        f"{str(mine)!r}; --data-root names another folder"
        for theirs in sorted(used)
    ]


def _make_task(config: Config, task: str, algo: str) -> LayerwiseCompressionEnv:
    """Make a task as an agent has it, with the verifier's own data, from the folder's network."""
    network = network_path(config.run, task)
    options = {} if network is None else {"checkpoint": network}
    return make_task(Trial(algo, task, data_root=config.data_root), **options)


def _has_another_network(config: Config, task: str) -> bool:
    """Tell whether a folder's network is not the one that its recipe makes here."""
    stored = stored_digest(config.run, task)
    own = make_task(Trial(task=task, data_root=config.data_root)).task.model
    return stored not in (None, weights_digest(own))


def _replay(env: LayerwiseCompressionEnv, row: Row, tolerance: float) -> Iterator[str]:
    """Take the actions of a trial again; yield what differs."""
    for kind, order in (("final_actions", "final_noise_seed"), ("actions", "noise_seed")):
        actions = [float(action) for action in row[kind].split()]
        try:
            episode = play_actions(env, actions, order_in(row, order))
        except ValueError as error:
            yield f"{kind} cannot be taken: {error}"
            continue
        if kind == "actions":
            now = columns_of_best(env, episode)
        else:
            now = {"final_accuracy": episode.accuracy, "final_reward": episode.reward}
        yield from (
            f"{column} is {row[column]!r}, its replay gives {value!r}"
            for column, value in now.items()
            if not agree(row[column], value, tolerance)
        )


def _check_files(folder: Path, env: LayerwiseCompressionEnv, row: Row) -> list[str]:
    """Compare a row of `sweep.csv` with the trial's own files, where they are."""
    if not folder.is_dir():
        return []
    try:
        (own,) = _read(folder / "table.csv")
        episodes = _read(folder / "episodes.csv")
        summary = _summarize(episodes, row, env)
    except (OSError, ValueError, KeyError) as error:
        return [f"its files cannot be read: {error!r}"]
    lines = [
        f"{name} is {row[name]!r} in sweep.csv, {value!r} by {file}"
        for file, values in (("table.csv", own), ("episodes.csv", summary))
        for name, value in values.items()
        if not agree(row[name], value)
    ]
    limit = int(row["limit"])
    if env.transition_noise and row["agent"] not in SINGLE:
        limit = searched(limit)
    if len(episodes) > 1 and episodes[-2]["n_evaluations"] >= limit:
        lines.append(f"it went on after its {limit} evaluations")
    return lines


def _read(path: Path) -> list[Row]:
    """Read rows; what are numbers in a trial's table or episodes become such."""
    table = read_table(path)
    confirmed = filter(is_confirmed_number, map(str, table))
    names = [*NUMBERS, "q_settled", "index", "accuracy", *confirmed]
    return parse(path, table, dict.fromkeys(names, float | None)).to_dict("records")


def _summarize(episodes: list[Row], row: Row, env: LayerwiseCompressionEnv) -> dict[str, Any]:
    """Return what a trial's table must say, from the rows of `episodes.csv`."""
    fresh = row.get("n_fresh", 0.0)
    n_fresh = 0 if fresh != fresh else int(fresh)
    finished = [episode for episode in episodes if not agree(episode["accuracy"], None)]
    best = max(finished, key=lambda e: (e["reward"], e["accuracy"], -e["cost"], -e["index"]))
    summary = {
        "validation_accuracy": best["accuracy"],
        "reward": best["reward"],
        "cost": best["cost"],
        "actions": best["actions"],
        "best_reward": best["reward"],
        "n_episodes": len(episodes),
        "n_evaluations": episodes[-1]["n_evaluations"] + n_fresh,
    }
    if env.transition_noise:
        summary["noise_seed"] = order_in(best, "noise_seed")
    # What is evaluated before the first episode, and where an episode fails, is not in the rows.
    if row["agent"] not in SINGLE and len(finished) == len(episodes):
        n_networks = _count_networks(episodes, env.reward_at, are_drawn=env.transition_noise)
        summary["n_evaluations"] = env.prior_evaluations + n_networks + n_fresh
    return summary


def _count_networks(episodes: list[Row], reward_at: str, *, are_drawn: bool = False) -> int:
    """Return how many distinct networks were evaluated: one after each layer, or one each.

    Args:
        episodes: Rows of `episodes.csv`.
        reward_at: `layer` or `episode`.
        are_drawn: Whether orders are drawn, each of which makes another network.
    """
    networks = set()
    for episode in episodes:
        values = [value for name, value in episode.items() if str(name).startswith("value:")]
        first = 1 if reward_at == "layer" else len(values)
        order = order_in(episode, "noise_seed") if are_drawn else None
        networks |= {(order, *values[:n]) for n in range(first, len(values) + 1)}
    return len(networks)


def _compare_references(path: Path, tasks: set[str]) -> list[str]:
    """Say which tasks' scores are measured by other accuracies than those of the package."""
    if not path.exists():
        return []
    stored, own = read_best_known(path), read_best_known(BEST_KNOWN)
    return [
        f"{task}: scores are measured by {stored[task].uniform:.4f} and {stored[task].best:.4f}, "
        f"now known: {own[task].uniform:.4f} and {own[task].best:.4f}"
        for task in sorted(tasks & stored.keys() & own.keys())
        if stored[task][:2] != own[task][:2]
    ]


def _check_leaderboard(run: Path, trials: pd.DataFrame) -> list[str]:
    """Make the leaderboard again, where there is one."""
    path, text = run / "leaderboard.csv", run / "leaderboard.md"
    if not path.exists():
        return []
    known = read_best_known(run / "best_known.csv")
    table, now = leaderboard_of(trials, known)
    lines = _differ(table, path)
    if text.exists() and text.read_text("utf-8") != now:
        lines.insert(0, "leaderboard.md: says something else than the trials lead to")
    return lines


def _differ(table: pd.DataFrame, path: Path) -> list[str]:
    """Compare a leaderboard with the one in a file."""
    then_table = read_table(path, ["agent"])
    numbers = {str(name): float | None for name in then_table if name != "agent"}
    now, then = (
        {str(row["agent"]): row for row in rows.to_dict("records")}
        for rows in (table, parse(path, then_table, numbers))
    )
    if now.keys() != then.keys() or set(table) != set(then_table):
        return ["leaderboard.csv: has other agents or columns than the trials lead to"]
    return [
        f"leaderboard.csv: {name} of {agent} is {then[agent][name]!r}, the trials lead to {value!r}"
        for agent, row in now.items()
        for name, value in row.items()
        if not agree(then[agent][name], value, 1e-12)
    ]


def main(arguments: list[str]) -> None:
    """Run from the command line; exit with 1 and a line for each mismatch, if there is any."""
    config = parse_command(Config, arguments, __doc__, "verify")
    mismatches = verify(config, Console())
    if mismatches:
        sys.exit("\n".join([*mismatches, f"{len(mismatches)} mismatches"]))
    sys.stdout.write("everything is as it was stored\n")
