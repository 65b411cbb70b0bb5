"""Parallel actors: one environment per process, with its share of the machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch

__all__ = ["make_actors"]

EnvBuilder = Callable[[], gym.Env[Any, Any]]


def make_actors(
    build: EnvBuilder, n_actors: int, threads_per_actor: int | None = None
) -> list[EnvBuilder]:
    """Return what `SubprocVecEnv` and `AsyncVectorEnv` take: a builder for each worker process.

    Each worker computes with its share of the CPU's threads and leaves Ctrl-C to the main process.
    Let `build` ask for `device="cuda:auto"` to spread the workers over the visible GPUs, and for a
    `store` in a file to share results. Start the workers by `spawn`: a forked process can use
    neither CUDA nor a file that its parent has open as a store. Built in the main process, as by
    `DummyVecEnv`, an actor is an ordinary environment.

    Args:
        build: Makes one environment, in the worker; it must be picklable by cloudpickle.
        n_actors: Number of workers, at least 1.
        threads_per_actor: CPU threads of each; by default the usable cores are divided.

    Returns:
        `n_actors` callables without arguments.

    Raises:
        ValueError: If a count is below 1.
    """
    if n_actors < 1:
        raise ValueError(f"n_actors must be at least 1, got {n_actors}")
    if threads_per_actor is None:
        threads_per_actor = max(1, _usable_cores() // n_actors)
    if threads_per_actor < 1:
        raise ValueError(f"threads_per_actor must be at least 1, got {threads_per_actor}")
    return [_Actor(build, threads_per_actor) for _ in range(n_actors)]


@dataclass(frozen=True)
class _Actor:
    """Prepares its process, then builds its environment."""

    build: EnvBuilder
    n_threads: int

    def __call__(self) -> gym.Env[Any, Any]:
        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            torch.set_num_threads(self.n_threads)
        return self.build()


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
