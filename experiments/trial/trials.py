"""Many trials in one folder: run as cells of a sweep, and read again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import pandas as pd
from rich.console import Console

from experiments.common.checks import read_object
from experiments.common.cli.command import Interrupted
from experiments.common.cli.say import say
from experiments.common.stored import own_name, parse, read_table
from experiments.sweep.cells import Cell
from experiments.sweep.cells_work import stored_of, work_on
from experiments.sweep.folder import SweepFolder
from experiments.sweep.pools import LocalPool, Outcome
from experiments.trial import networks
from experiments.trial.confirmation import is_confirmed_number
from experiments.trial.networks import stored_digest, weights_digest
from experiments.trial.table import OF_BEST
from experiments.trial.trial import Config as Trial
from experiments.trial.trial import make_task

__all__ = [
    "NUMBERS",
    "TOLERANCE",
    "read_trials",
    "run_trials",
    "save_networks",
    "with_stored",
]

RETRIES = 3
TOLERANCE = 1e-9
"""What rewards that were summed in another order may differ by."""
STORE = "transitions.sqlite"
"""File in the folder that keeps what steps lead to."""
NUMBERS = (
    *OF_BEST,
    "test_accuracy",
    "cost_fraction",
    "best_reward",
    "final_reward",
    "final_accuracy",
    "q_overestimation",
    "n_evaluations",
    "n_episodes",
    "seconds",
)
"""Columns of a trial's table that are numbers."""


def with_stored(folder: SweepFolder, cells: Sequence[Cell]) -> list[Cell]:
    """Check cells of trials, and add those that the folder holds already.

    Raises:
        ValueError: If a setting is wrong, two trials are the same, or the folder is of something
            else, holds one of the trials with other settings, one of the same agent with other
            hyper-parameters, or an unfinished one of an agent that only a command line may name.
    """
    names = [cell.name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"expected trials that differ, got {twice[0]} twice")
    for cell in cells:
        cell.config.check()
    stored = stored_of("trial", folder)
    named = {value for cell in cells for value in (cell.config.algo, cell.config.task)}
    others = folder.trusted([cell for cell in stored if cell.name not in names], named)
    both = [*cells, *others]
    used = {cell.config.algo: cell.config.settings for cell in stored}
    for cell in cells:
        then = used.get(cell.config.algo, cell.config.settings)
        if then != cell.config.settings:
            raise ValueError(
                f"{str(folder.path)!r} was made with hyper-parameters {then} of "
                f"{cell.config.algo}, got {cell.config.settings}"
            )
    folder.check(both)
    return both


def _share(folder: SweepFolder, cell: Cell) -> Cell:
    """Let a trial share with others what steps lead to, where each step is scored.

    Elsewhere the scored networks, of deep walks, hardly ever repeat, and nowhere those of an order
    that is drawn.
    """
    given = gym.spec(cell.config.task).kwargs | read_object(cell.config, "env_kwargs")
    is_shared = given.get("reward_at", "layer") == "layer" and not given.get("transition_noise")
    if cell.config.store is not None or not is_shared:
        return cell
    return cell._replace(config=replace(cell.config, store=folder.path / STORE))


def run_trials(
    cells: Sequence[Cell], folder: SweepFolder, console: Console, *, jobs: int | None
) -> list[Outcome]:
    """Run the trials that are not finished, in processes of this machine.

    Args:
        cells: From `with_stored`.
        folder: Where they go.
        console: Where progress goes.
        jobs: Trials at a time; one for each core when None.

    Returns:
        The trials that have failed.

    Raises:
        Interrupted: If somebody stops them.
    """
    pool = LocalPool(jobs=jobs or os.cpu_count() or 1, retries=RETRIES)
    try:
        return work_on(pool, cells, folder, console, prepare=partial(_share, folder))
    except (Interrupted, KeyboardInterrupt) as stop:
        stop.add_note(f"go on with the same command and --out {folder.path}")
        raise


def save_networks(cells: Sequence[Cell], folder: SweepFolder, console: Console) -> None:
    """Write the network that each task starts from; trains those that have not been trained yet.

    Raises:
        ValueError: If a task cannot be made, or starts here from another network than the trials
            that the folder holds; nothing has been written then.
        FileNotFoundError: If data are not there; nothing has been written then.
    """
    models = {}
    waiting = [cell for cell in cells if not folder.finished(cell.name)]
    for task, config in {cell.config.task: cell.config for cell in waiting}.items():
        model = make_task(replace(config, store=None)).task.model
        stored = stored_digest(folder.path, task)
        if stored is None:
            say(console, f"{task}: the network before compression")
            models[task] = model
        elif stored != weights_digest(model):
            raise ValueError(
                f"{task} starts from another network here than the trials in {str(folder.path)!r}; "
                "choose another folder"
            )
    with folder.open(cells):
        networks.save_networks(folder.path, models)


def read_trials(path: Path) -> pd.DataFrame:
    """Read the finished trials of a folder.

    Returns:
        One row for each, with `agent`, `task`, `seed`, `cell`, the columns of a trial's table
        (`NUMBERS`, `q_settled` and those that only confirmed trials have, as float64, exactly as
        written; NaN where there is none),
        `limit`, the evaluations that it was allowed,
        NaN for no limit, `env_kwargs`, what it has changed in the task, a JSON object, and
        `shaping`, its weight in a learner's reward.

    Raises:
        ValueError: If the folder is not of trials, or none is finished.
    """
    try:
        file = path / "sweep.csv"
        table = read_table(file, ["agent", "task", "seed", "cell", *NUMBERS])
        if "q_settled" not in table:  # earlier trials have not looked
            table["q_settled"] = None
        numbers = (*NUMBERS, "q_settled", *filter(is_confirmed_number, map(str, table)))
        table = parse(file, table, dict.fromkeys(numbers, float | None) | {"seed": int})
        by_name = {cell.name: cell for cell in SweepFolder(path).stored_cells()}
        configs = [_settings_of(row, by_name) for row in table.to_dict("records")]
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} holds no finished trials: {error}") from None
    return table.astype(dict.fromkeys(numbers, float)).assign(
        seed=table["seed"].astype(int),
        limit=pd.Series([config.evaluations for config in configs], dtype=float),
        env_kwargs=[config.env_kwargs for config in configs],
        shaping=[config.shaping for config in configs],
    )


def _settings_of(row: Mapping[Any, Any], cells: Mapping[str, Cell]) -> Trial:
    """Return the settings of the trial that a row is of.

    Raises:
        ValueError: If there are none, or those of another trial.
    """
    cell = cells.get(own_name(row["cell"]))
    if cell is None or not isinstance(cell.config, Trial):
        raise ValueError(f"sweep.json tells of no trial {row['cell']}")
    for name, value in cell.columns().items():
        if name in ("agent", "task", "seed") and row[name] != value:
            raise ValueError(
                f"{row['cell']} has {name}={row[name]!r} in sweep.csv, {value!r} in sweep.json"
            )
    return cell.config
