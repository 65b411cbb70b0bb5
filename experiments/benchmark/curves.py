"""Anytime curves: what agents stand by after so many evaluations."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.benchmark.confirmed import agent_scores, confirmed_interval, scored
from experiments.benchmark.table import Reference
from experiments.common.intervals import Interval, iqm_name
from experiments.search.entrants import SINGLE, agent_of, rule_of, stage_of
from experiments.search.names import short_name
from experiments.trial.confirmation import budgets_in

__all__ = ["Point", "anytime_points", "draw_anytime", "draw_anytime_scores"]

MARKERS = "os^vD<>PX*"
"""Filled ones, and then open ones."""
COLORS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9")
"""Of searches; C7 is nearly that of rules."""
RULE_COLOR = "0.4"
STAGES = {"pruning": "pruning", "quantization": "bits", None: "other"}
"""What panels are called."""
TITLE_WIDTH = 66
TICKS = (1, 3, 10, 30, 100, 300, 1000, 3000)
ZERO = "uniform"
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
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    axes = figure.subplots()
    looks = _looks(points)
    _draw(axes, points, looks, short_name(str(task)), 100.0)
    axes.set_ylabel("confirmed test accuracy, percent")
    if points:
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def draw_anytime_scores(trials: pd.DataFrame, known: Mapping[str, Reference]) -> Figure:
    """Draw the score over evaluations, in a panel for each stage that tasks are of.

    An agent has one colour and marker in all panels, and its number of tasks in the legend where
    it has fewer than the panel. `uniform`, which is at 0, is drawn where it is alone; wide
    intervals are cut at the edges.

    Args:
        trials: Of all tasks.
        known: The best known accuracies.
    """
    table = scored(trials, known)
    panels = dict(list(table.groupby(table["task"].map(_panel_of), sort=False)))
    looks = _looks(trials["agent"].unique())
    is_alone = len(panels) == 1
    size = (8.0, 4.8) if is_alone else (5.6 * len(panels), 6.2)
    figure = Figure(figsize=size, layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, rows) in zip(all_axes, panels.items(), strict=True):
        _draw_scores(axes, rows, looks, "" if is_alone else f"{name}, ")
        if not axes.containers:
            continue
        if is_alone:
            figure.legend(loc="outside right upper", fontsize=8)
        else:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8)
    return figure


def _panel_of(task: str) -> str:
    return STAGES[stage_of(task)]


class _Look(NamedTuple):
    """How an agent is drawn."""

    color: str
    marker: str
    is_open: bool
    """Whether the marker is."""


def _looks(agents: Iterable[str]) -> dict[str, _Look]:
    """Give each agent a colour, and a marker that no other one of that colour has.

    A rule has the same ones in every figure, and a search around a rule the colour that it has
    blind.
    """
    names = sorted(map(str, agents), key=lambda name: rule_of(name) is not None)
    searches = list(dict.fromkeys(agent_of(name) for name in names if name not in SINGLE))
    n_alike: Counter[str] = Counter()
    looks = {}
    for name in names:
        if name in SINGLE:
            color, number = RULE_COLOR, SINGLE.index(name)
        else:
            color = COLORS[searches.index(agent_of(name)) % len(COLORS)]
            number = n_alike[color]
            n_alike[color] += 1
        n_rounds, place = divmod(number, len(MARKERS))
        looks[name] = _Look(color, MARKERS[place], n_rounds % 2 == 1)
    return looks


def _draw_scores(axes: Axes, trials: pd.DataFrame, looks: Mapping[str, _Look], prefix: str) -> None:
    """Draw the scores of a panel; who stays below `LOWEST_SCORE` is named in the title."""
    points = anytime_points(trials, "score")
    n_tasks = trials["task"].nunique()
    title = f"{prefix}{n_tasks} task{_plural(n_tasks)}; 0 uniform, 1 best known"
    best = {agent: max(each.found.value for each in found) for agent, found in points.items()}
    below = [agent for agent, value in best.items() if value < LOWEST_SCORE]
    if 0 < len(below) < len(points):
        title += f"; lower: {', '.join(below)}"
        points = {agent: found for agent, found in points.items() if agent not in below}
    # The title tells where uniform is: it would leave others as little room as those below.
    points = {agent: found for agent, found in points.items() if agent != ZERO} or points
    by_agent = trials.groupby("agent")["task"].nunique()
    fewer = {str(agent): int(n) for agent, n in by_agent.items() if n < n_tasks}
    _draw(axes, points, looks, title, fewer=fewer)
    axes.set_ylabel(f"score, {iqm_name(n_tasks)} over tasks")


def _plural(number: int) -> str:
    return "" if number == 1 else "s"


def _draw(
    axes: Axes,
    points: Mapping[str, list[Point]],
    looks: Mapping[str, _Look],
    title: str,
    scale: float = 1.0,
    fewer: Mapping[str, int] | None = None,
) -> None:
    """Draw agents; the legend says of how many tasks, for those that have `fewer`."""
    for agent, found in points.items():
        n_tasks = (fewer or {}).get(agent)
        note = "" if n_tasks is None else f" ({n_tasks} task{_plural(n_tasks)})"
        _draw_agent(axes, agent, found, looks[agent], scale, agent + note)
    axes.set(xscale="log", xlabel="network evaluations")
    axes.set_title(textwrap.fill(title, TITLE_WIDTH, break_on_hyphens=False), fontsize=10)
    most = max((point.evaluations for found in points.values() for point in found), default=1.0)
    ticks = [tick for tick in TICKS if tick <= most]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    if points:
        means = scale * np.array([each.found.value for found in points.values() for each in found])
        margin = 0.1 * np.ptp(means) + 1e-3 * scale
        axes.set_ylim(means.min() - margin, means.max() + margin)


def _draw_agent(
    axes: Axes, agent: str, found: list[Point], look: _Look, scale: float, label: str
) -> None:
    line = "" if agent in SINGLE else "-" if rule_of(agent) is None else "--"
    values = scale * np.array([point.found.value for point in found])
    ends = scale * np.array([[point.found.low, point.found.high] for point in found])
    evaluations = [point.evaluations for point in found]
    reach = np.nan_to_num([values - ends[:, 0], ends[:, 1] - values])
    axes.errorbar(evaluations, values, yerr=reach, fmt="none", ecolor=look.color, capsize=2)
    axes.plot(
        evaluations,
        values,
        look.marker + line,
        color=look.color,
        markerfacecolor="white" if look.is_open else look.color,
        markersize=6,
        label=label,
        zorder=3,  # above the intervals, which would be seen through open markers
    )
