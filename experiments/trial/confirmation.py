"""What a nominee is worth: its accuracy under orders of the minibatches that no search has seen.

The orders are the same for every agent, seed and task, and each budget of a trial is confirmed for
itself. No choice depends on the test images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from compress_env.envs.options import DRAWN
from experiments.search.episodes import Episode, best_episode
from experiments.search.playing import format_actions
from experiments.trial.nomination import (
    Candidate,
    Nomination,
    budgets_of,
    choose_candidates,
    fresh_orders,
    nominate,
    schedule,
    spent_by,
)
from experiments.trial.reruns import Rerun, Reruns
from experiments.trial.snapshots import Snapshot

__all__ = [
    "ORDERS",
    "Conclusion",
    "Search",
    "budgets_in",
    "conclude",
    "conclude_part",
    "conclude_single",
    "confirmed_columns",
    "final_columns",
    "is_confirmed_number",
    "most_runs",
    "most_runs_of_part",
]

ORDERS = tuple(DRAWN + number for number in range(5))
"""Noise seeds of a confirmation, which no environment draws itself."""
_BUDGET = re.compile(r"confirmed_(\d+)")
_NUMBER = re.compile(
    r"confirmed_(validation_)?\d+|final_confirmed(_validation)?|luck|n_fresh|(final_)?noise_seed"
)


class Search(NamedTuple):
    """What a search has left to conclude from."""

    episodes: Sequence[Episode]
    """All of them."""
    snapshots: Mapping[int, Snapshot]
    """What its agent had learnt, by budget."""
    evaluations: int
    """Its largest budget."""
    seed: int
    """The trial's seed."""
    per_run: int
    """Evaluations that an episode costs."""


class Conclusion(NamedTuple):
    """What a trial stands by, and what that is worth."""

    columns: dict[str, Any]
    """Columns of `table.csv`."""
    seconds: float
    """Wall-clock time of the fresh runs that the largest budget has come to."""
    confirmation: list[dict[str, Any]]
    """Rows of `confirmation.csv`: one for each budget and order."""
    nomination: list[dict[str, Any]]
    """Rows of `nomination.csv`: one for each budget and fresh run."""


def conclude(search: Search, reruns: Reruns, layers: Sequence[str]) -> Conclusion:
    """Nominate for each budget, and confirm.

    A budget that the first episode is beyond, or whose episodes have all failed, has no nominee:
    it is left out unless it is the last.

    Args:
        search: What there is.
        reruns: Runs allocations under given orders.
        layers: Names of the layers, for the rows.

    Raises:
        RuntimeError: If every episode failed.
    """
    *earlier, last_budget = budgets_of(search.evaluations)
    budgets = [b for b in earlier if _has_nominee(spent_by(search.episodes, b), b)]
    found = {b: _nominate(search, b, reruns) for b in (*budgets, last_budget)}
    return _conclude(search, found, reruns, layers)


def conclude_part(search: Search, n_runs: int, reruns: Reruns, layers: Sequence[str]) -> Conclusion:
    """Nominate and confirm at the end of a search alone, with the episodes of one kind.

    Args:
        search: What there is of that kind.
        n_runs: Fresh runs that nomination may have.
        reruns: Runs allocations under given orders.
        layers: Names of the layers, for the rows.
    """
    last = search.evaluations
    found = {last: _compare(search, search.episodes, search.snapshots[last], n_runs, reruns)}
    return _conclude(search, found, reruns, layers)


def _conclude(
    search: Search, found: Mapping[int, Nomination], reruns: Reruns, layers: Sequence[str]
) -> Conclusion:
    nominees = {budget: nomination.nominee for budget, nomination in found.items()}
    columns, rows = _confirm(search.episodes, nominees, reruns, layers)
    columns |= _confirm_policy(search, reruns)
    last = found[search.evaluations].runs
    return Conclusion(
        columns | {"n_fresh": len(last) * search.per_run},
        sum(row["seconds"] for row in last),
        rows,
        [{"budget": budget} | row for budget, each in found.items() for row in each.runs],
    )


def conclude_single(
    episodes: Sequence[Episode], evaluations: int, reruns: Reruns, layers: Sequence[str]
) -> Conclusion:
    """Confirm the one allocation of an agent that always chooses the same.

    It counts at each budget that it keeps to, and at the last one in any case.
    """
    best = Candidate.of(best_episode(episodes))
    spent = episodes[-1].n_evaluations
    budgets = budgets_of(evaluations)
    nominees = {budget: best for budget in budgets if spent <= budget or budget == budgets[-1]}
    columns, rows = _confirm(episodes, nominees, reruns, layers)
    return Conclusion(columns | {"n_fresh": 0}, 0.0, rows, [])


