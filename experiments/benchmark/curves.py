"""Anytime curves: what agents stand by after so many evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.benchmark.confirmed import agent_scores, confirmed_interval, scored
from experiments.benchmark.table import Reference
from experiments.common.intervals import Interval, iqm_name
from experiments.search.entrants import SINGLE, agent_of, rule_of
from experiments.search.names import short_name
from experiments.trial.confirmation import budgets_in

__all__ = ["Point", "anytime_points", "draw_anytime", "draw_anytime_scores"]

MARKERS = "os^vD<>PX*hp"
TICKS = (1, 3, 10, 30, 100, 300, 1000, 3000)
LOWEST_SCORE = 0.0
"""Who stays below is named instead of drawn: others could not be told apart."""


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
    label = f"score, {iqm_name(n_tasks)} over tasks"
    return _draw(points, label, title, lowest=LOWEST_SCORE)


def _draw(
    points: Mapping[str, list[Point]],
    label: str,
    title: str,
    scale: float = 1.0,
    lowest: float = -math.inf,
) -> Figure:
    """Draw agents; who stays below `lowest` is named in the title."""
    below = [a for a, found in points.items() if max(each.found.value for each in found) < lowest]
    if 0 < len(below) < len(points):
        title += f"; lower: {', '.join(below)}"
        points = {agent: found for agent, found in points.items() if agent not in below}
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    axes = figure.subplots()
    searches = list(dict.fromkeys(agent_of(agent) for agent in points if agent not in SINGLE))
    for number, (agent, found) in enumerate(points.items()):
        # Around a rule an agent has the colour that it has blind.
        color = f"C{searches.index(agent_of(agent)) % 10}" if agent not in SINGLE else "0.4"
        _draw_agent(axes, agent, found, (MARKERS[number % len(MARKERS)], color), scale)
    axes.set(xscale="log", xlabel="network evaluations", ylabel=label, title=title)
    most = max((point.evaluations for found in points.values() for point in found), default=1.0)
    ticks = [tick for tick in TICKS if tick <= most]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    if points:
        means = scale * np.array([each.found.value for found in points.values() for each in found])
        margin = 0.1 * np.ptp(means) + 1e-3 * scale
        axes.set_ylim(means.min() - margin, means.max() + margin)
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _draw_agent(
    axes: Axes, agent: str, found: list[Point], look: tuple[str, str], scale: float
) -> None:
    marker, color = look
    line = "" if agent in SINGLE else "-" if rule_of(agent) is None else "--"
    values = scale * np.array([point.found.value for point in found])
    ends = scale * np.array([[point.found.low, point.found.high] for point in found])
    axes.errorbar(
        [point.evaluations for point in found],
        values,
        yerr=np.nan_to_num([values - ends[:, 0], ends[:, 1] - values]),
        fmt=marker + line,
        color=color,
        markersize=5,
        capsize=2,
        label=agent,
    )
