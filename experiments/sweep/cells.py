"""Cells of a sweep: each is one run of an experiment with one choice from the grid."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from compress_env.names import check_name
from experiments.common.cli.given import given_in
from experiments.common.cli.parsing import UsageError, parse_command
from experiments.compress import compress
from experiments.control import control
from experiments.rival import rival
from experiments.trial import trial

__all__ = ["EXPERIMENTS", "Cell", "Experiment", "cell_name", "make_cell", "make_cells"]


class Experiment(NamedTuple):
    """What a sweep must know of an experiment."""

    config: type[Any]
    """Frozen dataclass with the fields `out` and `resume` and the method `check`."""
    run: Callable[[Any, Console], object]
    """Makes a run folder, or goes on in one; `config.json` is its first file, `table.csv` its
    last, and `state/` holds what it has saved meanwhile."""
    grid: tuple[str, ...]
    """Settings that tell its cells apart, in the order in which they name a cell."""


EXPERIMENTS = {
    "compress": Experiment(
        compress.Config,
        compress.run,
        ("model", "data", "algo", "method", "macs", "params", "size", "seed"),
    ),
    "control": Experiment(control.Config, control.run, ("algo", "task", "seed")),
    "rival": Experiment(
        rival.Config, rival.run, ("algo", "task", "macs", "size", "distill", "seed")
    ),
    "trial": Experiment(trial.Config, trial.run, ("algo", "task", "seed")),
}
"""Experiments whose runs can be cells, by name."""

COLUMNS = {
    ("compress", "data"): "dataset",
    ("compress", "macs"): "flops_budget",
    ("compress", "params"): "params_budget",
    ("compress", "size"): "size_budget",
    ("control", "algo"): "agent",
    ("rival", "algo"): "agent",
    ("rival", "macs"): "flops_budget",
    ("rival", "size"): "size_budget",
    ("trial", "algo"): "agent",
}
"""What `sweep.csv` calls settings, by experiment and setting, where it is otherwise."""
LABELS = {"macs": "flops", "params": "params", "size": "size", "distill": "distill", "seed": "seed"}


class Cell(NamedTuple):
    """One run of one experiment."""

    name: str
    """Name of its folder, made of its experiment and the settings of the grid."""
    experiment: str
    """Key of `EXPERIMENTS`."""
    config: Any
    """Settings of the experiment; neither `out` nor `resume` is set."""

    def columns(self) -> dict[str, Any]:
        """Return what tells its rows from those of other cells."""
        grid = EXPERIMENTS[self.experiment].grid
        settings = {
            COLUMNS.get((self.experiment, key), key): getattr(self.config, key) for key in grid
        }
        return {"experiment": self.experiment, **settings, "cell": f"cells/{self.name}"}


def make_cells(
    experiments: Sequence[str], grid: Mapping[str, Sequence[Any]], options: Sequence[str]
) -> list[Cell]:
    """Make the cells of a grid and check the settings of each.

    Args:
        experiments: Names of experiments.
        grid: Values by setting; a setting without values keeps the experiment's default.
        options: Command-line options of the experiments that hold for every cell.

    Raises:
        ValueError: If a name, an option or a value is wrong, or two cells are the same.
    """
    varied = {key: values for key, values in grid.items() if values}
    cells = []
    for name in experiments:
        base = _parse_options(name, options)
        _check_varied(name, options, varied)
        for values in itertools.product(*varied.values()):
            settings = dict(zip(varied, values, strict=True))
            config = _resolved(dataclasses.replace(base, **settings))
            config.check()
            cells.append(make_cell(name, config))
    names = [cell.name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the grid holds a cell twice: {twice[0]}")
    if not cells:
        raise ValueError("expected at least one experiment, got none")
    return cells


def _parse_options(name: str, options: Sequence[str]) -> Any:
    """Make the settings that all cells share; paths become absolute, for workers elsewhere."""
    check_name("experiment", name, EXPERIMENTS)
    try:
        config = parse_command(EXPERIMENTS[name].config, options)
    except UsageError as error:
        raise UsageError(f"options of {name}: {error}") from None
    if config.out is not None or config.resume is not None:
        raise ValueError(f"options of {name}: the sweep itself chooses --out and --resume")
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    paths = {key: value.absolute() for key, value in values.items() if isinstance(value, Path)}
    return dataclasses.replace(config, **paths)


def _resolved(config: Any) -> Any:
    """Return the settings that a cell is named by: the main job's with its task where none is."""
    return config.resolved() if isinstance(config, compress.Config) else config


def _check_varied(name: str, options: Sequence[str], varied: Mapping[str, Sequence[Any]]) -> None:
    given = given_in(EXPERIMENTS[name].config, options)
    for key in varied:
        if key not in EXPERIMENTS[name].grid:
            raise ValueError(f"experiment {name!r} has no setting {key!r}")
        if key in given:
            raise ValueError(f"{key!r} is given twice: in the grid and among the options")


def make_cell(experiment: str, config: Any) -> Cell:
    """Name a run of an experiment by the settings of its grid."""
    grid = EXPERIMENTS[experiment].grid
    values = {key: getattr(config, key) for key in grid}
    parts = [f"{LABELS.get(key, '')}{value}" for key, value in values.items() if value is not None]
    return Cell(cell_name(experiment, *parts), experiment, config)


def cell_name(*parts: str) -> str:
    """Join parts to the name of a cell, without what the name of a folder cannot hold."""
    return re.sub(r"[^\w.+-]", "_", "-".join(parts))
