"""What a leaderboard says, of confirmed trials in its own way."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from compress_env.files import replacing
from experiments.benchmark.around_rules import best_of, format_around_rules
from experiments.benchmark.confirmed import is_confirmed, make_confirmed
from experiments.benchmark.report import (
    compared_with,
    format_leaderboard,
    format_tasks,
    has_more_evaluations,
    unknown_tasks,
    verdicts,
)
from experiments.benchmark.table import Reference, make_leaderboard
from experiments.common.intervals import iqm_name
from experiments.compress.outcome.report import format_markdown
from experiments.search.entrants import SINGLE
from experiments.search.names import short_name
from experiments.trial.confirmation import ORDERS, budgets_in

__all__ = ["fill_page", "format_confirmed", "leaderboard_of"]

MARKS = ("<!-- leaderboard -->", "<!-- end of leaderboard -->")
PARTS = ("", "_low", "_high")


def leaderboard_of(
    trials: pd.DataFrame, known: Mapping[str, Reference]
) -> tuple[pd.DataFrame, str]:
    """Return the leaderboard of trials as a table and as Markdown, confirmed ones or not.

    Args:
        trials: From `experiments.benchmark.table.read_runs`.
        known: The best known accuracies.
    """
    if is_confirmed(trials):
        table = make_confirmed(trials, known)
        return table, format_confirmed(table, trials, known)
    table = make_leaderboard(trials, known)
    return table, format_leaderboard(table, trials, known)


def fill_page(page: Path, text: str, figure: Path | None = None) -> None:
    """Put a leaderboard between the marks of a page, in place of what was there.

    Args:
        page: A Markdown file.
        text: From `leaderboard_of`; the page has a title of its own.
        figure: Shown above, where it is there.

    Raises:
        ValueError: If the page cannot be read, or does not have the two marks.
    """
    try:
        before, rest = page.read_text("utf-8").split(MARKS[0])
        _, after = rest.split(MARKS[1])
    except (OSError, ValueError):
        raise ValueError(f"{str(page)!r} must hold {' and '.join(MARKS)}, each once") from None
    parts = [MARKS[0], text.split("\n", 1)[1].strip(), MARKS[1]]
    if figure is not None and figure.is_file():
        link = Path(os.path.relpath(figure, page.parent)).as_posix()
        parts.insert(1, f"![confirmed scores over evaluations]({link})")
    with replacing(page) as temporary:
        temporary.write_text(before + "\n\n".join(parts) + after, encoding="utf-8")


def format_confirmed(
    table: pd.DataFrame, trials: pd.DataFrame, known: Mapping[str, Reference]
) -> str:
    """Format a leaderboard of confirmed trials as Markdown.

    Args:
        table: From `experiments.benchmark.confirmed.make_confirmed`.
        trials: What it was made from.
        known: The best known accuracies.
    """
    budgets, agents = budgets_in(trials), table["agent"].tolist()
    seeds = ", ".join(str(seed) for seed in sorted(trials["seed"].unique()))
    center = iqm_name(trials["task"].nunique())
    parts = [
        "# Leaderboard",
        f"{_listed(budgets)} network evaluations, of which four fifths are the search's; the last "
        "fifth runs its best episodes and its policy again under fresh orders of the minibatches, "
        f"and nominates one allocation. This is trained under {len(ORDERS)} further orders, which "
        "no search has seen, and measured on test images: the confirmed accuracy, percent. Seeds "
        f"{seeds}; agents that always choose the same have one, and no interval. Score: confirmed "
        f"accuracy, 0 for `uniform` and 1 for the best known, {center} over "
        "tasks, then mean over seeds. At a budget at which an agent is not confirmed on all of its "
        "tasks it has neither rank nor score nor accuracy here. In brackets 95 % intervals. "
        "Validation: that of the best episode; luck: by how many points it exceeds the nominee's, "
        "under the further orders.",
        _format_scores(table, budgets),
        *_remarks(table, trials, known),
        "## Rules against searches",
        "Confirmed accuracy of the best rule and of the best search after "
        f"{_listed(_ends(budgets))} evaluations, means over seeds; in brackets the difference in "
        "points. The best are those whose nominees are best on validation images.",
        _format_best(trials, budgets),
        *format_around_rules(trials),
        "## Does learning win?",
        f"Confirmed accuracy after {budgets[-1]} evaluations, points, paired by seed, with 95 % "
        "intervals, which are not widened for the number of comparisons.",
        *compared_with(trials),
        "\n".join(verdicts(trials, f"confirmed_{budgets[-1]}")),
        "## Tasks",
    ]
    for budget in budgets:
        parts += [
            f"Confirmed test accuracy after {budget} evaluations, percent, mean over seeds and "
            "95 % interval:",
            format_tasks(trials, agents, known, f"confirmed_{budget}"),
        ]
    parts += [
        "Validation accuracy of the best episodes, percent:",
        format_tasks(trials, agents, {}, "validation_accuracy"),
        "Luck, points:",
        format_tasks(trials, agents, {}, "luck"),
    ]
    return "\n\n".join(parts) + "\n"


def _listed(budgets: Sequence[int]) -> str:
    *others, last = map(str, budgets)
    return f"{', '.join(others)} and {last}" if others else last


def _ends(budgets: Sequence[int]) -> list[int]:
    """Return the first and the last budget, which may be the same."""
    return list(dict.fromkeys((budgets[0], budgets[-1])))


def _format_scores(table: pd.DataFrame, budgets: Sequence[int]) -> str:
    """Format the agents; scores at the first and the last budget, accuracies at all."""
    ends = _ends(budgets)
    headings = (
        "agent",
        *(f"{name} at {budget}" for budget in ends for name in ("rank", "score")),
        *(f"test at {budget}" for budget in budgets),
        "validation",
        "luck",
        "evaluations",
        "seconds",
        "tasks",
        "trials",
    )
    lines = []
    for row in table.to_dict("records"):
        ranked = [
            cell
            for budget in ends
            for cell in (
                _number(row[f"rank_{budget}"], 0),
                _interval(row, f"score_{budget}", 3),
            )
        ]
        lines.append(
            (
                f"`{row['agent']}`",
                *ranked,
                *(_interval(row, f"test_{budget}", 2, 100.0) for budget in budgets),
                _number(100.0 * row["validation_accuracy"], 2),
                _number(100.0 * row["luck"], 2),
                _number(row["n_evaluations"], 0),
                _number(row["seconds"], 0),
                f"{row['tasks']}",
                f"{row['trials']}",
            )
        )
    return format_markdown(headings, lines)


def _interval(row: Mapping[Any, Any], name: str, n_digits: int, scale: float = 1.0) -> str:
    value, low, high = (scale * row[f"{name}{part}"] for part in PARTS)
    if np.isnan(value):
        return "-"
    ends = "" if np.isnan(low) else f" ({low:.{n_digits}f} to {high:.{n_digits}f})"
    return f"{value:.{n_digits}f}{ends}"


def _number(value: float, n_digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{n_digits}f}"


def _remarks(
    table: pd.DataFrame, trials: pd.DataFrame, known: Mapping[str, Reference]
) -> list[str]:
    """Say what has no score and what does not compare."""
    remarks = [*has_more_evaluations(trials), *unknown_tasks(trials, known)]
    alike = table["agent"].isin(SINGLE)
    fewer = table[
        (table["tasks"] < table["tasks"].max())
        | (~alike & (table["trials"] < table["trials"].max()))
    ]
    if not fewer.empty:
        names = ", ".join(fewer["agent"])
        remarks.append(f"With fewer tasks or trials, their scores do not compare: {names}.")
    return remarks


def _format_best(trials: pd.DataFrame, budgets: Sequence[int]) -> str:
    """Format the best rule and the best search of each task at the first and the last budget."""
    ends = _ends(budgets)
    headings = ["task"]
    for budget in ends:
        headings += [f"best rule at {budget}", f"best search at {budget}"]
    is_rule = trials["agent"].isin(SINGLE)
    lines = []
    for task, rows in trials.groupby("task", sort=False):
        cells = [short_name(str(task))]
        for budget in ends:
            rule, search = (
                _best(rows[mine], budget) for mine in (is_rule[rows.index], ~is_rule[rows.index])
            )
            cells += [_named(rule), _named(search)]
            if rule is not None and search is not None:
                cells[-1] += f" ({100.0 * (search[1] - rule[1]):+.2f})"
        lines.append(tuple(cells))
    return format_markdown(tuple(headings), lines)


def _best(rows: pd.DataFrame, budget: int) -> tuple[str, float] | None:
    best = best_of(rows, list(dict.fromkeys(rows["agent"])), budget)
    if best is None:
        return None
    return best, float(rows.loc[rows["agent"] == best, f"confirmed_{budget}"].mean())


def _named(best: tuple[str, float] | None) -> str:
    return "-" if best is None else f"`{best[0]}` {100.0 * best[1]:.2f}"
