"""What a search shows while it runs: a bar or lines, a file for others, TensorBoard."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Literal

from matplotlib.ticker import EngFormatter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.common.cli.heartbeat import Heartbeat, format_seconds, time_left
from experiments.common.run_folder import RunFolder
from experiments.search.episodes import Episode, EpisodeLog, best_episode

__all__ = ["SearchProgress", "check_tensorboard"]

FILE_INTERVAL_S = 1.0
_shorten = EngFormatter(places=1, sep="")
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(bar_width=8),  # a line fits into 80 columns
    TextColumn("{task.completed}/{task.total}"),
    TextColumn("best {task.fields[accuracy]:.4f} at {task.fields[short_cost]}"),
    TextColumn("hits {task.fields[hit_rate]:.0%}"),
    TimeRemainingColumn(compact=True),
)


def check_tensorboard() -> None:
    """Check that TensorBoard is there.

    Raises:
        ImportError: If it is not.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ImportError(
            "--tensorboard needs TensorBoard: pip install 'compress-env[tensorboard]'"
        )


class SearchProgress:
    """Shows how far a search is, and how good the best episode is so far."""

    def __init__(
        self,
        label: str,
        total: int,
        folder: RunFolder,
        console: Console,
        *,
        unit: Literal["episodes", "evaluations"] = "episodes",
        tensorboard: bool = False,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Start at nothing.

        Args:
            label: What the search is called.
            total: How many of the unit there will be, at most.
            folder: Where `progress.json` goes, rewritten at most once a second.
            console: Where the bar goes, or lines where it is no terminal.
            unit: What the search is limited by.
            tensorboard: Whether to write scalars for TensorBoard too.
            clock: Gives the time in seconds.
        """
        self._label, self._total, self._unit, self._folder = label, total, unit, folder
        self._console, self._clock = console, clock
        self._best: Episode | None = None
        self._done, self._before = 0, 0
        self._bar = Progress(*COLUMNS, console=console, disable=not console.is_terminal)
        self._row = self._bar.add_task(label, total=total, **self._fields(0.0))
        self._heartbeat = Heartbeat(console, self._line, clock)
        self._written = -math.inf
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            name = label.replace(": ", "-")
            self._writer = SummaryWriter(folder.path / "tensorboard" / name)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show a bar on a terminal inside the block, and lines elsewhere."""
        unit = self._unit.removesuffix("s") if self._total == 1 else self._unit
        self._heartbeat.say(f"{self._label}: {self._total} {unit}")
        try:
            with self._bar, self._heartbeat.beating():
                yield
        finally:
            if self._writer is not None:
                self._writer.close()
        if self._best is not None and self._best.accuracy is not None:
            accuracy, cost = self._best.accuracy, self._best.cost
            self._heartbeat.say(
                f"{self._label}: best validation accuracy {accuracy:.4f} at {cost:,.0f}"
            )

    def advance(self, episode: Episode, log: EpisodeLog) -> None:
        """Take note of a finished episode, and at first of those before a resumption."""
        is_first = self._done == 0
        if is_first and len(log.episodes) > 1:
            self._before = self._count(log.episodes[-2])
        self._done = self._count(episode)
        episodes = log.episodes if self._best is None else [self._best, episode]
        if any(one.accuracy is not None for one in episodes):
            self._best = best_episode(episodes)
        fields = self._fields(log.hit_rate())
        self._bar.update(self._row, completed=self._done, **fields)
        self._tell(is_first)
        if self._writer is not None:
            self._write_scalars(episode, fields)
        if self._clock() - self._written >= FILE_INTERVAL_S:
            self._written = self._clock()
            self._write_file(fields)

    def _count(self, episode: Episode) -> int:
        return episode.n_evaluations if self._unit == "evaluations" else episode.index + 1

    def _tell(self, is_first: bool) -> None:
        """Print the line that is due; after the first timed episode, how long all will take."""
        rest, done = self._total - self._before, self._done - self._before
        if is_first and 0 < done < rest:
            took = format_seconds(self._heartbeat.seconds / done * rest)
            self._heartbeat.say(f"{self._label}: about {took} for {rest} {self._unit}")
        else:
            self._heartbeat.tick()

    def _line(self) -> str:
        """Return what a line says of this moment."""
        where, best = f"{self._label}: {self._done}/{self._total} {self._unit}", self._best
        done, seconds = self._done - self._before, self._heartbeat.seconds
        if done < 1:
            return f"{where} after {format_seconds(seconds)}"
        found = ""
        if best is not None and best.accuracy is not None:
            found = f", best {best.accuracy:.4f} at {_shorten(best.cost)}"
        return f"{where}{found}, {time_left(seconds, done, self._total - self._before)}"

    def _fields(self, hit_rate: float) -> dict[str, Any]:
        best = self._best
        accuracy = 0.0 if best is None or best.accuracy is None else best.accuracy
        return {
            "accuracy": accuracy,
            "cost": 0.0 if best is None else best.cost,
            "short_cost": "-" if best is None else _shorten(best.cost),
            "hit_rate": hit_rate,
        }

    def _write_file(self, fields: dict[str, Any]) -> None:
        content = {
            "label": self._label,
            "episode": self._done,
            "episodes": self._total,
            "best_accuracy": fields["accuracy"],
            "cost": fields["cost"],
            "hit_rate": fields["hit_rate"],
        }
        self._folder.write_json("progress.json", content)

    def _write_scalars(self, episode: Episode, fields: dict[str, Any]) -> None:
        scalars = {"reward": episode.reward, "hit_rate": fields["hit_rate"]}
        if episode.accuracy is not None:
            scalars |= {"accuracy": episode.accuracy, "cost": episode.cost}
            scalars |= {"best_accuracy": fields["accuracy"], "best_cost": fields["cost"]}
        for name, value in scalars.items():
            self._writer.add_scalar(f"search/{name}", value, episode.index)
