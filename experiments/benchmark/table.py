"""Leaderboards: scores of agents over tasks and seeds, from the trials in one or several folders.

The score of a trial is made of the validation accuracy of the best network that it found, or, where
orders are drawn, of the confirmed test accuracy of what it stands by
(`experiments.benchmark.confirmed`): 0 for that of the same rate or number of bits everywhere
(`uniform`), 1 for the best known. Both stand in a stored table, `best_known.csv`, which nothing
changes but `python -m experiments.benchmark best`; a trial that finds a better network has a score
above 1. What is shown of an agent is the interquartile mean over tasks and seeds, with an interval
that resamples the seeds of each task (Agarwal et al. 2021, arXiv 2108.13264).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from compress_env.files import replacing
from compress_env.names import check_name
from compress_env.suite import SUITE, SUITE_CIFAR, SUITE_V0
from experiments.common.intervals import (
    NOTHING,
    Interval,
    improvement_interval,
    iqm_interval,
)
from experiments.common.stored import parse, read_table
from experiments.search.names import short_name
from experiments.trial.confirmation import budgets_in
from experiments.trial.networks import stored_digest
from experiments.trial.trials import read_trials

__all__ = [
    "BEST_KNOWN",
    "OPPONENTS",
    "Reference",
    "best_found",
    "improvement",
    "make_leaderboard",
    "normalize",
    "read_best_known",
    "read_runs",
    "select",
    "update_best_known",
    "write_best_known",
]

OPPONENTS = {"random": "random search", "cma_es": "CMA-ES"}
"""What a learner must beat, at the same number of evaluations."""
BEST_KNOWN = Path(__file__).with_name("best_known.csv")
"""The table that comes with the package."""


class Reference(NamedTuple):
    """What scores of a task are measured by."""

    uniform: float
    """Accuracy that stands for a score of 0: on validation images, confirmed on test images."""
    best: float
    """Accuracy of the same kind that stands for a score of 1."""
    found_by: str
    """Who found it, and with how many evaluations."""
    values: str = ""
    """The best allocation, a JSON object with the pruning rate or bits of each layer, by which
    anyone can make it again; empty on tasks without confirmation."""
    validation: float = math.nan
    """What it was chosen by where test images measure `best`: its confirmed accuracy on validation
    images; NaN elsewhere."""

    @property
    def has_room(self) -> bool:
        """Whether anything better than uniform is known; there are no scores otherwise."""
        return self.best > self.uniform

    def beats(self, other: Reference) -> bool:
        """Whether what stands for a score of 1 is better by what it was chosen by."""
        if math.isnan(self.validation) or math.isnan(other.validation):
            return self.best > other.best
        return self.validation > other.validation


def read_best_known(path: Path) -> dict[str, Reference]:
    """Read the table of the best known accuracies, by task; those of earlier versions too.

    Raises:
        ValueError: If the file is no such table.
    """
    try:
        kinds = {"task": str, "uniform": float, "best": float, "found_by": str}
        table = parse(path, read_table(path, kinds), kinds)
        chosen_by = pd.to_numeric(table.get("validation", math.nan))
        table = table[[*kinds]].assign(values=table.get("values", ""), validation=chosen_by)
        known = {task: Reference(*rest) for task, *rest in table.itertuples(index=False)}
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is no table of best known accuracies: {error}") from None
    for task, reference in known.items():
        if not 0.0 <= reference.uniform <= reference.best <= 1.0:
            raise ValueError(
                f"{str(path)!r}: expected 0 <= uniform <= best <= 1 for {task}, got "
                f"{reference.uniform} and {reference.best}"
            )
    return known


def write_best_known(path: Path, known: Mapping[str, Reference]) -> None:
    """Write the table that `read_best_known` reads."""
    rows = [{"task": task} | reference._asdict() for task, reference in known.items()]
    with replacing(path) as temporary:
        pd.DataFrame(rows, columns=["task", *Reference._fields]).to_csv(temporary, index=False)


def update_best_known(known: Mapping[str, Reference], trials: pd.DataFrame) -> dict[str, Reference]:
    """Return the table with what the trials have found.

    Args:
        known: The table so far. What it holds gives way to what is better only.
        trials: From `read_runs`.

    Raises:
        ValueError: If a task that is not in the table has no trial of `uniform`.
    """
    updated = dict(known)
    for task in dict.fromkeys(trials["task"]):
        rows = trials[trials["task"] == task].reset_index(drop=True)
        found = best_found(rows)
        if task in updated:
            old = updated[task]
            updated[task] = found._replace(uniform=old.uniform) if found.beats(old) else old
        elif math.isnan(found.uniform):
            raise ValueError(f"expected a trial of uniform on {task}, got none")
        else:
            updated[task] = found
    return updated


def best_found(trials: pd.DataFrame) -> Reference:
    """Return the best that the trials of a task have found, and what uniform has there.

    Where they are confirmed, the nominee with the highest confirmed accuracy on validation images
    is taken, so that its accuracy on test images is that of no chosen maximum.

    Args:
        trials: Of one task.
    """
    budgets = budgets_in(trials)
    confirmed = [f"confirmed_{budget}" for budget in budgets]
    measured_by = confirmed or ["validation_accuracy"]
    chosen_by = [f"confirmed_validation_{budget}" for budget in budgets] or measured_by
    accuracies = trials[chosen_by].to_numpy(float)
    row, place = np.unravel_index(np.nanargmax(accuracies), accuracies.shape)
    top = trials.iloc[int(row)]
    uniform = trials.loc[trials["agent"] == "uniform", measured_by[-1]].to_numpy(float)
    base, best = uniform[0] if len(uniform) else math.nan, float(top[measured_by[place]])
    n_evaluations = min([*budgets[place : place + 1], int(top["n_evaluations"])])
    return Reference(
        float(base),
        max(best, float(base)) if len(uniform) else best,
        f"{top['agent']}, seed {top['seed']}, {n_evaluations} evaluations",
        str(top[f"confirmed_values_{budgets[place]}"]) if budgets else "",
        float(accuracies[row, place]) if budgets else math.nan,
    )


def read_runs(folders: Sequence[Path]) -> pd.DataFrame:
    """Read the trials of several folders into one table, as `read_trials` returns it.

    Tasks come in the order of the suite, whatever they were run in, and others after them.

    Raises:
        ValueError: If a folder holds no trials, a trial is there twice, trials were allowed
            different numbers of evaluations or had no limit, an agent had other shaping in some, a
            task is not as registered, starts
            from different networks, or is confirmed where another is not.
    """
    if not folders:
        raise ValueError("expected at least one run folder, got none")
    tables = [read_trials(folder) for folder in folders]
    trials = pd.concat(tables, ignore_index=True)
    for row in trials[trials["env_kwargs"] != "{}"].head(1).itertuples():
        raise ValueError(f"expected {row.task} as it is registered, got it with {row.env_kwargs}")
    limits = trials["limit"].unique().tolist()
    if trials["limit"].isna().any():
        raise ValueError("expected trials of a number of evaluations, got one without")
    if len(limits) > 1:
        raise ValueError(f"trials must be allowed the same evaluations, got {sorted(limits)}")
    for agent, weights in trials.groupby("agent")["shaping"].unique().items():
        if len(weights) > 1:
            raise ValueError(
                f"trials of {agent} must have the same shaping, got {sorted(weights.tolist())}"
            )
    repeated = trials[trials.duplicated(["agent", "task", "seed"])]
    if not repeated.empty:
        agent, task, seed = repeated.iloc[0][["agent", "task", "seed"]]
        raise ValueError(f"expected each trial once, got {agent} on {task}, seed {seed}, twice")
    _check_confirmed(trials)
    _check_networks(folders, tables)
    places = {task.id: place for place, task in enumerate((*SUITE, *SUITE_CIFAR, *SUITE_V0))}
    order = trials["task"].map(lambda task: places.get(task, len(places)))
    return trials.iloc[order.argsort(kind="stable")].reset_index(drop=True)


def _check_confirmed(trials: pd.DataFrame) -> None:
    """Check that all tasks are confirmed, or none is."""
    budgets = budgets_in(trials)
    if not budgets:
        return
    last = trials[f"confirmed_{budgets[-1]}"]
    for task in trials.loc[last.isna(), "task"].head(1):
        raise ValueError(
            f"{task} is without confirmation: it goes into no leaderboard with "
            f"{trials.loc[last.notna(), 'task'].iloc[0]}"
        )


def _check_networks(folders: Sequence[Path], tables: Sequence[pd.DataFrame]) -> None:
    """Check that each task starts from one network in all folders that have it."""
    first: dict[str, tuple[str, Path]] = {}
    for folder, trials in zip(folders, tables, strict=True):
        for task in trials["task"].unique():
            digest = stored_digest(folder, task)
            if digest is not None and first.setdefault(task, (digest, folder))[0] != digest:
                raise ValueError(
                    f"{task} starts from different networks in {str(first[task][1])!r} and "
                    f"{str(folder)!r}"
                )


def select(trials: pd.DataFrame, **chosen: Sequence[Any]) -> pd.DataFrame:
    """Return some of the trials.

    Args:
        trials: From `read_runs`.
        chosen: Values by column: tasks with or without their namespace, agents, seeds. No value
            stands for all.

    Raises:
        ValueError: If there is no trial of one of them.
    """
    for column, values in chosen.items():
        found = dict.fromkeys(trials[column])
        names = {short_name(str(value)): value for value in found}
        wanted = [
            names[check_name(f"{column} of a trial", short_name(str(value)), names)]
            for value in values
        ]
        if wanted:
            trials = trials[trials[column].isin(wanted)].reset_index(drop=True)
    return trials


def normalize(accuracies: ArrayLike, reference: Reference) -> NDArray[np.float64]:
    """Return scores: 0 for the accuracy of `uniform`, 1 for the best known; any shape.

    Raises:
        ValueError: If the two are the same.
    """
    if not reference.has_room:
        raise ValueError(f"expected a best above uniform, got {reference.best} for both")
    width = reference.best - reference.uniform
    scores: NDArray[np.float64] = (np.asarray(accuracies, np.float64) - reference.uniform) / width
    return scores


def make_leaderboard(trials: pd.DataFrame, known: Mapping[str, Reference]) -> pd.DataFrame:
    """Make the leaderboard, the best score first.

    Args:
        trials: From `read_runs`.
        known: Tasks that are not in it, or without room above uniform, do not count.

    Returns:
        One row per agent: `agent`, `score`, `low`, `high`, `tasks` and `trials` that count; for
        each of `OPPONENTS` the probability of doing better than it, `over_OPPONENT`, and its
        interval, `..._low` and `..._high`; mean `test_accuracy` over all trials, mean
        `n_evaluations`, sum of `seconds`, and for each task the mean over seeds of the best
        `validation:TASK` and of the `test:TASK` accuracy.
    """
    by_agent = {str(agent): mine for agent, mine in trials.groupby("agent", sort=False)}
    rows = [
        _row(agent, mine, known) | _improvements(agent, by_agent) | _accuracies(mine)
        for agent, mine in by_agent.items()
    ]
    table = pd.DataFrame(rows)
    return table.sort_values("score", ascending=False, kind="stable", ignore_index=True)


def improvement(trials: pd.DataFrame, others: pd.DataFrame) -> Interval:
    """Return the probability that one agent finds a better network than another.

    Args:
        trials: Of the first agent.
        others: Of the other one; tasks that only one of the two has been run on do not count.
    """
    first, second = (
        {str(task): mine.to_numpy() for task, mine in table.groupby("task")["validation_accuracy"]}
        for table in (trials, others)
    )
    tasks = sorted(first.keys() & second.keys())
    return improvement_interval([first[t] for t in tasks], [second[t] for t in tasks])


def _improvements(agent: str, by_agent: Mapping[str, pd.DataFrame]) -> dict[str, float]:
    row: dict[str, float] = {}
    for opponent in OPPONENTS:
        found = NOTHING
        if opponent != agent and opponent in by_agent:
            found = improvement(by_agent[agent], by_agent[opponent])
        name = f"over_{opponent}"
        row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return row


def _row(agent: str, trials: pd.DataFrame, known: Mapping[str, Reference]) -> dict[str, Any]:
    by_task = {str(task): rows for task, rows in trials.groupby("task", sort=False)}
    scores = [
        normalize(rows["validation_accuracy"], known[task])
        for task, rows in by_task.items()
        if task in known and known[task].has_room
    ]
    score = iqm_interval(*scores)
    return {
        "agent": agent,
        "score": score.value,
        "low": score.low,
        "high": score.high,
        "tasks": len(scores),
        "trials": sum(map(len, scores)),
        "test_accuracy": trials["test_accuracy"].mean(),
        "n_evaluations": trials["n_evaluations"].mean(),
        "seconds": trials["seconds"].sum(),
    }


def _accuracies(trials: pd.DataFrame) -> dict[str, float]:
    """Return the means over seeds for each task."""
    return {
        f"{kind}:{short_name(str(task))}": rows[f"{kind}_accuracy"].mean()
        for kind in ("validation", "test")
        for task, rows in trials.groupby("task", sort=False)
    }
