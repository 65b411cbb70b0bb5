"""What a sweep shows: live on a terminal, and one line for each event elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import monotonic
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table

from experiments.common.heartbeat import MOST_S, Heartbeat, time_left
from experiments.common.stored import read_object
from experiments.sweep.folder import SweepFolder
from experiments.sweep.pools import Outcome

__all__ = ["Display"]


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
        self._console, self._folder = console, folder
        self._heartbeat = Heartbeat(console, self._line, clock)
        self._before = self._done = 0
        self._seen: dict[str, int] = {}
        self._running: dict[str, None] = {}  # in the order of starting
        columns = (BarColumn(40), MofNCompleteColumn(), TextColumn("cells"), TimeElapsedColumn())
        self._bar = Progress(*columns)
        self._total = self._bar.add_task("cells", total=n_cells)
        self.n_cells = n_cells

    def live(self) -> AbstractContextManager[object]:
        """Return the context in which running cells are shown, on a terminal."""
        if not self._console.is_terminal:
            return nullcontext()
        return Live(get_renderable=self._render, console=self._console, refresh_per_second=2)

    def begin(self, names: Iterable[str], n_finished: int) -> None:
        """Take what is recorded by now as known.

        Args:
            names: Cells to be worked on.
            n_finished: Cells finished before.
        """
        self._seen = {name: len(self._folder.records(name)) for name in names}
        self._before = self._done = n_finished
        self._bar.update(self._total, completed=n_finished)
        if n_finished:
            self._print(f"{n_finished} of {self.n_cells} cells were finished before")

    def follow(self, names: Iterable[str]) -> None:
        """Tell what has been recorded since the last time."""
        for name in names:
            records = self._folder.records(name)
            for record in records[self._seen.get(name, 0) :]:
                if record["event"] == "started":
                    self._tell_start(name, record)
                else:
                    self._running.pop(name, None)
            self._seen[name] = len(records)
        self._heartbeat.tick(MOST_S)

    def _line(self) -> str:
        """Return how far all cells are."""
        done, rest = self._done - self._before, self.n_cells - self._before
        left = f", {time_left(self._heartbeat.seconds, done, rest)}" if done else ""
        return f"{self._done} of {self.n_cells} cells finished, {len(self._running)} running{left}"

    def _tell_start(self, name: str, record: dict[str, Any]) -> None:
        self._running[name] = None
        node, attempt = record["node"], record["attempt"]
        if attempt > 1:
            saved = record["source"] == "state"
            how = "goes on from its saved state" if saved else "starts again"
            self._print(f"{name}: {how} on {node}, attempt {attempt}")
        else:
            self._heartbeat.say(f"{name}: started on {node}")

    def end(self, outcome: Outcome, n_finished: int) -> None:
        """Tell how a cell has ended.

        Args:
            outcome: The cell, and its error if any.
            n_finished: Cells finished by now, those of earlier calls included.
        """
        self._running.pop(outcome.name, None)
        self._done = n_finished
        self._bar.update(self._total, completed=n_finished)
        if outcome.error is None:
            self._print(f"{outcome.name}: finished, {n_finished} of {self.n_cells}")
        else:
            log = self._folder.log(outcome.name)
            self._print(f"{outcome.name}: failed: {outcome.error} (see {log})")

    def _print(self, text: str) -> None:
        if self._console.is_terminal:
            self._console.print(text, soft_wrap=True, markup=False, highlight=False)
        self._heartbeat.say(text)

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for name in list(self._running)[: max(1, self._console.height - 3)]:
            table.add_row(*self._progress_of(name))
        return Group(table, self._bar)

    def _progress_of(self, name: str) -> Sequence[RenderableType]:
        """Return the cells of a line, of what the experiment last wrote about its progress."""
        path = self._folder.cell(name) / "progress.json"
        try:
            progress = read_object(path)
            done, total = int(progress["episode"]), int(progress["episodes"])
            label = str(progress["label"])
            # Without a note it is of a search.
            note = progress.get("note") or f"best accuracy {float(progress['best_accuracy']):.4f}"
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return (name, "starting")
        bar = ProgressBar(total=total, completed=done, width=20)
        return (name, escape(label), bar, f"{done}/{total}", escape(str(note)))
