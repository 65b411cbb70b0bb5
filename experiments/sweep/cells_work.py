"""Work on many cells at once, finished ones left alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console

from experiments.common.cli.say import say
from experiments.common.stored import find_stored
from experiments.sweep.cells import EXPERIMENTS, Cell
from experiments.sweep.display import Display
from experiments.sweep.folder import SweepFolder, Task
from experiments.sweep.pools import Outcome, Pool

__all__ = ["stored_of", "work_on"]

POLL_S = 0.5


def stored_of(experiment: str, folder: SweepFolder) -> list[Cell]:
    """Return the cells that a folder holds already, all of one experiment; none of a new folder.

    Raises:
        ValueError: If it is no sweep, or one of something else too.
    """
    stored = folder.stored_cells() if find_stored(folder.marker) else []
    for cell in stored:
        if cell.experiment != experiment:
            raise ValueError(
                f"{str(folder.path)!r} holds runs of {cell.experiment}, none of which go with "
                f"those of {experiment}; choose another folder"
            )
    return stored


def work_on(
    pool: Pool,
    cells: Sequence[Cell],
    folder: SweepFolder,
    console: Console,
    *,
    threads: int = 1,
    prepare: Callable[[Cell], Cell] = lambda cell: cell,
) -> list[Outcome]:
    """Run the cells that are not finished; the pool is stopped whatever happens.

    Args:
        pool: Where they are run.
        cells: Cells that the folder has been checked for.
        folder: Keeps their runs; finished ones are merged into its `sweep.csv`.
        console: Where progress goes.
        threads: Threads of each.
        prepare: Gives cells settings that results do not depend on, before they are run.

    Returns:
        The cells that have failed; all others are finished.

    Raises:
        ValueError: If another process works in the folder.
    """
    try:
        with folder.open(cells) as sweep_id:
            tasks = [
                Task(prepare(cell), EXPERIMENTS[cell.experiment], folder.path, sweep_id, threads)
                for cell in cells
                if not folder.finished(cell.name)
            ]
            each = "1 thread" if threads == 1 else f"{threads} threads"
            work = f"{len(tasks)} of {len(cells)} cells to work on, {pool.place}, {each} each"
            console.print(work, highlight=False)
            failed = _follow(pool, cells, folder, tasks, console)
    finally:
        pool.stop()
    n_finished = folder.merge(cells)
    console.print(f"{n_finished} of {len(cells)} cells finished", highlight=False)
    say(console, f"sweep folder: {folder.path}")
    return failed


def _follow(
    pool: Pool, cells: Sequence[Cell], folder: SweepFolder, tasks: list[Task], console: Console
) -> list[Outcome]:
    """Show what becomes of the tasks and merge what is finished; return what has failed."""
    display, failed = Display(console, folder, len(cells)), []
    going = {task.cell.name: None for task in tasks}
    display.begin(going, folder.merge(cells))
    pool.submit(tasks)
    with display.live:
        while going:
            outcomes = pool.poll(POLL_S)
            display.follow(going)
            for outcome in outcomes:
                del going[outcome.name]
                if outcome.error is not None:
                    failed.append(outcome)
                folder.merge(cells)
                display.end(outcome, len(cells) - len(going) - len(failed))
    return failed
