"""How small a file can get without losing accuracy: the smallest of a sweep over budgets.

`python -m experiments.sweep --seeds 0 1 2 --macs ... --size ... --out SWEEP` makes the networks,
and `python -m experiments.smallest --sweeps SWEEP` picks, for each seed, the smallest packed file
that is no worse than the float32 network. What is "no worse" is told twice: by the validation
images, which is how one would choose, and by the test images themselves, which is what papers
report and flatters, as it picks the luckiest of many networks.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from experiments.common.cli.command import run_command
from experiments.common.drawing.outputs import format_markdown, write_outputs
from experiments.common.stored import check_columns, parse, read_table
from experiments.compress.outcome.report import Row

__all__ = ["CHOICES", "Config", "choose", "draw_sizes", "format_choices", "main", "read_sweeps"]

CHOICES = {"validation_error": "validation images", "test_error": "test images"}
"""Columns that tell whether a network is no worse, and what they are measured on."""

GRID = {"model": str, "dataset": str, "seed": int, "flops_budget": float, "size_budget": float}
"""Columns that a sweep adds to those of its runs, and their types."""
NEEDED = (
    "network",
    "validation_accuracy",
    "test_error",
    "sparse_params",
    "size_bytes",
    "within_budget",
)

HEADINGS = (
    "chosen by",
    "seed",
    "bytes",
    "times smaller",
    "test error %",
    "float32's",
    "sparse params",
    "MACs budget",
    "size budget",
    "MACs %",
    "sparse MACs %",
)


@dataclass(frozen=True)
class Config:
    """Settings of the choice."""

    sweeps: tuple[Path, ...]
    """Folders of `experiments.sweep` over budgets and seeds, of one network and data set.
    `smallest.md` and `smallest.png` are written to the first."""


def read_sweeps(folders: Sequence[Path]) -> pd.DataFrame:
    """Read the rows of all networks of sweeps, with their validation errors.

    Raises:
        ValueError: If there is no finished cell, or networks or data sets differ.
    """
    paths = [each / "sweep.csv" for each in folders]
    try:
        tables = [read_table(path, ["model", "dataset", "validation_accuracy"]) for path in paths]
        for column in ("model", "dataset"):
            found = sorted({value for table in tables for value in table[column]})
            if len(found) != 1:
                raise ValueError(f"expected one {column}, got {found}")
        table = pd.concat(map(_parse_sweep, paths, tables), ignore_index=True)
        table["validation_error"] = 1.0 - table["validation_accuracy"]
        if set(table["seed"]) != set(table.loc[table["network"] == "baseline", "seed"]):
            raise ValueError("expected a baseline of each seed")
    except (OSError, ValueError) as error:
        names = ", ".join(map(str, folders))
        raise ValueError(f"no sweep to choose from in {names}: {error}") from None
    return table


def _parse_sweep(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    check_columns(path, table, [*GRID, *NEEDED])
    return parse(path, table, typing.get_type_hints(Row) | GRID)


def choose(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return, for each seed, the smallest file whose error is at most that of the baseline.

    Args:
        rows: As from `read_sweeps`.
        column: A key of `CHOICES`.

    Returns:
        One row for each seed with such a network, with the baseline's errors and sizes in columns
        that begin with `baseline_`.
    """
    is_baseline = rows["network"] == "baseline"
    baselines = rows[is_baseline].groupby("seed").first().add_prefix("baseline_")
    others = rows[~is_baseline].join(baselines, on="seed")
    no_worse = others[others[column] <= others[f"baseline_{column}"]]
    smallest: pd.DataFrame = no_worse.loc[no_worse.groupby("seed")["size_bytes"].idxmin()]
    return smallest.reset_index(drop=True)


def format_choices(rows: pd.DataFrame) -> str:
    """Format both choices as a Markdown table, seed by seed."""
    lines: list[tuple[str, ...]] = []
    for column, label in CHOICES.items():
        chosen = choose(rows, column).set_index("seed", drop=False)
        for seed in sorted(set(rows["seed"])):
            known = seed in chosen.index
            cells = _cells(chosen.loc[seed].to_dict()) if known else _none(seed)
            lines.append((label, *cells))
    n_networks = int((rows["network"] != "baseline").sum())
    title = f"The smallest of {n_networks} files over {rows['seed'].nunique()} seeds:"
    return "\n".join([title, "", format_markdown(HEADINGS, lines), ""])


def _none(seed: int) -> tuple[str, ...]:
    return (str(seed), "none", *["-"] * (len(HEADINGS) - 3))


def _cells(row: dict[Any, Any]) -> tuple[str, ...]:
    sparse_params = row["sparse_params"] / row["baseline_sparse_params"]
    return (
        str(row["seed"]),
        f"{row['size_bytes']:,}",
        f"{row['baseline_size_bytes'] / row['size_bytes']:.1f}",
        f"{100 * row['test_error']:.2f}",
        f"{100 * row['baseline_test_error']:.2f}",
        f"{100 * sparse_params:.2f} %",
        f"{row['flops_budget']:g}",
        f"{row['size_budget']:g}" if row["within_budget"] else "over",
        *(f"{100 * row[name]:.2f}" if name in row else "-" for name in ("macs", "sparse_macs")),
    )


def draw_sizes(rows: pd.DataFrame) -> Figure:
    """Draw test error against bytes of every network, and the baselines' as lines, by seed."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (seed, mine) in enumerate(rows.groupby("seed")):
        color, is_baseline = f"C{number}", mine["network"] == "baseline"
        files = mine[~is_baseline]
        errors = 100 * files["test_error"]
        axes.plot(files["size_bytes"], errors, ".", color=color, label=f"seed {seed}")
        axes.axhline(100 * mine[is_baseline]["test_error"].iloc[0], color=color, linewidth=0.8)
    model, dataset = rows["model"].iloc[0], rows["dataset"].iloc[0]
    axes.set(xlabel="bytes of the packed file", ylabel="test error %")
    axes.set_title(f"{model} on {dataset}: every file, and the float32 networks (lines)")
    axes.legend()
    return figure


def run(config: Config, console: Console) -> str:
    """Choose, print the table, and write it and the figure to the first folder.

    Returns:
        The Markdown.

    Raises:
        ValueError: If there is nothing to choose from.
    """
    rows = read_sweeps(config.sweeps)
    text, figures = format_choices(rows), {"smallest.png": draw_sizes(rows)}
    write_outputs(config.sweeps[0], "smallest", text, console, figures=figures)
    return text


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "", computes=False)
