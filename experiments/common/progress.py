"""What a search shows while it runs: a bar on a terminal, a file for others, TensorBoard."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from matplotlib.ticker import EngFormatter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

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
        self, label: str, total: int, folder: RunFolder, console: Console, *, tensorboard: bool
    ) -> None:
        """Start at nothing.

        Args:
            label: What the search is called.
            total: Episodes, or evaluations for a search that is limited by them.
            folder: Where `progress.json` goes, rewritten at most once a second.
            console: Where the bar goes.
            tensorboard: Whether to write scalars for TensorBoard too.
        """
        self._label, self._total, self._folder, self._console = label, total, folder, console
        self._best: Episode | None = None
        self._bar = Progress(*COLUMNS, console=console, disable=not console.is_terminal)
        self._row = self._bar.add_task(label, total=total, **self._fields(0.0))
        self._written = -math.inf
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            name = label.replace(": ", "-")
            self._writer = SummaryWriter(folder.path / "tensorboard" / name)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show a bar on a terminal inside the block, and one line after it elsewhere."""
        try:
            with self._bar:
                yield
        finally:
            if self._writer is not None:
                self._writer.close()
        if not self._console.is_terminal and self._best is not None:
            accuracy, cost = self._best.accuracy, self._best.cost
            text = f"{self._label}: best validation accuracy {accuracy:.4f} at {cost:,.0f}"
            self._console.print(text, soft_wrap=True, markup=False)

    def advance(self, episode: Episode, log: EpisodeLog) -> None:
        """Take note of a finished episode, and at first of those before a resumption."""
        episodes = log.episodes if self._best is None else [self._best, episode]
        if any(one.accuracy is not None for one in episodes):
            self._best = best_episode(episodes)
        fields = self._fields(log.hit_rate())
        self._show(episode.index + 1, fields)
        if self._writer is not None:
            self._write_scalars(episode, fields)
        if monotonic() - self._written >= FILE_INTERVAL_S:
            self._written = monotonic()
            self._write_file(episode, fields)

    def _show(self, n_episodes: int, fields: dict[str, Any]) -> None:
        self._bar.update(self._row, completed=n_episodes, **fields)

    def _fields(self, hit_rate: float) -> dict[str, Any]:
        best = self._best
        accuracy = 0.0 if best is None or best.accuracy is None else best.accuracy
        return {
            "accuracy": accuracy,
            "cost": 0.0 if best is None else best.cost,
            "short_cost": "-" if best is None else _shorten(best.cost),
            "hit_rate": hit_rate,
        }

    def _write_file(self, episode: Episode, fields: dict[str, Any]) -> None:
        content = {
            "label": self._label,
            "episode": episode.index + 1,
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
