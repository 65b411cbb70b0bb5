"""Run any grid of cells: experiments, algorithms, seeds, budgets, networks.

`compress-env sweep --algo cma_es ppo --seeds 0 1 2 -- --effort thorough` runs the cells in
processes of this machine, or with `--ray ADDRESS` on a Ray cluster. What follows a bare `--` are
options of the experiment for every cell. A cell whose process or node dies goes on from its last
saved state; `--resume SWEEP`, or the same command with the same `--out`, goes on with the sweep and
leaves finished cells alone. The tables of all cells are merged into `sweep.csv`.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from compress_env.envs.pruning import PruningMethod
from experiments.common.checks import check_lowest
from experiments.common.cli.command import Interrupted, ending_in_one_line, resume_hint
from experiments.common.cli.given import given_in, giving, is_given
from experiments.common.cli.parsing import parse_command
from experiments.common.run_folder import run_path
from experiments.sweep.cells import Cell, make_cells
from experiments.sweep.cells_work import work_on
from experiments.sweep.folder import SweepFolder
from experiments.sweep.pools import LocalPool, Outcome, Pool, RayPool

__all__ = ["Config", "main", "run"]

GRID_FIELDS = ("model", "data", "algo", "task", "method", "macs", "params", "size", "seeds")


@dataclass(frozen=True)
class Config:
    """Settings of a sweep. A part of the grid that is not given keeps the experiment's default."""

    experiments: tuple[str, ...] = ("compress",)
    """Named experiments."""
    model: tuple[str, ...] = ()
    """Networks, as the main job names them."""
    data: tuple[str, ...] = ()
    """Images, as the main job names them."""
    algo: tuple[str, ...] = ()
    """Agents."""
    task: tuple[str, ...] = ()
    """Tasks of `trial` or `control`."""
    method: tuple[PruningMethod, ...] = ()
    """How channels are selected."""
    macs: tuple[float, ...] = ()
    """Budgets of multiply-accumulates, fractions."""
    params: tuple[float, ...] = ()
    """Budgets of parameters, fractions."""
    size: tuple[float, ...] = ()
    """Budgets of bytes, fractions."""
    seeds: tuple[int, ...] = ()
    """Seeds."""
    options: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Options of the experiments for every cell; on the command line, what follows `--`."""
    out: Path | None = None
    """Folder of the sweep, to begin or to go on with; a new one under runs/ when not given."""
    jobs: int | None = None
    """Cells at a time on this machine; when not given, as many as its cores suffice for."""
    cpus_per_cell: int = 1
    """Threads of a cell; on a cluster, also the CPUs that it takes."""
    gpus_per_cell: float = 0.0
    """GPUs, or the fraction of one, that a cell takes on a cluster."""
    retries: int = 3
    """How often a cell whose process or node died is tried again."""
    ray: str | None = None
    """Ray cluster: auto, local (start one here), host:port or ray://host:port."""
    resume: Path | None = None
    """Folder of a sweep to go on with, with the grid that it was made with."""

    def check(self) -> None:
        """Check the settings that are not of the grid.

        Raises:
            ValueError: If one is out of range.
        """
        check_lowest(self, 1, "jobs", "cpus_per_cell")
        check_lowest(self, 0, "gpus_per_cell", "retries")
        if self.ray is None and self.gpus_per_cell > 0.0:
            raise ValueError("gpus_per_cell needs --ray; --ray local will do")
        if self.ray is not None and self.jobs is not None:
            raise ValueError("jobs is for this machine alone; with --ray, the CPUs decide")
        grid = ("experiments", *GRID_FIELDS, "out")
        if self.resume is not None and (self.options or any(is_given(self, x) for x in grid)):
            raise ValueError("--resume goes on with the grid and the folder that there are")

    def cells(self) -> list[Cell]:
        """Make the cells of the grid.

        Raises:
            ValueError: If a setting of any of them is wrong.
        """
        grid = {field: getattr(self, field) for field in GRID_FIELDS[:-1]} | {"seed": self.seeds}
        return make_cells(self.experiments, grid, self.options)


def run(config: Config, console: Console) -> list[Outcome]:
    """Run a sweep, or go on with it.

    Args:
        config: The settings.
        console: Where progress goes.

    Returns:
        The cells that have failed; all others are finished and in `sweep.csv`.

    Raises:
        ValueError: If a setting is wrong; nothing has been written then.
        Interrupted: If somebody stops it; what runs has been stopped too.
    """
    config.check()
    folder = SweepFolder(run_path("sweep", config.resume or config.out).absolute())
    cells = folder.trusted(folder.stored_cells()) if config.resume else config.cells()
    folder.check(cells)
    pool = _make_pool(config, console)
    try:
        return work_on(pool, cells, folder, console, threads=config.cpus_per_cell)
    except (Interrupted, KeyboardInterrupt) as stop:
        stop.add_note(resume_hint("experiments.sweep", folder.path))
        raise


def _make_pool(config: Config, console: Console) -> Pool:
    cpus, gpus = config.cpus_per_cell, config.gpus_per_cell
    if config.ray is None:
        jobs = config.jobs or max(1, (os.cpu_count() or 1) // cpus)
        return LocalPool(jobs=jobs, retries=config.retries)
    pool = RayPool(config.ray, cpus=cpus, gpus=gpus, retries=config.retries)
    if not pool.fits:
        console.print(f"no node has {cpus} CPUs and {gpus:g} GPUs now; cells wait for one that has")
    return pool


def main() -> None:
    """Run from the command line; exit with 1 if a cell has failed."""
    arguments, options = _split(sys.argv[1:])
    with ending_in_one_line(), giving(given_in(Config, arguments)):
        config = parse_command(Config, arguments, __doc__)
        failed = run(dataclasses.replace(config, options=options), Console())
    sys.exit(1 if failed else 0)


def _split(arguments: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Split a command line at the first bare `--`."""
    if "--" not in arguments:
        return arguments, ()
    at = arguments.index("--")
    return arguments[:at], tuple(arguments[at + 1 :])
