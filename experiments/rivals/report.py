"""The tables and figures of a comparison: one for each budget, a row for each way to compress."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.common.drawing.intervals import format_mean
from experiments.common.drawing.outputs import format_markdown
from experiments.common.intervals import mean_interval
from experiments.common.stored import parse, read_table
from experiments.rival.rival import UNPRUNED

__all__ = ["HEADINGS", "draw_errors", "format_rivals", "read_rivals"]

HEADINGS = (
    "row",
    "seeds",
    "test error %",
    "MACs %",
    "params %",
    "bytes",
    "latency %",
    "latency ms",
    "evals",
    "search s",
)
NUMBERS = (
    "validation_accuracy",
    "test_error",
    "baseline_test_error",
    "macs",
    "params",
    "bytes",
    "bytes_share",
    "latency_1_ms",
    "baseline_latency_1_ms",
    "n_evaluations",
    "search_seconds",
)
BUDGETS = ("flops_budget", "size_budget")
GRID = ("agent", "task", *BUDGETS, "distill", "seed")
UNITS = {"flops_budget": "multiply-accumulates", "size_budget": "bytes"}


def read_rivals(folder: Path) -> pd.DataFrame:
    """Read the finished cells of a comparison.

    Returns:
        One row each, with the columns of `GRID` and `NUMBERS`; a budget that does not apply is NaN.

    Raises:
        ValueError: If there are none, or a column is missing or no number.
    """
    path = folder / "sweep.csv"
    kinds = dict.fromkeys(NUMBERS, float) | dict.fromkeys(BUDGETS, float | None)
    table = read_table(path, [*GRID, *NUMBERS])
    return parse(path, table, kinds | {"distill": float, "seed": int}).astype(
        dict.fromkeys((*NUMBERS, *BUDGETS, "distill"), float)
    )


def format_rivals(rows: pd.DataFrame) -> str:
    """Format a Markdown table for each budget and weight of distillation; rows by test error.

    Means over seeds, with the half-width of Student's 95 % interval where there are several.
    """
    blocks = []
    for column in BUDGETS:
        for _, group in _compressed(rows).groupby([column, "distill"]):
            budget, distill = float(group[column].iloc[0]), float(group["distill"].iloc[0])
            whole = rows[(rows["agent"] == UNPRUNED) & (rows["distill"] == distill)]
            blocks.append(_block(column, budget, distill, whole, group))
    if not blocks:
        whole = rows[rows["agent"] == UNPRUNED]
        return format_markdown(HEADINGS, [_line(UNPRUNED, whole)]) + "\n"
    return "\n\n".join(blocks) + "\n"


def _block(
    column: str, budget: float, distill: float, whole: pd.DataFrame, group: pd.DataFrame
) -> str:
    means = group.groupby("agent")["test_error"].mean().sort_values(kind="stable")
    lines = [_line(str(agent), group[group["agent"] == agent]) for agent in means.index]
    if len(whole):
        lines = [_line(UNPRUNED, whole), *lines]
    error = 100 * group["baseline_test_error"].mean()
    title = (
        f"At {100 * budget:g} % of the {UNITS[column]}, fine-tuned "
        f"{f'with distillation ({distill:g})' if distill else 'without distillation'}; the "
        f"network as it was: {error:.2f} % test error."
    )
    return f"{title}\n\n{format_markdown(HEADINGS, lines)}"


def _line(agent: str, mine: pd.DataFrame) -> tuple[str, ...]:
    share = 100 * mine["latency_1_ms"] / mine["baseline_latency_1_ms"]
    return (
        agent,
        str(mine["seed"].nunique()),
        format_mean(100 * mine["test_error"]),
        f"{100 * mine['macs'].mean():.1f}",
        f"{100 * mine['params'].mean():.1f}",
        f"{mine['bytes'].mean():,.0f}",
        f"{share.mean():.0f}",
        f"{mine['latency_1_ms'].mean():.2f}",
        f"{mine['n_evaluations'].mean():.0f}",
        f"{mine['search_seconds'].mean():.0f}",
    )


def draw_errors(rows: pd.DataFrame) -> dict[str, Figure]:
    """Draw test error against what the networks cost, with intervals over seeds, by stage.

    Returns:
        `rivals-macs.png` and `rivals-bytes.png`, those that there is something to draw for.
    """
    shares = {"flops_budget": ("macs", "MACs"), "size_budget": ("bytes_share", "bytes")}
    figures = {}
    for column, (share, unit) in shares.items():
        mine = _compressed(rows)
        mine = mine[mine[column].notna()]
        if len(mine):
            figures[f"rivals-{unit.lower()}.png"] = _draw(mine, share, unit)
    return figures


def _draw(rows: pd.DataFrame, share: str, unit: str) -> Figure:
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    axes = figure.subplots()
    agents = list(dict.fromkeys(rows["agent"]))
    for number, agent in enumerate(agents):
        for (distill,), mine in rows[rows["agent"] == agent].groupby(["distill"]):
            points = [
                _point(group, share) for _, group in mine.groupby(list(BUDGETS), dropna=False)
            ]
            x, y, half = np.array(points).T
            label = f"{agent}, distilled" if distill else agent
            style = "--" if distill else "-"
            axes.errorbar(
                x, y, yerr=half, label=label, color=f"C{number % 10}", linestyle=style,
                marker="osD^v"[number // 10 % 5], capsize=3, linewidth=0.8, markersize=4,
            )  # fmt: skip
    axes.axhline(100 * rows["baseline_test_error"].mean(), color="gray", linewidth=0.8)
    axes.set(xlabel=f"{unit}, % of the unpruned network's", ylabel="test error %")
    axes.set_title("after the same fine-tuning; gray: the network as it was")
    axes.legend(fontsize=7, ncols=2)
    return figure


def _point(group: pd.DataFrame, share: str) -> tuple[float, float, float]:
    """Return where a row is drawn, in percent: its cost, its error, half its interval."""
    error = mean_interval(100 * group["test_error"])
    half = (error.high - error.low) / 2
    return 100 * float(group[share].mean()), error.value, 0.0 if np.isnan(half) else half


def _compressed(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["agent"] != UNPRUNED]
