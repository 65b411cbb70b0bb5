"""PPO with a clip, a KL penalty and a CIM penalty on Gymnasium's tasks: the claims of CIM-PPO.

arXiv 2110.10522 says that the asymmetry of the KL divergence costs PPO improvement, and that a
correntropy-induced metric in its place does better. Every agent gets the same steps on a task and,
but for the penalty, the same settings (`experiments.control.agents`). Each run is a cell of a
sweep: the same command with the same `--out` goes on where a stopped one was, and with more tasks,
agents or seeds adds to it. Any agents of `experiments.control` can be compared, such as
`--task Pendulum-v1 --algo q_critic_ppo ppo ddpg`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd
from rich.console import Console

from experiments.common.checks import check_choices, check_lowest
from experiments.common.cli.command import Interrupted, run_command
from experiments.common.cli.given import is_given
from experiments.common.drawing.outputs import write_outputs
from experiments.common.run_folder import run_path
from experiments.control import control
from experiments.ppo_penalties.figures import draw_asymmetry, draw_curves
from experiments.ppo_penalties.report import Results, format_report
from experiments.sweep.cells import Cell, make_cell
from experiments.sweep.cells_work import work_on
from experiments.sweep.folder import SweepFolder
from experiments.sweep.pools import LocalPool

__all__ = ["TABLES", "Config", "main", "read_results", "run"]

QUICK = {
    "task": ("Pendulum-v1", "CartPole-v1"),
    "seeds": (0, 1),
    "total_timesteps": 8192,
}
"""What `--quick` changes, where nothing else is given."""
TABLES = ("ppo_penalties.csv", "curves.csv.gz", "updates.csv.gz")
"""Files of the tables of `Results`, of which report and figures can be made again."""


@dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    task: tuple[str, ...] = (
        "Pendulum-v1",
        "CartPole-v1",
        "LunarLander-v3",
        "Hopper-v5",
        "HalfCheetah-v5",
    )
    """Named tasks."""
    algo: tuple[str, ...] = ("ppo", "kl_ppo", "cim_ppo")
    """Named agents."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of agents and environments."""
    total_timesteps: int | None = None
    """Environment steps of a run; each task's own number when not given."""
    quick: bool = False
    """Two tasks, two seeds and few steps: shows that everything works, and nothing else."""
    jobs: int | None = None
    """Runs at a time, one core each; as many as there are cores when not given."""
    retries: int = 3
    """How often a run whose process was killed is tried again."""
    out: Path | None = None
    """Folder to begin or to go on with; a new one under runs/ when not given."""

    def check(self) -> None:
        """Check what the runs themselves do not check.

        Raises:
            ValueError: If a setting is out of range.
        """
        check_choices(self, "task", "algo", "seeds")
        check_lowest(self, 1, "jobs")
        check_lowest(self, 0, "retries")

    def cells(self) -> list[Cell]:
        """Make a cell of each run, and check it.

        Raises:
            ValueError: If a setting is wrong.
            ImportError: If a package that a task needs is missing.
        """
        cells = []
        for task, agent, seed in product(self.task, self.algo, self.seeds):
            config = control.Config(agent, task, seed, self.total_timesteps)
            config.check()
            cells.append(make_cell("control", config))
        return cells


def run(config: Config, console: Console) -> Results:
    """Make the runs that are not finished, and write report and figures.

    Args:
        config: The settings.
        console: Where progress and report go.

    Raises:
        ValueError: If a setting is wrong; nothing has been written then.
        ImportError: If a package that a task needs is missing.
        RuntimeError: If a run has failed; the others are finished.
        Interrupted: If somebody stops it; what runs has been stopped too.
    """
    config = _quickened(config)
    config.check()
    path = run_path("ppo_penalties", config.out).absolute()
    cells, folder = config.cells(), SweepFolder(path)
    folder.check(cells)
    pool = LocalPool(jobs=config.jobs or os.cpu_count() or 1, retries=config.retries)
    try:
        failed = work_on(pool, cells, folder, console)
    except (Interrupted, KeyboardInterrupt) as stop:
        stop.add_note(f"go on with the same command and --out {folder.path}")
        raise
    if failed:
        name, error = failed[0]
        raise RuntimeError(f"{len(failed)} of {len(cells)} runs have failed; {name}: {error}")
    results = read_results(folder, cells)
    _write(folder.path, results, console)
    return results


def _quickened(config: Config) -> Config:
    if not config.quick:
        return config
    untouched = {key: value for key, value in QUICK.items() if not is_given(config, key)}
    return dataclasses.replace(config, **untouched)  # type: ignore[arg-type]


def read_results(folder: SweepFolder, cells: Sequence[Cell]) -> Results:
    """Read what the runs have left, all of them finished."""

    def read(name: str) -> pd.DataFrame:
        tables = []
        for cell in cells:
            path, config = folder.cell(cell.name) / name, cell.config
            if path.exists():  # only PPO leaves updates
                settings = {"task": config.task, "agent": config.algo, "seed": config.seed}
                tables.append(pd.read_csv(path).assign(**settings))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    return Results(read("table.csv"), read("curve.csv"), read("updates.csv"))


def _write(path: Path, results: Results, console: Console) -> None:
    figures = {"curves.png": draw_curves(results.curves)}
    if len(results.updates):
        figures["asymmetry.png"] = draw_asymmetry(results.updates)
    tables = {name: table for name, table in zip(TABLES, results, strict=True) if len(table)}
    report = format_report(results)
    write_outputs(path, "ppo_penalties", report, console, tables=tables, figures=figures)


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
