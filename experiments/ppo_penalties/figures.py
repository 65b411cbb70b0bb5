"""Figures of a comparison of agents: learning curves, and what asymmetric updates improve."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from experiments.common.drawing.figures import beside, draw_means, make_panels, name_lines
from experiments.common.intervals import iqm_interval, iqm_name
from experiments.control.agents import PENALTIES, TASKS
from experiments.ppo_penalties.report import FEWEST_UPDATES, with_asymmetry

__all__ = ["draw_asymmetry", "draw_curves", "improvement_by_fifth"]

N_PARTS = 5
COLUMNS = 3


def draw_curves(curves: pd.DataFrame) -> Figure:
    """Draw the return against the steps: a panel per task, a line per agent.

    Lines are interquartile means over seeds, bands their 95 % intervals; the dotted line is the
    return from which on a task counts as learned.
    """
    figure, panels = _panels(curves)
    for axes, (task, mine) in zip(panels, curves.groupby("task", sort=False), strict=True):
        for agent, theirs in mine.groupby("agent", sort=False):
            groups = theirs.groupby("timesteps")["mean_return"]
            steps = np.unique(theirs["timesteps"])
            value, low, high = np.array([iqm_interval(x) for _, x in groups]).T
            line = axes.plot(steps, value, label=_label(agent))[0]
            axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2)
        threshold = TASKS[str(task)].threshold
        if threshold is not None:
            axes.axhline(threshold, color="grey", linestyle=":")
        axes.set(title=task, xlabel="environment steps", ylabel="mean return")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    center = iqm_name(curves["seed"].nunique())
    name_lines(figure, f"Return of the deterministic policy, {center} over seeds", ncols=4)
    return figure


def draw_asymmetry(updates: pd.DataFrame) -> Figure:
    """Draw the return change against the asymmetry of updates: a panel per task.

    The updates of a run are split into fifths by their asymmetry. Points are means over seeds, bars
    their 95 % intervals.
    """
    figure, panels = _panels(updates)
    for axes, (task, mine) in zip(panels, updates.groupby("task", sort=False), strict=True):
        agents = list(dict.fromkeys(mine["agent"]))
        for number, agent in enumerate(agents):
            table = improvement_by_fifth(mine[mine["agent"] == agent])
            samples = (column.dropna() for _, column in table.items())
            places = np.asarray(table.columns, np.float64) + beside(number, len(agents), 0.1)
            draw_means(axes, places, samples, label=_label(agent))
        axes.axhline(0.0, color="grey", linestyle=":")
        axes.set(
            title=task, xlabel="fifth of updates by |KL gap|", ylabel="return change / its std"
        )
        axes.set_xticks(range(1, N_PARTS + 1))
    name_lines(figure, "Return change of updates, most symmetric fifth to least", ncols=4)
    return figure


def improvement_by_fifth(updates: pd.DataFrame) -> pd.DataFrame:
    """Return the mean return change of each fifth of the updates of one task and agent **(ours)**.

    The changes of a run are standardised; its updates are ranked by |KL(old || new) - KL(new ||
    old)|. Runs with fewer than five known changes are left out.

    Returns:
        One row for each seed, columns 1 (most symmetric) to 5; without any when all are left out.
    """
    rows = {}
    known = with_asymmetry(updates).dropna(subset=["return_change"])
    for seed, mine in known.groupby("seed"):
        if len(mine) < FEWEST_UPDATES or mine["return_change"].nunique() < 2:
            continue
        change = mine["return_change"]
        rank = mine["gap"].rank(method="first")
        fifth = np.ceil(N_PARTS * rank / len(mine)).astype(int)
        rows[seed] = ((change - change.mean()) / change.std()).groupby(fifth).mean()
    return pd.DataFrame(rows).T


def _panels(table: pd.DataFrame) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel for each task."""
    n_tasks = table["task"].nunique()
    n_columns = min(COLUMNS, n_tasks)
    n_rows = math.ceil(n_tasks / n_columns)
    width = 7.0 if n_columns == 1 else 1.0 + 4.2 * n_columns
    figure, panels = make_panels(n_rows, n_columns, (width, 0.9 + 3.3 * n_rows))
    for axes in panels.flat[n_tasks:]:
        axes.remove()
    return figure, list(panels.flat[:n_tasks])


def _label(agent: object) -> str:
    penalty = PENALTIES.get(str(agent))
    return str(agent) if penalty is None else f"{agent} ({penalty})"
