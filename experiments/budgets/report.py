"""The table and the figure of a comparison: confirmed accuracy at each budget, by who chose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.common.drawing.figures import draw_means, make_panels, name_lines
from experiments.common.drawing.intervals import format_mean, format_points
from experiments.common.drawing.outputs import format_markdown
from experiments.common.intervals import mean_interval
from experiments.common.stored import own_name, parse, read_table
from experiments.sweep.folder import SweepFolder
from experiments.trial.confirmation import is_confirmed_number
from experiments.trial.trial import Config as Trial

__all__ = ["KINDS", "draw_budgets", "format_budgets", "read_budgets"]

KINDS = {"one": "one policy", "each": "a search each", "rule": "the rule alone"}
"""Who chose, and what tables call it."""
HEADINGS = (
    "budget %",
    "seeds",
    *(f"{label} %" for label in KINDS.values()),
    "one policy minus a search each",
    "one policy minus the rule",
    "final policy: one %",
    "each %",
)


def read_budgets(folder: SweepFolder) -> pd.DataFrame:
    """Read the finished trials of a comparison.

    Returns:
        One row for each trial and budget: `kind` (a key of `KINDS`), `budget`, a fraction, `seed`,
        `evaluations`, `test`, the nominee's confirmed accuracy, and `final`, the final policy's,
        NaN for a rule; accuracies are fractions of the test images.

    Raises:
        ValueError: If there are none, or a trial is not confirmed.
    """
    file = folder.path / "sweep.csv"
    trials = {cell.name: cell.config for cell in folder.stored_cells()}
    table = read_table(file, ["agent", "seed", "cell"])
    names = [str(name) for name in table if is_confirmed_number(str(name))]
    optional: dict[str, Any] = dict.fromkeys(["cost_budget", *names], float | None)
    table["cost_budget"] = table.get(
        "cost_budget", pd.Series(None, index=table.index, dtype=object)
    )
    table = parse(file, table, optional | {"seed": int})
    rows = [_row(row, trials[own_name(row["cell"])]) for row in table.to_dict("records")]
    return pd.DataFrame(rows)


def _row(row: Mapping[Any, Any], trial: Trial) -> dict[str, Any]:
    test = row.get(f"confirmed_{trial.evaluations}")
    if test is None or np.isnan(test):
        raise ValueError(f"{row['cell']} has not been confirmed")
    given = json.loads(trial.env_kwargs)
    kind = "one" if trial.budgets else "each" if "+" in trial.algo else "rule"
    final = row.get("final_confirmed")
    return {
        "kind": kind,
        "budget": float(row["cost_budget"] if kind == "one" else next(iter(given.values()))),
        "seed": row["seed"],
        "evaluations": trial.evaluations,
        "test": float(test),
        "final": float("nan" if final is None else final),
    }


def format_budgets(rows: pd.DataFrame) -> str:
    """Format a Markdown table: a line for each budget, and one for their mean.

    Means over seeds, with the half-width of Student's 95 % interval where there are several.
    Differences are in points, and of seeds that have both; the mean is of seeds with all budgets.
    """
    lines = [
        _line(f"{100 * float(str(budget)):g}", mine) for budget, mine in rows.groupby("budget")
    ]
    n_budgets = rows["budget"].nunique()
    by_search = rows.groupby(["kind", "seed"])
    whole = by_search.filter(lambda mine: len(mine) == n_budgets)
    of_all = whole.groupby(["kind", "seed"], as_index=False)[["test", "final"]].mean()
    n_evaluations = {kind: mine["evaluations"].iloc[0] for kind, mine in rows.groupby("kind")}
    parts = [
        f"{KINDS[kind]} has {n_evaluations[kind]} evaluations{what}"
        for kind, what in (("one", " for all budgets"), ("each", ""))
        if kind in n_evaluations
    ]
    title = "; ".join(
        ["Accuracy of what was found, test images, under five further orders", *parts]
    )
    return f"{title}.\n\n{format_markdown(HEADINGS, [*lines, _line('mean', of_all)])}\n"


def _line(label: str, rows: pd.DataFrame) -> tuple[str, ...]:
    by_kind = {kind: rows[rows["kind"] == kind].set_index("seed") for kind in KINDS}
    one, each, rule = (100 * by_kind[kind]["test"] for kind in KINDS)
    return (
        label,
        str(len(one)),
        *(format_mean(found) if len(found) else "-" for found in (one, each, rule)),
        _difference(one - each),
        _difference(one - rule.mean()),
        *(_mean(100 * by_kind[kind]["final"]) for kind in ("one", "each")),
    )


def _mean(values: pd.Series[float]) -> str:
    known = values.dropna()
    return format_mean(known) if len(known) else "-"


def _difference(values: pd.Series[float]) -> str:
    known = values.dropna()
    return format_points(mean_interval(known)) if len(known) else "-"


def draw_budgets(rows: pd.DataFrame) -> Figure:
    """Draw confirmed accuracy against the budget, with intervals over seeds, by who chose."""
    figure, panels = make_panels(1, 1, (6.0, 4.2))
    axes = panels[0, 0]
    for kind, label in KINDS.items():
        mine = rows[rows["kind"] == kind].groupby("budget")["test"]
        if len(mine):
            places = [100 * float(str(budget)) for budget in mine.groups]
            draw_means(axes, places, [100 * found for _, found in mine], label=label)
    axes.set(xlabel="budget, % of the uncompressed network", ylabel="test images right, %")
    name_lines(figure, "one policy for several budgets")
    return figure
