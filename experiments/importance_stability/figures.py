"""Figures of the stability of importance scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.common.drawing.figures import make_panels, name_lines
from experiments.importance_stability.report import STABLE, TRACKED, agreement_with_final

__all__ = ["draw_agreement", "draw_scores"]

LABELS = {"afie": "AFIE = K / c", "entropy_ratio": "K / ln(p)", "sbpf": "SBPF sensitivity"}


def draw_scores(rows: pd.DataFrame, data_label: str) -> Figure:
    """Draw the score of every layer over epochs: one row per model, one column per score.

    Lines are means over seeds, coloured from the first layer (dark) to the last (bright).
    """
    models = list(dict.fromkeys(rows["model"]))
    figure, panels = make_panels(len(models), len(TRACKED), (13.0, 0.6 + 3.4 * len(models)))
    for row, model in zip(panels, models, strict=True):
        mine = rows[rows["model"] == model]
        layers = list(dict.fromkeys(mine.loc[mine["score"] == "afie", "layer"]))
        for axes, score in zip(row, TRACKED, strict=True):
            _draw_layers(axes, mine[mine["score"] == score], layers)
            axes.set_title(f"{model}: {LABELS[score]}")
        scale = ScalarMappable(Normalize(1, max(2, len(layers))), "viridis")
        figure.colorbar(scale, ax=row[-1], label="layer", ticks=MaxNLocator(integer=True))
    figure.suptitle(f"{data_label}: scores of layers during training, means over seeds")
    return figure


def _draw_layers(axes: Axes, rows: pd.DataFrame, layers: list[str]) -> None:
    epochs = sorted(rows["epoch"].unique())
    means = rows.groupby(["layer", "epoch"])["value"].mean()
    colors = colormaps["viridis"](np.linspace(0.0, 1.0, len(layers)))
    for layer, color in zip(layers, colors, strict=True):
        axes.plot(range(len(epochs)), means[layer].loc[epochs], marker=".", color=color)
    axes.set_xticks(range(len(epochs)), [str(epoch) for epoch in epochs])
    axes.set(xlabel="epochs", ylabel="score")


def draw_agreement(rows: pd.DataFrame, data_label: str) -> Figure:
    """Draw Spearman's correlation with the final ranking over epochs, one panel per model.

    Error bars reach from the lowest to the highest of all seeds. The dashed line is AFIE against
    its width-only control at every epoch, the dotted one the limit from which on a score counts as
    stable.
    """
    models = list(dict.fromkeys(rows["model"]))
    figure, panels = make_panels(1, len(models), (1.0 + 4.5 * len(models), 4.4))
    for axes, model in zip(panels[0], models, strict=True):
        mine = rows[rows["model"] == model]
        for number, score in enumerate(TRACKED):
            _draw_line(axes, agreement_with_final(mine, score), LABELS[score], f"C{number}", "-")
        width = agreement_with_final(mine, "width_only", "afie")
        _draw_line(axes, width, "ln(p) / c against the final AFIE", "C0", "--")
        axes.axhline(STABLE, color="grey", linestyle=":", linewidth=1.0)
        axes.set(title=model, xlabel="epochs", ylabel="Spearman with final ranking")
        axes.set_ylim(-1.05, 1.05)
    title = f"{data_label}: agreement with the ranking at the end of training"
    name_lines(figure, title, ncols=2)
    return figure


def _draw_line(axes: Axes, table: pd.DataFrame, label: str, color: str, style: str) -> None:
    found = table.groupby("epoch")["spearman"].agg(["mean", "min", "max"])
    bars = (found["mean"] - found["min"], found["max"] - found["mean"])
    places = range(len(found))
    axes.errorbar(
        places,
        found["mean"],
        bars,
        label=label,
        color=color,
        linestyle=style,
        marker=".",
        capsize=2,
    )
    axes.set_xticks(places, [str(epoch) for epoch in found.index])
