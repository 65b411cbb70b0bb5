"""Compress one network in many ways at equal budgets, fine-tune all alike, and compare.

`python -m experiments.rivals --macs 0.5 0.3 --size 0.1 --seeds 0 1 2 --data-root DATA --out FOLDER`
runs each row at each budget from each seed (`experiments.rival`), one after the other, in the order
in which they are named, the first seed first, and writes `rivals.md` and `rivals-*.png`. Rules of
pruning and pruners of other libraries are run at budgets of multiply-accumulates, rules of bits at
those of bytes. The same command goes on where it was stopped and repeats nothing that is finished;
other rows, budgets or seeds with the same `--out` are added, also to a folder of which nothing but
`sweep.json` and `sweep.csv` is left.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from agents.rules import BIT_RULES, PRUNING_RULES
from experiments.common.checks import check_choices, check_lowest
from experiments.common.cli.command import Interrupted, ending_in_one_line
from experiments.common.cli.given import given_in, giving, is_given
from experiments.common.cli.parsing import parse_command
from experiments.common.drawing.outputs import write_outputs
from experiments.common.run_folder import run_path
from experiments.rival.libraries import LIBRARIES
from experiments.rival.rival import A_PRUNING_RULE, OTHERS, UNPRUNED
from experiments.rival.rival import Config as Rival
from experiments.rivals.report import draw_errors, format_rivals, read_rivals
from experiments.search.entrants import ACCEPTED, can_act, check_stage
from experiments.sweep.cells import Cell, make_cell
from experiments.sweep.cells_work import stored_of, work_on
from experiments.sweep.folder import SweepFolder
from experiments.sweep.pools import LocalPool, Outcome

__all__ = ["ROWS", "Config", "main", "run"]

ROWS = (
    UNPRUNED,
    "uniform",
    "tp_l2",
    "tp_taylor",
    *PRUNING_RULES,
    *BIT_RULES,
    *(f"{agent}{rule}" for agent in ("random", "cma_es", "tpe") for rule in ("", "+kl_curve")),
    "q_critic_ppo_paper",
    "q_critic_ppo",
    "q_critic_ppo+kl_curve",
    "fastnas",
)
"""All that is compared, the cheapest first."""
RETRIES = 3


@dataclass(frozen=True)
class Config:
    """Settings of a comparison."""

    algo: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            help=f"Rows: {', '.join(OTHERS)}; and {ACCEPTED}. When not given, all that the budgets "
            "are for."
        ),
    ] = ROWS
    prune_task: str = "compress_env/PruneResNet20CIFAR10-v1"
    """Task of the budgets of multiply-accumulates, with or without its namespace."""
    quantize_task: str = "compress_env/QuantizeResNet20CIFAR10-v1"
    """Task of the budgets of bytes."""
    macs: tuple[float, ...] = (0.5, 0.3)
    """Budgets of multiply-accumulates, fractions of the unpruned network's."""
    size: tuple[float, ...] = ()
    """Budgets of bytes, fractions of the float32 file's."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of searches and fine-tunings."""
    distill: tuple[float, ...] = (0.0,)
    """Weights of the unpruned network's answers in the final fine-tuning."""
    epochs: int = 10
    """Passes over the training images in the final fine-tuning of every row."""
    batch_size: int = 128
    """Images in a minibatch of it."""
    learning_rate: float = 0.05
    """Its peak step size."""
    evaluations: int = 100
    """Networks that a search may evaluate."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environments in place of the tasks' own, a JSON object."""
    bf16: bool | None = None
    """Fine-tune under autocast in bfloat16; where that is faster when not given."""
    channels_last: bool | None = None
    """Fine-tune channels last; where that is faster when not given."""
    data_root: Path | None = None
    """Folder of the data set's files."""
    jobs: int = 1
    """Cells at a time."""
    threads: int = 1
    """Threads of each."""
    out: Path | None = None
    """Folder, to begin or to go on with; a new one under runs/ when not given."""

    def rivals(self) -> list[Rival]:
        """Make the settings of all cells, in the order in which they are run.

        Raises:
            ValueError: If one is wrong.
            ImportError: If a package that an agent needs is missing.
        """
        check_choices(self, "algo", "seeds", "distill")
        check_lowest(self, 1, "jobs", "threads")
        for name in ("macs", "size"):
            if getattr(self, name):
                check_choices(self, name)
        if not self.macs and not self.size:
            raise ValueError("expected budgets, macs or size or both, got none")
        budgets = [
            *((self.prune_task, {"macs": budget}) for budget in self.macs),
            *((self.quantize_task, {"size": budget}) for budget in self.size),
        ]
        rivals = [
            self._rival(algo, task, seed, distill, budget)
            for seed in self.seeds
            for task, budget in budgets
            for distill in self.distill
            for algo in self.algo
            if algo != UNPRUNED and _takes_part(algo, task)
        ]
        if UNPRUNED in self.algo:
            task, whole = budgets[0][0], {next(iter(budgets[0][1])): 1.0}
            unpruned = [
                self._rival(UNPRUNED, task, seed, distill, whole)
                for seed in self.seeds
                for distill in self.distill
            ]
            rivals = [*unpruned, *rivals]
        played = {rival.algo for rival in rivals}
        for algo in self.algo if is_given(self, "algo") else ():
            if algo in played:
                continue
            if algo in OTHERS:
                raise ValueError(f"{algo} prunes: give budgets of multiply-accumulates, --macs")
            check_stage(algo, Rival(task=budgets[0][0]).task)
        for rival in rivals:
            rival.check()
        return sorted(rivals, key=lambda rival: self.seeds.index(rival.seed))

    def _rival(
        self, algo: str, task: str, seed: int, distill: float, budget: dict[str, float]
    ) -> Rival:
        root = None if self.data_root is None else self.data_root.absolute()
        rival = Rival(
            algo,
            task,
            seed=seed,
            distill=distill,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            evaluations=self.evaluations,
            env_kwargs=self.env_kwargs,
            data_root=root,
            bf16=self.bf16,
            channels_last=self.channels_last,
        )
        return replace(rival, **budget)  # type: ignore[arg-type]


