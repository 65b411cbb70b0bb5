"""Leaderboards of confirmed trials: what agents stand by after so many evaluations, on test images.

The score of a trial at a budget is its confirmed test accuracy there (`experiments.trial`), 0 for
that of `uniform` and 1 for the best known. A seed's score is the interquartile mean over tasks;
shown is the mean over seeds with its 95 % interval. An agent that always chooses the same is
run from one seed, has no interval, and counts at the budgets that it keeps to. At a budget at which
an agent has not been confirmed on each of its tasks it has neither score nor accuracy nor rank: a
mean over some of them would compare with no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from experiments.benchmark.table import Reference, normalize
from experiments.common.intervals import Interval, mean_interval
from experiments.search.names import short_name
from experiments.trial.confirmation import budgets_in

__all__ = ["agent_scores", "confirmed_interval", "is_confirmed", "make_confirmed", "scored"]

PARTS = ("", "_low", "_high")


def is_confirmed(trials: pd.DataFrame) -> bool:
    """Tell whether trials from `read_runs` have been confirmed."""
    return bool(budgets_in(trials))


def scored(trials: pd.DataFrame, known: Mapping[str, Reference]) -> pd.DataFrame:
    """Return the trials with a column `score_BUDGET` for each budget; NaN where there is none.

    Args:
        trials: Confirmed ones.
        known: The best known accuracies.
    """
    columns = {}
    for budget in budgets_in(trials):
        scores = pd.Series(np.nan, trials.index)
        for task, rows in trials.groupby("task"):
            reference = known.get(str(task))
            if reference is not None and reference.has_room:
                scores[rows.index] = normalize(rows[f"confirmed_{budget}"], reference)
        columns[f"score_{budget}"] = scores
    return trials.assign(**columns)


def make_confirmed(trials: pd.DataFrame, known: Mapping[str, Reference]) -> pd.DataFrame:
    """Rank agents by what they stand by, on test images.

    Args:
        trials: From `experiments.benchmark.table.read_runs`, confirmed ones.
        known: The best known accuracies.

    Returns:
        One row for each agent, the best score at the largest budget first, with `agent`; for each
        budget `rank_B`, `score_B`, its interval `score_B_low` and `score_B_high`, and `test_B` with
        the same ends; `tasks`, `trials`, means of `validation_accuracy` (of the best episode),
        `luck`, `n_evaluations` and `seconds` of a trial, and `test_B:TASK` means over seeds. But
        for the last, what is of a budget is NaN where an agent is not confirmed on all its tasks.
    """
    table = scored(trials, known)
    by_agent = {str(agent): mine for agent, mine in table.groupby("agent", sort=False)}
    rows = pd.DataFrame([_row(agent, mine) for agent, mine in by_agent.items()])
    budgets = budgets_in(trials)
    for budget in budgets:
        ranks = rows[f"score_{budget}"].rank(ascending=False, method="min")
        rows.insert(list(rows).index(f"score_{budget}"), f"rank_{budget}", ranks)
    order = [f"score_{budget}" for budget in reversed(budgets)]
    return rows.sort_values(order, ascending=False, kind="stable", ignore_index=True)


def agent_scores(trials: pd.DataFrame, budget: int) -> Interval:
    """Return an agent's score at a budget: see the module.

    Args:
        trials: From `scored`, of one agent.
        budget: The budget.

    Returns:
        The score over the tasks that have one; NaN unless all of its tasks are confirmed.
    """
    rows = _on_all_tasks(trials, budget).dropna(subset=[f"score_{budget}"])
    by_seed = [stats.trim_mean(mine[f"score_{budget}"], 0.25) for _, mine in rows.groupby("seed")]
    return mean_interval(by_seed)


def confirmed_interval(trials: pd.DataFrame, budget: int) -> Interval:
    """Return the confirmed test accuracy at a budget, mean over tasks, then over seeds.

    Args:
        trials: Of one agent.
        budget: The budget.

    Returns:
        The accuracy; NaN unless all of its tasks are confirmed.
    """
    rows = _on_all_tasks(trials, budget)
    by_seed = rows.groupby("seed")[f"confirmed_{budget}"].mean()
    return mean_interval(by_seed)


def _on_all_tasks(trials: pd.DataFrame, budget: int) -> pd.DataFrame:
    """Return an agent's trials of the seeds that are confirmed on each of their tasks.

    None where these leave out a task.
    """
    is_confirmed = trials[f"confirmed_{budget}"].notna()
    whole = trials[is_confirmed.groupby(trials["seed"]).transform("all")]
    return whole if whole["task"].nunique() == trials["task"].nunique() else whole.iloc[:0]


def _row(agent: str, trials: pd.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = {"agent": agent}
    for budget in budgets_in(trials):
        found = {"score": agent_scores(trials, budget), "test": confirmed_interval(trials, budget)}
        for name, interval in found.items():
            ends = zip(PARTS, interval, strict=True)
            row |= {f"{name}_{budget}{part}": end for part, end in ends}
    row |= {"tasks": trials["task"].nunique(), "trials": len(trials)}
    means = ("validation_accuracy", "luck", "n_evaluations", "seconds")
    row |= {name: trials[name].mean() for name in means}
    return row | {
        f"test_{budget}:{short_name(str(task))}": rows[f"confirmed_{budget}"].mean()
        for budget in budgets_in(trials)
        for task, rows in trials.groupby("task", sort=False)
    }
