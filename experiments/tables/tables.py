"""Put runs of the main job with different seeds into one table: means and intervals.

`python -m experiments.tables --runs runs/a runs/b ...` reads `table.csv` of each run folder. The
interval is Student's 95 % interval of the mean over seeds, which stays honest for few of them. The
agent is also compared with uniform and random within each seed.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from numpy.typing import ArrayLike
from rich.console import Console

from compress_env.files import replacing
from experiments.common.cli.command import run_command
from experiments.common.drawing.intervals import format_interval
from experiments.common.drawing.outputs import format_markdown
from experiments.common.intervals import mean_interval
from experiments.common.run_folder import ADDED
from experiments.common.stored import parse, read_object, read_table
from experiments.compress.outcome.report import Row

__all__ = ["Config", "main", "read_runs", "summarize"]

COLUMNS = {
    "test_error": "test error %",
    "test_error_top5": "top-5 error %",
    "macs": "MACs %",
    "sparse_macs": "sparse MACs %",
    "params": "params %",
    "sparse_params": "sparse params %",
    "size": "size %",
}
COSTS = {"macs": "MACs", "sparse_macs": "sparse MACs", "size": "bytes"}
"""Columns that say at what cost a network is better than another."""
FILE_COLUMNS = {
    "size": "packed size %",
    "float_size": "float32 size %",
    "onnx_size": "ONNX size %",
    "onnx_test_error": "ONNX test error %",
    "onnx_test_error_top5": "ONNX top-5 error %",
    "time_1": "time, 1 image %",
    "time_64": "time, 64 images %",
}
"""Sizes and times are percents of the unpruned network's, float32 or as ONNX."""
RATIOS = {
    "float_size": "float_bytes",
    "onnx_size": "onnx_bytes",
    "time_1": "latency_1_ms",
    "time_64": "latency_64_ms",
}
"""Columns that are those of the run, divided by its baseline's."""
FREE = {"seed", "label", "out", "data_root", "download", "device", "store", "tensorboard", "resume"}
FREE |= {"command", "date", "versions", "git_revision", "hardware", "resumptions", "inputs"}
NEEDED = ("network", "test_error", "n_evaluations")


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
            config = read_object(folder / "config.json")
            if type(config.get("seed")) is not int:
                raise ValueError(
                    f"seed in config.json must be a whole number, got {config.get('seed')!r}"
                )
            table = _with_ratios(_read_table(folder / "table.csv").assign(seed=config["seed"]))
        except (OSError, ValueError) as error:
            raise ValueError(f"{str(folder)!r} is not a finished run: {error}") from None
        tables.append(table)
        settings.append({k: value for k, value in (ADDED | config).items() if k not in FREE})
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


def _read_table(path: Path) -> pd.DataFrame:
    """Read the table of a run, of which an earlier version may lack columns."""
    kinds = typing.get_type_hints(Row)
    table = parse(path, read_table(path, NEEDED), kinds)
    if table["network"].duplicated().any() or not len(table):
        raise ValueError(f"{str(path)!r}: expected each network once, at least one")
    numbers = [name for name in kinds if name in table and kinds[name] not in (str, bool)]
    return table.astype(dict.fromkeys(numbers, float))


def _with_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Add the columns of `RATIOS` that there are numbers for; the first row is the baseline."""
    known = {new: old for new, old in RATIOS.items() if old in table and table[old].notna().all()}
    return table.assign(**{new: table[old] / table[old].iloc[0] for new, old in known.items()})


def summarize(rows: pd.DataFrame) -> str:
    """Format the means over seeds, and the agent's difference to each baseline, as Markdown."""
    networks = list(dict.fromkeys(rows["network"]))
    evals = rows.groupby("network")["n_evaluations"].mean()
    lines = [(*line, f"{evals[line[0]]:.0f}") for line in _means(rows, networks, COLUMNS)]
    table = format_markdown((*_headings(rows, COLUMNS), "evals"), lines)
    if "float_size" in rows:
        files = _means(rows, networks, FILE_COLUMNS)
        table += "\n\n" + format_markdown(_headings(rows, FILE_COLUMNS), files)
    agent, errors = networks[-1], rows.pivot(index="seed", columns="network", values="test_error")
    verdicts = [
        f"- {agent} minus {other}: {_format(100.0 * (errors[agent] - errors[other]).to_numpy())} "
        f"points of test error, seed by seed{_costs(rows, agent, other)}"
        for other in networks[1:-1]
    ]
    n_seeds = rows["seed"].nunique()
    title = f"Mean over {n_seeds} seeds and 95 % interval:"
    return "\n".join([title, "", table, "", *verdicts]) + "\n"


def _costs(rows: pd.DataFrame, first: str, second: str) -> str:
    """Say what two networks cost that are compared."""
    by_network = {name: rows[rows["network"] == name] for name in (first, second)}
    costs = []
    for column, name in COSTS.items():
        if column in _known(rows, COSTS):
            mine, theirs = (100.0 * each[column].mean() for each in by_network.values())
            costs.append(f"{mine:.2f} against {theirs:.2f} % of the {name}")
    return f", at {', '.join(costs)}" if costs else ""


def _headings(rows: pd.DataFrame, columns: dict[str, str]) -> tuple[str, ...]:
    return ("network", *(columns[name] for name in _known(rows, columns)))


def _means(
    rows: pd.DataFrame, networks: list[str], columns: dict[str, str]
) -> list[tuple[str, ...]]:
    """Return a line for each network: its name, and the means that there are."""
    known = _known(rows, columns)
    by_network = {network: rows[rows["network"] == network] for network in networks}
    return [
        (network, *(_format(100.0 * mine[column].to_numpy()) for column in known))
        for network, mine in by_network.items()
    ]


def _known(rows: pd.DataFrame, columns: dict[str, str]) -> list[str]:
    return [name for name in columns if name in rows and rows[name].notna().all()]


def _format(values: ArrayLike) -> str:
    found = mean_interval(values)
    shown = max(found.reach) >= 0.005  # neither NaN nor nothing
    return format_interval(found) if shown else f"{found.value:.2f}"


def run(config: Config, console: Console) -> str:
    """Summarize runs, and print the summary or write it.

    Returns:
        The Markdown.

    Raises:
        ValueError: If the folders do not go together.
    """
    text = summarize(read_runs(config.runs))
    if config.out is None:
        console.print(text, end="", soft_wrap=True, markup=False, highlight=False)
        return text
    with replacing(config.out) as path:
        path.write_text(text, encoding="utf-8")
    return text


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "", computes=False)