def most_runs(evaluations: int, *, is_single: bool) -> int:
    """Return how many networks are run at most after a search, those of different budgets too."""
    if is_single:
        return len(ORDERS)
    budgets = budgets_of(evaluations)
    # The final policy is confirmed beside the nominees.
    return sum(budget // 5 for budget in budgets) + len(ORDERS) * (len(budgets) + 1)


def most_runs_of_part(n_runs: int) -> int:
    """Return how many networks `conclude_part` runs at most."""
    return n_runs + 2 * len(ORDERS)


def _has_nominee(episodes: Sequence[Episode], budget: int) -> bool:
    is_within = episodes[0].n_evaluations <= budget
    return is_within and any(episode.accuracy is not None for episode in episodes)


def _nominate(search: Search, budget: int, reruns: Reruns) -> Nomination:
    episodes = spent_by(search.episodes, budget)
    # The last episode is played to its end, which may use some of what was left.
    n_left = min(budget // 5, budget - episodes[-1].n_evaluations)
    snapshot = search.snapshots.get(budget, Snapshot(None))
    return _compare(search, episodes, snapshot, max(0, n_left) // search.per_run, reruns)


def _compare(
    search: Search, episodes: Sequence[Episode], snapshot: Snapshot, n_runs: int, reruns: Reruns
) -> Nomination:
    """Nominate one of these episodes, or what the policy does, with so many runs at most."""
    n_candidates = max((r.n_candidates for r in schedule(n_runs, n_runs or 1)), default=1)
    candidates = choose_candidates(episodes, snapshot.policy, n_candidates, snapshot.values)
    rounds = schedule(n_runs, len(candidates))
    orders = fresh_orders(search.seed, sum(each.n_orders for each in rounds))
    return nominate(candidates, rounds, orders, lambda c, order: reruns.run(c, order)[::2])


def _confirm(
    episodes: Sequence[Episode],
    nominees: Mapping[int, Candidate],
    reruns: Reruns,
    layers: Sequence[str],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the columns and the rows of a confirmation of nominees, by budget."""
    columns: dict[str, Any] = {}
    rows = []
    for budget, nominee in nominees.items():
        found = {order: reruns.run(nominee, order, with_test=True) for order in ORDERS}
        columns |= confirmed_columns(budget, found.values())
        columns[f"confirmed_actions_{budget}"] = format_actions(nominee.actions)
        values = dict(zip(layers, nominee.values, strict=True))
        columns[f"confirmed_values_{budget}"] = json.dumps(values)
        rows += [_row(budget, nominee, order, rerun, layers) for order, rerun in found.items()]
    best = max(episode.accuracy for episode in episodes if episode.accuracy is not None)
    return columns | {"luck": best - columns[f"confirmed_validation_{max(nominees)}"]}, rows


def _confirm_policy(search: Search, reruns: Reruns) -> dict[str, float]:
    """Return the columns of what the final policy does, none for an agent that does not learn."""
    policy = search.snapshots.get(search.evaluations, Snapshot(None)).policy
    if policy is None:
        return {}
    return final_columns(reruns.run(policy, order, with_test=True) for order in ORDERS)


def final_columns(found: Iterable[Rerun]) -> dict[str, float]:
    """Return the means over the orders that stand in a trial's table for its final policy."""
    reruns = list(found)
    return {
        "final_confirmed": float(np.mean([each.test for each in reruns])),
        "final_confirmed_validation": float(np.mean([each.validation for each in reruns])),
    }


def confirmed_columns(budget: int, found: Iterable[Rerun]) -> dict[str, float]:
    """Return the means over the orders that stand in a trial's table for a budget."""
    reruns = list(found)
    return {
        f"confirmed_{budget}": float(np.mean([each.test for each in reruns])),
        f"confirmed_validation_{budget}": float(np.mean([each.validation for each in reruns])),
    }


def _row(
    budget: int, nominee: Candidate, order: int, rerun: Rerun, layers: Sequence[str]
) -> dict[str, Any]:
    values = {f"value:{n}": value for n, value in zip(layers, nominee.values, strict=True)}
    return {
        "budget": budget,
        "noise_seed": order,
        "validation": rerun.validation,
        "test": rerun.test,
        "source": nominee.source,
        "actions": format_actions(nominee.actions),
    } | values


def budgets_in(columns: Iterable[Any]) -> list[int]:
    """Return the budgets that a table has confirmed accuracies of, ascending."""
    found = (_BUDGET.fullmatch(str(column)) for column in columns)
    return sorted(int(match[1]) for match in found if match)


def is_confirmed_number(column: str) -> bool:
    """Tell whether a column of a trial's table is a number that only stochastic tasks have."""
    return _NUMBER.fullmatch(column) is not None
