"""Draw what every agent finds on one task: `python docs/picture.py FOLDER TASK FILE`.

For example `python docs/picture.py results/benchmark PruneMobileNetV2Digits-v0 docs/agents.svg`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from experiments.benchmark.report import NOT_LEARNING

__all__ = ["draw_agents", "read_task"]

SEARCHES = ("random", "cma_es", "tpe")
COLORS = {"learns": "#c2410c", "searches": "#1d4ed8", "rule": "#15803d"}
"""Each has a contrast of more than 4.5 with white."""


def kind_of(agent: str) -> str:
    """Say whether an agent learns, searches without learning, or is a rule."""
    return "searches" if agent in SEARCHES else "rule" if agent in NOT_LEARNING else "learns"


def read_task(folder: Path, task: str) -> pd.DataFrame:
    """Read `agent`, `test_accuracy` and `n_evaluations` of every trial of a task.

    Args:
        folder: Of a benchmark.
        task: The id without its namespace.

    Raises:
        ValueError: If the folder has no trial of the task.
    """
    trials = pd.read_csv(folder / "sweep.csv")
    rows = trials.loc[
        trials["task"] == f"compress_env/{task}", ["agent", "test_accuracy", "n_evaluations"]
    ]
    if rows.empty:
        raise ValueError(f"{folder} has no trial of {task}")
    return rows


def draw_agents(rows: pd.DataFrame, title: str) -> Figure:
    """Draw the test accuracy of every trial's network, agents by their mean, on white.

    Args:
        rows: As from `read_task`.
        title: Stands above.
    """
    means = rows.groupby("agent")[["test_accuracy", "n_evaluations"]].mean()
    means = means.sort_values("test_accuracy")
    figure = Figure(figsize=(7.5, 0.9 + 0.24 * len(means)), layout="constrained")
    axes = figure.subplots()
    for place, (agent, mean) in enumerate(means.iterrows()):
        color = COLORS[kind_of(str(agent))]
        found = 100 * rows.loc[rows["agent"] == agent, "test_accuracy"]
        axes.plot(found, [place] * len(found), "o", color=color, alpha=0.35, markersize=4)
        axes.plot(100 * mean["test_accuracy"], place, "o", color=color, markersize=7)
    axes.set_yticks(
        range(len(means)),
        [f"{agent}  ({n:.0f})" for agent, n in means["n_evaluations"].items()],
    )
    for kind, color in COLORS.items():
        axes.plot([], [], "o", color=color, label=kind)
    axes.legend(loc="lower right")
    axes.set(xlabel="test accuracy %, each seed and mean; in brackets networks evaluated")
    axes.set_title(title, fontsize="medium")
    axes.grid(axis="x", alpha=0.3)
    return figure


def main() -> None:
    """Draw from the command line's folder and task into its file."""
    folder, task, path = sys.argv[1:]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": task}):
        title = f"{task}: the best network that each agent found"
        draw_agents(read_task(Path(folder), task), title).savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
