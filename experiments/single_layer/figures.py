"""Figures of a single-layer comparison."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, ScalarFormatter
from numpy.typing import NDArray

from experiments.single_layer.report import error_increases
from experiments.tables.tables import mean_interval

__all__ = ["draw_costs", "draw_errors"]

CONTROLS = ("elements_by_weight", "elements_at_random")
TICKS = (-10.0, -5.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
LINEAR_BELOW = 1.0
"""Increases above this many points are drawn on a logarithmic scale."""


def draw_errors(rows: pd.DataFrame, title: str) -> Figure:
    """Draw the error increase against the pruning rate: one column per layer, two rows.

    Error bars are 95 % intervals of the mean over seeds; controls are dashed.
    """
    increases = error_increases(rows)
    layers = list(dict.fromkeys(increases["layer"]))
    figure, axes = _grid(2, len(layers))
    for row, when in enumerate(("before", "after")):
        for column, layer in enumerate(layers):
            panel = axes[row, column]
            _draw_lines(panel, increases[increases["layer"] == layer], "rate", when)
            panel.set_title(f"{layer}, {when} fine-tuning")
            panel.set(xlabel="pruning rate", ylabel="error increase, points")
    _finish(figure, axes[0, 0], f"{title}: one layer pruned")
    return figure


def draw_costs(rows: pd.DataFrame, title: str) -> Figure:
    """Draw the error increase after fine-tuning against dense and sparse multiply-accumulates."""
    increases = error_increases(rows)
    layers = list(dict.fromkeys(increases["layer"]))
    figure, axes = _grid(2, len(layers))
    for row, kind in enumerate(("dense", "sparse")):
        for column, layer in enumerate(layers):
            panel = axes[row, column]
            mine = increases[increases["layer"] == layer]
            _draw_lines(panel, mine.assign(cost=100 * mine[f"{kind}_macs"]), "cost", "after")
            panel.set_title(f"{layer}, after fine-tuning")
            panel.set(xlabel=f"{kind} MACs of the network, %", ylabel="error increase, points")
    _finish(figure, axes[0, 0], f"{title}: error against dense and sparse cost")
    return figure


def _grid(n_rows: int, n_columns: int) -> tuple[Figure, NDArray[Any]]:
    figure = Figure(figsize=(1.0 + 4.0 * n_columns, 1.0 + 3.4 * n_rows), layout="constrained")
    return figure, figure.subplots(n_rows, n_columns, squeeze=False)


def _draw_lines(axes: Axes, increases: pd.DataFrame, x: str, when: str) -> None:
    """Draw one line per method, in the order of the rates."""
    for number, method in enumerate(dict.fromkeys(increases["method"])):
        rates = increases[increases["method"] == method].groupby("rate")
        means, halves = zip(*(mean_interval(group[when]) for _, group in rates), strict=True)
        axes.errorbar(
            rates[x].mean(),
            means,
            halves,
            label=method,
            marker=".",
            capsize=2,
            color=f"C{number}",
            linestyle="--" if method in CONTROLS else "-",
        )
    axes.set_yscale("symlog", linthresh=LINEAR_BELOW)
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.axhline(0.0, color="grey", linewidth=0.5)
    axes.grid(alpha=0.3)


def _finish(figure: Figure, axes: Axes, title: str) -> None:
    figure.suptitle(title)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
