"""Anytime curves: what agents stand by after so many evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.benchmark.confirmed import agent_scores, confirmed_interval, scored
from experiments.benchmark.table import Reference
from experiments.common.intervals import Interval, iqm_name
from experiments.search.entrants import SINGLE
from experiments.search.names import short_name
from experiments.trial.confirmation import budgets_in

__all__ = ["Point", "anytime_points", "draw_anytime", "draw_anytime_scores"]

MARKERS = "os^vD<>PX*hp"


class Point(NamedTuple):
    """One moment of an agent."""

    evaluations: float
    """Evaluations so far: a budget, or those of an agent that always chooses the same."""
    found: Interval
    """What it stands by."""


def anytime_points(trials: pd.DataFrame, column: str) -> dict[str, list[Point]]:
    """Return the moments of each agent.

    Args:
        trials: Confirmed ones; of several tasks with scores (`scored`).
        column: `confirmed` for accuracies, `score` for scores.

    Returns:
        For an agent that always chooses the same one point, at the evaluations that it takes, 1 at
        least; for others one for each budget. Moments that nobody has measured are left out.
    """
    measure = {"confirmed": confirmed_interval, "score": agent_scores}[column]
    points: dict[str, list[Point]] = {}
    for agent, rows in trials.groupby("agent", sort=False):
        budgets = budgets_in(rows)
        if agent in SINGLE:
            spent = max(1.0, float(rows["n_evaluations"].mean()))
            found = [Point(spent, measure(rows, budgets[-1]))]
        else:
            found = [Point(budget, measure(rows, budget)) for budget in budgets]
        points[str(agent)] = [point for point in found if not np.isnan(point.found.value)]
    return {agent: found for agent, found in points.items() if found}


def draw_anytime(trials: pd.DataFrame) -> Figure:
    """Draw confirmed test accuracy over evaluations; wide intervals are cut at the edges.

    Args:
        trials: Of one task.
    """
    (task,) = trials["task"].unique()
    points = anytime_points(trials, "confirmed")
    return _draw(points, "confirmed test accuracy, percent", short_name(str(task)), 100.0)


def draw_anytime_scores(trials: pd.DataFrame, known: Mapping[str, Reference]) -> Figure:
    """Draw the score over evaluations.

    Args:
        trials: Of all tasks.
        known: The best known accuracies.
    """
    points = anytime_points(scored(trials, known), "score")
    n_tasks = trials["task"].nunique()
    title = f"{n_tasks} tasks; 0 uniform, 1 best known"
    return _draw(points, f"score, {iqm_name(n_tasks)} over tasks", title)


def _draw(points: Mapping[str, list[Point]], label: str, title: str, scale: float = 1.0) -> Figure:
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    axes = figure.subplots()
    for number, (agent, found) in enumerate(points.items()):
        _draw_agent(axes, agent, found, number, scale)
    axes.set(xscale="log", xlabel="network evaluations", ylabel=label, title=title)
    ticks = sorted({point.evaluations for found in points.values() for point in found if point})
    axes.set_xticks(_spread(ticks), [f"{tick:g}" for tick in _spread(ticks)])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    if points:
        means = scale * np.array([each.found.value for found in points.values() for each in found])
        margin = 0.1 * np.ptp(means) + 1e-3 * scale
        axes.set_ylim(means.min() - margin, means.max() + margin)
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _draw_agent(axes: Axes, agent: str, found: list[Point], number: int, scale: float) -> None:
    values = scale * np.array([point.found.value for point in found])
    ends = scale * np.array([[point.found.low, point.found.high] for point in found])
    axes.errorbar(
        [point.evaluations for point in found],
        values,
        yerr=np.nan_to_num([values - ends[:, 0], ends[:, 1] - values]),
        fmt=MARKERS[number % len(MARKERS)] + ("" if agent in SINGLE else "-"),
        color=f"C{number % 10}",
        markersize=5,
        capsize=2,
        label=agent,
    )


def _spread(ticks: Iterable[float]) -> list[float]:
    """Return ticks that are far enough apart for their labels on a logarithmic axis."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick >= 1.25 * kept[-1]:
            kept.append(tick)
    return kept
