"""What the rows of a comparison of pruning rates say: errors, differences to uniform, and costs.

Rows: one for each seed, start (epochs of training), target and method, and one for each seed and
start of the method `none`, the unpruned network. Errors are on the test images, fractions; tables
show percent and points (percentage points). Intervals are 95 % ones over seeds.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.drawing.figures import beside, draw_means, make_panels, name_lines
from experiments.common.drawing.intervals import count_outcomes, format_mean, format_points
from experiments.common.drawing.outputs import format_markdown
from experiments.common.intervals import Interval, mean_interval

__all__ = ["compare_with_uniform", "draw_errors", "format_report"]

BASELINE = "uniform"
NAMES = {"filters": "filters", "macs": "MACs"}
"""What is counted, by the unit of a comparison."""
BUDGETS = {
    "filters": "at least the target's share of the filters of all layers whose filters can go is "
    "removed, whatever they cost",
    "macs": "at least the target's share of the multiply-accumulates is removed",
}


def compare_with_uniform(rows: pd.DataFrame, method: str) -> dict[object, Interval]:
    """Compare the test errors of a method with those of uniform rates, seed by seed.

    Args:
        rows: Of all seeds.
        method: A method.

    Returns:
        By (epochs, target), points; negative ones are in favour of the method.
    """
    index = ["seed", "epochs", "target"]
    mine, base = (
        100.0 * rows[rows["method"] == name].set_index(index)["test_error"]
        for name in (method, BASELINE)
    )
    groups = (mine - base).groupby(["epochs", "target"])
    return {cell: mean_interval(values) for cell, values in groups}


def format_report(
    rows: pd.DataFrame, title: str, unit: str, selection: str, final_finetune_steps: int
) -> str:
    """Format the report as Markdown.

    Args:
        rows: Of all seeds.
        title: Network and data set.
        unit: What the targets count, `filters` or `macs`.
        selection: How channels are selected inside a layer.
        final_finetune_steps: Minibatches of fine-tuning of each pruned network.
    """
    methods = [name for name in dict.fromkeys(rows["method"]) if name != "none"]
    parts = [
        f"# Pruning rates by importance: {title}",
        f"{rows['seed'].nunique()} seeds. Test error after the same fine-tuning of "
        f"{final_finetune_steps} minibatches; channels inside a layer by `{selection}`. For "
        f"every method, {BUDGETS[unit]}. "
        "`evals` are the networks that a method scores on the validation images "
        "to arrive at its rates, `s` the seconds that this takes; both are means over all cells of "
        "a table. Fine-tuning and evaluating the result, the same for all, is not counted.",
        "## Verdict",
        _format_verdict(rows, methods),
    ]
    for epochs, mine in rows.groupby("epochs"):
        parts += [
            f"## From the network after {epochs} epoch(s)",
            _format_start(mine, methods, NAMES[unit]),
        ]
    parts += ["![errors](errors.png)"]
    return "\n\n".join(parts) + "\n"


def _format_verdict(rows: pd.DataFrame, methods: list[str]) -> str:
    lines = ["Against uniform rates, cells (start and target) in which the method is:"]
    for method in (name for name in methods if name != BASELINE):
        found = compare_with_uniform(rows, method)
        lines.append(f"- `{method}`: {count_outcomes(found)} of {len(found)}")
    return "\n".join(lines)


def _format_start(rows: pd.DataFrame, methods: list[str], removed: str) -> str:
    """Format the tables of one start: errors and costs, then differences to uniform."""
    unpruned = rows[rows["method"] == "none"]["test_error"]
    pruned = rows[rows["method"] != "none"]
    targets = sorted(pruned["target"].unique())
    heads = [f"{100 * target:.0f} %" for target in targets]
    errors, differences, costs = [], [], []
    for method in methods:
        mine = pruned[pruned["method"] == method]
        own = [mine[mine["target"] == target] for target in targets]
        errors.append(
            (
                f"`{method}`",
                *(format_mean(100.0 * x["test_error"].to_numpy()) for x in own),
                f"{mine['n_evaluations'].mean():.0f}",
                f"{mine['search_seconds'].mean():.2f}",
            )
        )
        costs.append((f"`{method}`", *(_format_costs(x) for x in own)))
        if method != BASELINE:
            found = compare_with_uniform(rows, method).values()
            differences.append((f"`{method}`", *map(format_points, found)))
    parts = [
        f"Test error % by {removed} removed; the unpruned network, fine-tuned as long, has "
        f"{format_mean(100.0 * unpruned.to_numpy())}.",
        format_markdown(("method", *heads, "evals", "s"), errors),
        "Filters kept %, MACs %, parameters %, means over seeds:",
        format_markdown(("method", *heads), costs),
    ]
    if differences:
        parts += [
            "Minus uniform, seed by seed, points; negative means fewer errors than uniform:",
            format_markdown(("method", *heads), differences),
        ]
    return "\n\n".join(parts)


def _format_costs(rows: pd.DataFrame) -> str:
    return ", ".join(f"{100.0 * rows[name].mean():.1f}" for name in ("filters", "macs", "params"))


def draw_errors(rows: pd.DataFrame, title: str, unit: str) -> Figure:
    """Draw the test error against the filters, or MACs, removed: one panel per start.

    Error bars are 95 % intervals of the mean over seeds; the dotted line is the unpruned network.
    """
    starts = list(dict.fromkeys(rows["epochs"]))
    figure, panels = make_panels(1, len(starts), (1.0 + 4.5 * len(starts), 4.4))
    for axes, epochs in zip(panels[0], starts, strict=True):
        _draw_start(axes, rows[rows["epochs"] == epochs])
        axes.set(xlabel=f"{NAMES[unit]} removed, %", ylabel="test error, %")
        axes.set_title(f"from the network after {epochs} epoch(s)")
    name_lines(figure, title)
    return figure


def _draw_start(axes: Axes, rows: pd.DataFrame) -> None:
    methods = [name for name in dict.fromkeys(rows["method"]) if name != "none"]
    for number, method in enumerate(methods):
        groups = (100.0 * rows[rows["method"] == method].set_index("target")["test_error"]).groupby(
            level=0
        )
        places = [100.0 * target + beside(number, len(methods), 0.6) for target in groups.groups]
        draw_means(axes, places, (values for _, values in groups), label=method)
    unpruned = 100.0 * rows.loc[rows["method"] == "none", "test_error"].mean()
    axes.axhline(unpruned, color="grey", linestyle=":", label="unpruned")
