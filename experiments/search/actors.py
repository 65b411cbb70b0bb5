"""The environments of a search: one in this process, or several, each in a process of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from compress_env.envs.workers import make_actors

__all__ = ["open_actors", "synchronous_actors"]


@contextmanager
def open_actors(env: gym.Env[Any, Any], n_envs: int) -> Iterator[VecEnv]:
    """Yield `env` itself, or `n_envs` copies of it in worker processes, as a `VecEnv`.

    Raises:
        RuntimeError: If a worker dies inside the block.
    """
    if n_envs == 1:
        yield DummyVecEnv([_returning(env)])
        return
    # Pickled, an environment is its arguments: each worker builds its own from them.
    workers = SubprocVecEnv(list(make_actors(_returning(env), n_envs)), start_method="spawn")
    try:
        yield workers
    except (EOFError, ConnectionError):
        raise RuntimeError("a worker process has died; its own message, if any, is above") from None
    finally:
        _close(workers)


def synchronous_actors(env: gym.Env[Any, Any], n_envs: int, seed: int | None) -> DummyVecEnv:
    """Return `env` and copies of it, `n_envs` in all, that are stepped one after the other here.

    Args:
        env: The first of them.
        n_envs: How many.
        seed: What the first is reset with, and others with numbers drawn from it; None for no
            reset.
    """
    envs = [env, *(copy.deepcopy(env) for _ in range(n_envs - 1))]
    if seed is not None:
        others = np.random.SeedSequence(seed).generate_state(n_envs)[1:].tolist()
        for each, own in zip(envs, (seed, *others), strict=True):
            each.reset(seed=own)
    return DummyVecEnv([_returning(each) for each in envs])


def _returning(env: gym.Env[Any, Any]) -> Callable[[], gym.Env[Any, Any]]:
    return lambda: env


def _close(workers: SubprocVecEnv) -> None:
    """End the workers, also when one has died or is in the midst of a step."""
    if not workers.waiting:
        with suppress(EOFError, OSError):
            workers.close()
            return
    for process, remote in zip(workers.processes, workers.remotes, strict=True):
        process.terminate()
        process.join()
        with suppress(OSError):
            remote.close()
    workers.closed = True
