"""Figures of a single-layer comparison."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, ScalarFormatter

from experiments.common.drawing.figures import draw_means, make_panels, name_lines
from experiments.single_layer.report import WHEN, When, error_increases

__all__ = ["draw_costs", "draw_errors"]

CONTROLS = ("shuffled_information", "elements_by_weight", "elements_at_random")
TICKS = (-10.0, -5.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
LINEAR_BELOW = 1.0
"""Increases above this many points are drawn on a logarithmic scale."""


def draw_errors(rows: pd.DataFrame, title: str) -> Figure:
    """Draw the error increase against the pruning rate: one column per layer, two rows.

    Error bars are 95 % intervals of the mean over seeds; controls are dashed.
    """
    lines = [("rate", when, "pruning rate") for when in WHEN]
    return _draw(error_increases(rows), lines, f"{title}: one layer pruned")


def draw_costs(rows: pd.DataFrame, title: str) -> Figure:
    """Draw the error increase after fine-tuning against dense and sparse multiply-accumulates."""
    increases = error_increases(rows)
    kinds = ("dense_macs", "sparse_macs")
    increases[list(kinds)] *= 100.0
    after: When = "after"
    lines = [(kind, after, f"{kind[:-5]} MACs of the network, %") for kind in kinds]
    return _draw(increases, lines, f"{title}: error against dense and sparse cost")


def _draw(increases: pd.DataFrame, lines: Sequence[tuple[str, When, str]], title: str) -> Figure:
    """Draw a row of panels for each column of the x axis, moment and name of the axis."""
    layers = list(dict.fromkeys(increases["layer"]))
    size = (1.0 + 4.0 * len(layers), 1.0 + 3.4 * len(lines))
    figure, panels = make_panels(len(lines), len(layers), size)
    for row, (x, when, xlabel) in zip(panels, lines, strict=True):
        for axes, layer in zip(row, layers, strict=True):
            _draw_layer(axes, increases[increases["layer"] == layer], x, when)
            axes.set_title(f"{layer}, {when} fine-tuning")
            axes.set(xlabel=xlabel, ylabel="error increase, points")
    name_lines(figure, title)
    return figure


def _draw_layer(axes: Axes, increases: pd.DataFrame, x: str, when: When) -> None:
    """Draw one line per method, in the order of the rates."""
    for number, method in enumerate(dict.fromkeys(increases["method"])):
        rates = increases[increases["method"] == method].groupby("rate")
        style = {"color": f"C{number}", "linestyle": "--" if method in CONTROLS else "-"}
        draw_means(axes, rates[x].mean(), (each for _, each in rates[when]), label=method, **style)
    axes.set_yscale("symlog", linthresh=LINEAR_BELOW)
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.axhline(0.0, color="grey", linewidth=0.5)
