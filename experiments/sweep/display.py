"""What a sweep shows: live on a terminal, and one line for each event elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from time import monotonic
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from experiments.common.cli.heartbeat import MOST_S, Heartbeat, time_left
from experiments.common.cli.say import say
from experiments.common.stored import read_object
from experiments.sweep.folder import SweepFolder
from experiments.sweep.pools import Outcome

__all__ = ["Display"]

# What is told first is whole on a narrow terminal too.
# Texts share what a narrow terminal leaves.
COLUMNS = (
    BarColumn(8, table_column=Column(width=8, no_wrap=True)),
    MofNCompleteColumn(table_column=Column(width=7, no_wrap=True)),
    TextColumn("{task.fields[note]}", table_column=Column(ratio=2, no_wrap=True)),
    TextColumn("{task.description}", table_column=Column(ratio=3, no_wrap=True)),
)


class Display:
    """Tells what becomes of the cells, from the records and the progress that they keep."""

    def __init__(
        self,
        console: Console,
        folder: SweepFolder,
        n_cells: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Count no cell as finished yet.

        Args:
            console: Where everything goes.
            folder: The sweep.
            n_cells: Cells of the grid.
            clock: Gives the time in seconds.
        """
        self._console, self._folder, self.n_cells = console, folder, n_cells
        self._heartbeat = Heartbeat(console, self._line, clock)
        self._before = self._done = self._n_common = 0
        self._seen: dict[str, int] = {}
        self._running: dict[str, TaskID] = {}  # in the order of starting
        self.live = Progress(
            *COLUMNS,
            console=console,
            disable=not console.is_terminal,
            expand=True,
            refresh_per_second=2,
        )
        """The context in which running cells are shown, on a terminal."""
        self._all = self.live.add_task("all cells", total=n_cells, note="")

    def begin(self, names: Iterable[str], n_finished: int) -> None:
        """Take what is recorded by now as known.

        Args:
            names: Cells to be worked on.
            n_finished: Cells finished before.
        """
        self._seen = {name: len(self._folder.records(name)) for name in names}
        self._n_common = _n_common(list(self._seen))
        self._before = self._done = n_finished
        self.live.update(self._all, completed=n_finished)
        if n_finished:
            self._print(f"{n_finished} of {self.n_cells} cells were finished before")

    def follow(self, names: Iterable[str]) -> None:
        """Tell what has been recorded since the last time, and now and then how far all are."""
        for name in names:
            records = self._folder.records(name)
            for record in records[self._seen.get(name, 0) :]:
                if record["event"] == "started":
                    self._tell_start(name, record)
                else:
                    self._take_off(name)
            self._seen[name] = len(records)
        for name, row in self._running.items():
            self.live.update(row, **self._progress_of(name))
        self._heartbeat.tick(MOST_S)

    def _tell_start(self, name: str, record: dict[str, Any]) -> None:
        self._take_off(name)
        self._running[name] = self.live.add_task(
            escape(name[self._n_common :]), total=None, note="starting"
        )
        node, attempt = record["node"], record["attempt"]
        if attempt > 1:
            saved = record["source"] == "state"
            how = "goes on from its saved state" if saved else "starts again"
            self._print(f"{name}: {how} on {node}, attempt {attempt}")
        else:
            self._heartbeat.say(f"{name}: started on {node}")

    def _take_off(self, name: str) -> None:
        if name in self._running:
            self.live.remove_task(self._running.pop(name))

    def end(self, outcome: Outcome, n_finished: int) -> None:
        """Tell how a cell has ended.

        Args:
            outcome: The cell, and its error if any.
            n_finished: Cells finished by now, those of earlier calls included.
        """
        self._take_off(outcome.name)
        self._done = n_finished
        self.live.update(self._all, completed=n_finished)
        if outcome.error is None:
            self._print(f"{outcome.name}: finished, {n_finished} of {self.n_cells}")
        else:
            log = self._folder.log(outcome.name)
            self._print(f"{outcome.name}: failed: {outcome.error} (see {log})")

    def _print(self, text: str) -> None:
        """Print a line, above the bars on a terminal."""
        if self._console.is_terminal:
            say(self._console, text)
        self._heartbeat.say(text)

    def _line(self) -> str:
        """Return how far all cells are."""
        done, rest = self._done - self._before, self.n_cells - self._before
        left = f", {time_left(self._heartbeat.seconds, done, rest)}" if done else ""
        return f"{self._done} of {self.n_cells} cells finished, {len(self._running)} running{left}"

    def _progress_of(self, name: str) -> dict[str, Any]:
        """Return what a cell's line shows, of what the experiment last wrote of its progress."""
        try:
            progress = read_object(self._folder.cell(name) / "progress.json")
            # Without a note it is of a search.
            note = progress.get("note") or f"best accuracy {float(progress['best_accuracy']):.4f}"
            shown = {"completed": int(progress["episode"]), "total": int(progress["episodes"])}
            return shown | {"note": escape(f"{progress['label']}, {note}")}
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return {}


def _n_common(names: Sequence[str]) -> int:
    """Return the length of the parts that all names begin with, which tell none from another."""
    if len(names) < 2:
        return 0
    by_place = zip(*(name.split("-") for name in names), strict=False)
    shared = takewhile(lambda parts: len(set(parts)) == 1, by_place)
    return sum(len(parts[0]) + 1 for parts in shared)
