"""Put runs of the main job with different seeds into one table: means and intervals.

`python -m experiments.tables --runs runs/a runs/b ...` reads `table.csv` of each run folder. The
interval is Student's 95 % interval of the mean over seeds, which stays honest for few of them. The
agent is also compared with uniform and random within each seed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from numpy.typing import ArrayLike
from scipy import stats

from experiments.report import format_markdown

__all__ = ["Config", "main", "mean_interval", "read_runs", "summarize"]

COLUMNS = {
    "test_error": "test error %",
    "macs": "MACs %",
    "sparse_macs": "sparse MACs %",
    "params": "params %",
    "sparse_params": "sparse params %",
    "size": "size %",
}
FREE = {"seed", "out", "data_root", "download", "device", "store", "tensorboard", "resume"}
FREE |= {"command", "date", "versions", "git_revision", "hardware", "resumptions"}


@dataclass(frozen=True)
class Config:
    """Settings of the summary."""

    runs: tuple[Path, ...]
    """Run folders of `experiments.compress` that differ in nothing but the seed."""
    out: Path | None = None
    """Where to write the Markdown; standard output when not given."""


def read_runs(folders: tuple[Path, ...]) -> pd.DataFrame:
    """Read the tables of several runs into one, with a column for the seed.

    Raises:
        ValueError: If a folder has no table, seeds repeat, or the runs differ in their settings.
    """
    tables, settings = [], []
    for folder in folders:
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            table = pd.read_csv(folder / "table.csv").assign(seed=config["seed"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{str(folder)!r} is not a finished run: {error}") from None
        tables.append(table)
        settings.append({key: value for key, value in config.items() if key not in FREE})
    if not tables:
        raise ValueError("expected at least one run folder, got none")
    for other in settings[1:]:
        for key in sorted(settings[0].keys() | other.keys()):
            mine, theirs = settings[0].get(key), other.get(key)
            if mine != theirs:
                raise ValueError(f"the runs must agree in {key}, got {mine!r} and {theirs!r}")
    seeds = [int(table["seed"].iloc[0]) for table in tables]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"every run needs a seed of its own, got {seeds}")
    return pd.concat(tables, ignore_index=True)


def mean_interval(values: ArrayLike) -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % interval (Student's t).

    Args:
        values: (n,) one number per seed. The half-width is NaN for a single one.
    """
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(half)


def summarize(rows: pd.DataFrame) -> str:
    """Format the means over seeds, and the agent's difference to each baseline, as Markdown."""
    networks = list(dict.fromkeys(rows["network"]))
    columns = {name: heading for name, heading in COLUMNS.items() if name in rows}
    lines = []
    for network in networks:
        mine = rows[rows["network"] == network]
        cells = [_format(100.0 * mine[column].to_numpy()) for column in columns]
        lines.append((network, *cells, f"{mine['n_evaluations'].mean():.0f}"))
    table = format_markdown(("network", *columns.values(), "evals"), lines)
    agent, errors = networks[-1], rows.pivot(index="seed", columns="network", values="test_error")
    verdicts = [
        f"- {agent} minus {other}: {_format(100.0 * (errors[agent] - errors[other]).to_numpy())} "
        "points of test error, seed by seed"
        for other in networks[1:-1]
    ]
    n_seeds = rows["seed"].nunique()
    title = f"Mean over {n_seeds} seeds and 95 % interval:"
    return "\n".join([title, "", table, "", *verdicts]) + "\n"


def _format(values: ArrayLike) -> str:
    mean, half = mean_interval(values)
    shown = half >= 0.005  # neither NaN nor nothing
    return f"{mean:.2f} ± {half:.2f}" if shown else f"{mean:.2f}"


def main() -> None:
    """Run from the command line; a wrong setting ends it with one line."""
    config = tyro.cli(Config, description=__doc__)
    try:
        text = summarize(read_runs(config.runs))
        if config.out is None:
            sys.stdout.write(text)
        else:
            config.out.write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
