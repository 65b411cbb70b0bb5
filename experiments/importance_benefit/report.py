"""What the rows of a comparison of pruning rates say: errors, differences to uniform, and costs.

Rows: one for each seed, start (epochs of training), target and method, and one for each seed and
start of the method `none`, the unpruned network. Errors are on the test images, fractions; tables
show percent and points (percentage points). Intervals are Student's 95 % ones over seeds.
"""

from __future__ import annotations

import pandas as pd

from experiments.common.intervals import format_mean
from experiments.compress.report import format_markdown
from experiments.single_layer.report import Comparison, count_outcomes
from experiments.tables.tables import mean_interval

__all__ = ["NAMES", "compare_with_uniform", "format_report"]

BASELINE = "uniform"
NAMES = {"filters": "filters", "macs": "MACs"}
"""What is counted, by the unit of a comparison."""
BUDGETS = {
    "filters": "at least the target's share of the filters of all layers whose filters can go is "
    "removed, whatever they cost",
    "macs": "at least the target's share of the multiply-accumulates is removed",
}


def compare_with_uniform(rows: pd.DataFrame, method: str) -> dict[object, Comparison]:
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
    return {cell: Comparison(*mean_interval(values.to_numpy())) for cell, values in groups}


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
            differences.append((f"`{method}`", *(str(x) for x in found)))
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
