"""Figures of reward curves and of their volatility."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.drawing.figures import make_panels
from experiments.common.intervals import mean_interval
from experiments.volatility.measures import SMOOTHING, smooth
from experiments.volatility.report import Curves

__all__ = ["draw_curves", "draw_measures", "draw_overestimation"]

WIDTH = 20
"""Characters of a title that a panel has room for."""
MEASURES = {
    "dispersion_across": "across seeds\n(interquartile range)",
    "dispersion_within": "within runs\n(interquartile range of differences)",
    "drawdown_cvar": "drawdown\n(mean of the worst 5 %)",
}


def draw_curves(curves: Curves, agents: Sequence[str], title: str) -> Figure:
    """Draw every seed's reward as a running mean, and the mean over seeds; one panel per agent."""
    searches = list(dict.fromkeys(search for search, _ in curves))
    size = (1.5 + 2.4 * len(agents), 0.8 + 2.4 * len(searches))
    figure, axes = make_panels(len(searches), len(agents), size, sharex=True, sharey="row")
    for row, search in zip(axes, searches, strict=True):
        for number, (panel, agent) in enumerate(zip(row, agents, strict=True)):
            means = smooth(curves[search, agent])
            episodes = np.arange(means.shape[1]) + min(SMOOTHING, curves[search, agent].shape[1])
            panel.plot(episodes, means.T, color=f"C{number}", alpha=0.35, linewidth=0.8)
            panel.plot(episodes, means.mean(axis=0), color="k", linewidth=1.2)
        row[0].set_ylabel(f"{search}\nreward")
    for panel, agent in zip(axes[0], agents, strict=True):
        panel.set_title(_broken(agent), fontsize=11)
    for panel in axes[-1]:
        panel.set_xlabel("episode")
    figure.suptitle(
        f"{title}: reward of each seed, running mean over {SMOOTHING} episodes; black: mean"
    )
    return figure


def draw_measures(
    rows: pd.DataFrame, summary: pd.DataFrame, agents: Sequence[str], title: str
) -> Figure:
    """Draw the three measures: a dot per seed where there is one, means with 95 % intervals."""
    searches = list(dict.fromkeys(summary["search"]))
    size = (13, 0.8 + 2.5 * len(searches))
    figure, axes = make_panels(len(searches), len(MEASURES), size, sharey=True)
    for line, search in zip(axes, searches, strict=True):
        for panel, measure in zip(line, MEASURES, strict=True):
            if measure in rows:
                _draw_seeds(panel, rows[rows["search"] == search], measure, agents)
            else:
                mine = summary[summary["search"] == search].set_index("agent")[measure]
                panel.plot(mine[list(agents)], range(len(agents)), "ks", markersize=5)
                panel.set_yticks(range(len(agents)), agents)
            panel.set_xlim(left=0.0)
            panel.locator_params(axis="x", nbins=5)  # long numbers, small ones, would overlap
        line[0].set_ylabel(search)
    axes[0, 0].invert_yaxis()  # shared: the first agent on top
    for panel, text in zip(axes[0], MEASURES.values(), strict=True):
        panel.set_title(text, fontsize=10)
    figure.suptitle(f"{title}: volatility of the reward, lower is steadier")
    return figure


def draw_overestimation(rows: pd.DataFrame, agents: Sequence[str], title: str) -> Figure:
    """Draw what critics promise minus what was earned: a dot per seed, means with intervals."""
    searches = list(dict.fromkeys(rows["search"]))
    known = [a for a in agents if rows.loc[rows["agent"] == a, "q_overestimation"].notna().any()]
    size = (max(8.0, 1.5 + 3.8 * len(searches)), 3.6)
    figure, ((*axes,),) = make_panels(1, len(searches), size, sharey=True)
    for panel, search in zip(axes, searches, strict=True):
        _draw_seeds(panel, rows[rows["search"] == search], "q_overestimation", known)
        panel.axvline(0.0, color="grey", linestyle=":")
        panel.set(title=search, xlabel="value minus return")
        panel.locator_params(axis="x", nbins=5)
    axes[0].invert_yaxis()
    figure.suptitle(f"{title}: what critics overestimate, second half of the episodes")
    return figure


def _broken(name: str) -> str:
    """Break a name that is too long for a panel after the underscores nearest to `WIDTH`."""
    lines = [""]
    for part in name.replace("_", "_ ").split(" "):
        if lines[-1] and len(lines[-1] + part) > WIDTH:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _draw_seeds(axes: Axes, rows: pd.DataFrame, column: str, agents: Sequence[str]) -> None:
    for number, agent in enumerate(agents):
        values = rows.loc[rows["agent"] == agent, column].dropna().to_numpy()
        if not len(values):
            continue
        axes.plot(values, np.full(len(values), number), ".", color="C0", alpha=0.5)
        found = mean_interval(values)
        reach = None if np.isnan(found.low) else np.reshape(found.reach, (2, 1))
        axes.errorbar(found.value, number, xerr=reach, fmt="ks", capsize=3)
    axes.set_yticks(range(len(agents)), agents)
