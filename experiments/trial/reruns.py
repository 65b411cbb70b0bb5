"""Allocations run again under given orders: each network once, kept for a stopped trial."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple

from rich.console import Console

from compress_env.envs.base import LayerwiseCompressionEnv
from experiments.common.cli.heartbeat import Heartbeat, time_left
from experiments.common.run_folder import RunFolder
from experiments.common.stored import typed
from experiments.search.playing import play_actions
from experiments.trial.nomination import Candidate

__all__ = ["Rerun", "Reruns"]

STATE = "reruns"
Key = tuple[tuple[float, ...], int]


class Rerun(NamedTuple):
    """What an allocation has come to under an order; a failed one is right about no image."""

    validation: float
    """Accuracy on validation images."""
    test: float
    """Accuracy on test images; NaN where nobody has asked for it."""
    seconds: float
    """Wall-clock time."""
    values: tuple[float, ...]
    """Executed pruning rates or bits."""


class Reruns:
    """Runs allocations under given orders."""

    def __init__(
        self, env: LayerwiseCompressionEnv, folder: RunFolder, label: str, console: Console
    ) -> None:
        """Read what a stopped trial has left.

        Raises:
            ValueError: If that cannot be read.
        """
        self._env, self._folder, self._label = env, folder, label
        self._heartbeat = Heartbeat(console, self._line)
        self._done: dict[Key, Rerun] = {}
        self._n_new, self._n_most = 0, 0
        state = folder.read_state(STATE)
        if state is not None:
            with folder.using(STATE):
                for values, order, *numbers in state["reruns"]:
                    validation, test, seconds = typed(tuple[float | None, ...], numbers)
                    test = math.nan if test is None else test
                    rerun = Rerun(validation, test, seconds, tuple(values))
                    self._done[rerun.values, int(order)] = rerun

    @contextmanager
    def shown(self, n_most: int) -> Iterator[None]:
        """Say inside the block how far it is, with so many runs at most."""
        self._n_most = n_most
        self._heartbeat.say(f"{self._label}: at most {n_most} runs")
        with self._heartbeat.beating():
            yield

    def run(self, candidate: Candidate, order: int, *, with_test: bool = False) -> Rerun:
        """Return what a candidate comes to under an order; the test images are used if asked for.

        Args:
            candidate: The allocation.
            order: The noise seed.
            with_test: Whether test accuracy is wanted.
        """
        key = candidate.values, order
        known = self._done.get(key)
        if known is not None and not (with_test and math.isnan(known.test)):
            return known
        self._done[key] = rerun = rerun_actions(self._env, candidate.actions, order, with_test)
        self._n_new += 1
        self._folder.write_state(STATE, {"reruns": self._state()})
        self._heartbeat.tick()
        self._folder.write_json("progress.json", self._progress())
        return rerun

    def _state(self) -> list[tuple[Any, ...]]:
        return [
            (*key, each.validation, None if math.isnan(each.test) else each.test, each.seconds)
            for key, each in self._done.items()
        ]

    def _line(self) -> str:
        where, seconds = f"{self._label}: {self._n_new} runs", self._heartbeat.seconds
        if self._n_new < 1:
            return where
        return f"{where}, at most {time_left(seconds, self._n_new, self._n_most)}"

    def _progress(self) -> dict[str, object]:
        note = f"{self._n_new} runs under fresh orders"
        done = {"episode": self._n_new, "episodes": self._n_most}
        return {"label": self._label, **done, "note": note}


def rerun_actions(
    env: LayerwiseCompressionEnv, actions: tuple[float, ...], order: int, with_test: bool
) -> Rerun:
    """Take actions under an order; the environment then holds their network.

    Args:
        env: The environment.
        actions: One for each layer, fewer where the episode ends sooner.
        order: The noise seed.
        with_test: Whether test accuracy is wanted.

    Raises:
        ValueError: If there is another number of actions.
    """
    start = perf_counter()
    episode = play_actions(env, actions, order)
    validation, test = episode.accuracy or 0.0, math.nan
    if with_test:
        has_failed = episode.accuracy is None
        test = 0.0 if has_failed else env.task.accuracy(env.compressed_model(), "test")
    return Rerun(validation, test, perf_counter() - start, episode.values)