def _takes_part(algo: str, task: str) -> bool:
    """Tell whether a row is one of a task's."""
    name = A_PRUNING_RULE if algo in LIBRARIES else algo
    return can_act(name, Rival(task=task).task)


def run(config: Config, console: Console) -> list[Outcome]:
    """Run a comparison, or go on with one, and write its tables and figures.

    Returns:
        The cells that have failed.

    Raises:
        ValueError: If a setting is wrong; nothing has been written then.
        Interrupted: If somebody stops it.
    """
    folder = SweepFolder(run_path("rivals", config.out).absolute(), rows_suffice=True)
    cells = _with_stored(folder, [make_cell("rival", rival) for rival in config.rivals()])
    pool = LocalPool(jobs=config.jobs, retries=RETRIES)
    try:
        failed = work_on(pool, cells, folder, console, threads=config.threads)
    except (Interrupted, KeyboardInterrupt) as stop:
        stop.add_note(f"go on with the same command and --out {folder.path}")
        raise
    if len(failed) < len(cells):
        rows = read_rivals(folder.path)
        write_outputs(
            folder.path, "rivals", format_rivals(rows), console, figures=draw_errors(rows)
        )
    return failed


def _with_stored(folder: SweepFolder, cells: list[Cell]) -> list[Cell]:
    """Add the cells that the folder holds already, after those that are asked for.

    Raises:
        ValueError: If the folder is of something else, or holds a cell with other settings.
    """
    stored = stored_of("rival", folder)
    names = {cell.name for cell in cells}
    both = [*cells, *folder.trusted([cell for cell in stored if cell.name not in names])]
    folder.check(both)
    return both


def main() -> None:
    """Run from the command line; exit with 1 if a cell has failed."""
    with ending_in_one_line(), giving(given_in(Config, sys.argv[1:])):
        failed = run(parse_command(Config, sys.argv[1:], __doc__), Console())
    sys.exit(1 if failed else 0)
