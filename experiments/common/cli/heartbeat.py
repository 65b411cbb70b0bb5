"""Lines that tell how far something long is, where no terminal shows a bar."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from time import monotonic

from rich.console import Console

from experiments.common.cli.say import say

__all__ = ["MOST_S", "Heartbeat", "format_seconds", "showing", "time_left"]

LEAST_S = 10.0
"""Seconds between two lines at least, however fast the work goes."""
MOST_S = 15.0
"""Seconds between two lines at most, however slow it goes."""
WAKE_S = 1.0


class Heartbeat:
    """Prints what is going on, neither too often nor too seldom, and nothing on a terminal."""

    def __init__(
        self, console: Console, describe: Callable[[], str], clock: Callable[[], float] = monotonic
    ) -> None:
        """Begin to count the time.

        Args:
            console: Where lines go.
            describe: Gives the line for this moment.
            clock: Gives the time in seconds.
        """
        self._console, self._describe, self._clock = console, describe, clock
        self._lock = threading.Lock()
        self._begin = self._last = clock()

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._begin

    def say(self, text: str) -> None:
        """Print a line now."""
        if not self._console.is_terminal:
            self._last = self._clock()
            say(self._console, text)

    def tick(self, after_s: float = LEAST_S) -> None:
        """Print the line for this moment if the last one is so many seconds ago."""
        with self._lock:
            if self._clock() - self._last >= after_s:
                self.say(self._describe())

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Let no more than `MOST_S` pass without a line inside the block, whatever it waits for."""
        if self._console.is_terminal:
            yield
            return
        over = threading.Event()

        def beat() -> None:
            while not over.wait(WAKE_S):
                self.tick(MOST_S)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextmanager
def showing(console: Console, text: str) -> Iterator[None]:
    """Say what is being done inside the block: a spinner on a terminal, lines elsewhere."""
    heartbeat = Heartbeat(console, lambda: f"{text}: {format_seconds(heartbeat.seconds)} so far")
    heartbeat.say(text)
    with heartbeat.beating(), console.status(text) if console.is_terminal else nullcontext():
        yield


def time_left(seconds: float, done: int, total: int) -> str:
    """Return how long the rest takes if it goes on as before, as `about 5 min left`.

    Args:
        seconds: What was done has taken.
        done: What was done in that time, at least 1.
        total: What is to be done, with that.
    """
    return f"about {format_seconds(seconds / done * max(0, total - done))} left"


def format_seconds(seconds: float) -> str:
    """Format a time, 0 or more, as `40 s`, `5 min` or `2.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
