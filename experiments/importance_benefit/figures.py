"""Figure of a comparison of pruning rates."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.importance_benefit.report import NAMES
from experiments.tables.tables import mean_interval

__all__ = ["draw_errors"]


def draw_errors(rows: pd.DataFrame, title: str, unit: str) -> Figure:
    """Draw the test error against the filters, or MACs, removed: one panel per start.

    Error bars are 95 % intervals of the mean over seeds; the dotted line is the unpruned network.
    """
    starts = list(dict.fromkeys(rows["epochs"]))
    figure = Figure(figsize=(1.0 + 4.5 * len(starts), 4.4), layout="constrained")
    axes = figure.subplots(1, len(starts), squeeze=False)[0]
    for panel, epochs in zip(axes, starts, strict=True):
        _draw_start(panel, rows[rows["epochs"] == epochs])
        panel.set(xlabel=f"{NAMES[unit]} removed, %", ylabel="test error, %")
        panel.set_title(f"from the network after {epochs} epoch(s)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
    figure.suptitle(title)
    return figure


def _draw_start(axes: Axes, rows: pd.DataFrame) -> None:
    methods = [name for name in dict.fromkeys(rows["method"]) if name != "none"]
    for number, method in enumerate(methods):
        groups = rows[rows["method"] == method].groupby("target")["test_error"]
        shown = [mean_interval(100.0 * values.to_numpy()) for _, values in groups]
        means, halves = zip(*shown, strict=True)
        # Side by side, as error bars would lie on each other.
        places = [100.0 * t + 0.6 * (number - (len(methods) - 1) / 2) for t in groups.groups]
        axes.errorbar(places, means, halves, label=method, marker=".", capsize=2)
    unpruned = 100.0 * rows.loc[rows["method"] == "none", "test_error"].mean()
    axes.axhline(unpruned, color="grey", linestyle=":", label="unpruned")
    axes.grid(alpha=0.3)
