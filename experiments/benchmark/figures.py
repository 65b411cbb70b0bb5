"""The leaderboard as a figure."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

__all__ = ["draw_scores"]

LOWEST = -1.0
"""Scores below are written, not drawn: they would leave no room for the others."""


def draw_scores(table: pd.DataFrame) -> Figure:
    """Draw each agent's score with its interval, the best on top.

    Args:
        table: From `experiments.benchmark.table.make_leaderboard`; agents without a score are left
            out.
    """
    rows = table.dropna(subset=["score"]).iloc[::-1]
    errors = [rows["score"] - rows["low"], rows["high"] - rows["score"]]
    figure = Figure(figsize=(6.4, 1.4 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(rows["score"], range(len(rows)), xerr=errors, fmt="o", color="C0", capsize=3)
    axes.set_yticks(range(len(rows)), rows["agent"])
    for number, score in enumerate(rows["score"]):
        if score < LOWEST:
            axes.annotate(f"\u2190 {score:.1f}", (LOWEST, number), va="center", fontsize=9)
            axes.set_xlim(left=LOWEST)
    for value, text in ((0.0, "uniform"), (1.0, "best known")):
        axes.axvline(value, color="grey", linestyle=":")
        axes.annotate(
            text,
            (value, 1.0),
            (0, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
        )
    axes.set_xlabel("score: interquartile mean over tasks and seeds, 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    return figure
