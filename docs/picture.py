"""Draw what every agent stands by on one task: `python docs/picture.py FOLDER TASK FILE`.

For example `python docs/picture.py results/benchmark-v1 PruneResNet20Digits-v1 docs/agents.svg`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from experiments.benchmark.report import NOT_LEARNING
from experiments.common.stored import read_table
from experiments.search.entrants import SINGLE, agent_of

__all__ = ["draw_agents", "kind_of", "read_task"]

SEARCHES = ("random", "cma_es", "tpe")
COLORS = {"rule": "#15803d", "searches": "#1d4ed8", "learns": "#c2410c"}
"""Each has a contrast of more than 4.5 with white."""
MARKERS = {"rule": "s", "searches": "o", "learns": "o"}
SIZES = {30: 4.0, 100: 6.0, 300: 8.0}
"""Diameter of a dot, in points, by the evaluations after which a search is asked."""
WORST = "uniform"
"""Who never does better than this rule is named, not drawn: others could not be told apart."""


def kind_of(agent: str) -> str:
    """Say whether an agent, alone or around a rule, learns, searches without it, or is a rule."""
    name = agent_of(agent)
    return "searches" if name in SEARCHES else "rule" if name in NOT_LEARNING else "learns"


def read_task(folder: Path, task: str) -> pd.DataFrame:
    """Read what agents stand by after each number of evaluations on a task, means over seeds.

    Args:
        folder: Of a benchmark of a task that confirms.
        task: The id without its namespace.

    Returns:
        Test accuracy under orders that no search has seen, in percent: a row for each agent, worst
        first, a column for each of `SIZES`; an agent that always chooses the same has one alone.

    Raises:
        ValueError: If the folder has no trial of the task.
    """
    trials = read_table(folder / "sweep.csv")
    rows = trials[trials["task"] == f"compress_env/{task}"]
    if rows.empty:
        raise ValueError(f"{folder} has no trial of {task}")
    columns = {f"confirmed_{budget}": budget for budget in SIZES}
    found = rows[list(columns)].apply(pd.to_numeric).groupby(rows["agent"])
    means: pd.DataFrame = 100 * found.mean().rename(columns=columns)
    single = means.index.isin(SINGLE)
    means.loc[single, 100] = means.loc[single, 300]
    means.loc[single, [30, 300]] = float("nan")
    return means.reindex(means.max(axis="columns").sort_values().index)


def draw_agents(means: pd.DataFrame, title: str) -> Figure:
    """Draw the accuracies of agents, on white.

    Args:
        means: As from `read_task`.
        title: Stands above.
    """
    best = means.max(axis="columns")
    drawn = means[best >= best[WORST]]
    below = ", ".join(means.index[best < best[WORST]])
    figure = Figure(figsize=(7.5, 1.2 + 0.24 * len(drawn)), layout="constrained")
    axes = figure.subplots()
    for place, (agent, found) in enumerate(drawn.iterrows()):
        kind = kind_of(str(agent))
        axes.plot(found, [place] * len(found), "-", color=COLORS[kind], alpha=0.4)
        for budget, size in SIZES.items():
            axes.plot(found[budget], place, MARKERS[kind], color=COLORS[kind], markersize=size)
    axes.set_yticks(range(len(drawn)), [str(agent) for agent in drawn.index])
    for kind, color in COLORS.items():
        axes.plot([], [], MARKERS[kind], color=color, label=kind)
    for budget, size in SIZES.items():
        axes.plot([], [], "o", color="0.4", markersize=size, label=f"after {budget} networks")
    axes.legend(loc="lower right")
    lower = f"\nlower than {WORST}: {below}" if below else ""
    axes.set(xlabel=f"test accuracy % under orders that no search has seen, means{lower}")
    axes.set_title(title, fontsize="medium")
    axes.grid(axis="x", alpha=0.3)
    return figure


def main() -> None:
    """Draw from the command line's folder and task into its file."""
    folder, task, path = sys.argv[1:]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": task}):
        title = f"{task}: the network that each agent stands by"
        draw_agents(read_task(Path(folder), task), title).savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
