"""The environments of a search: one in this process, or several, each in a process of its own."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
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
        RuntimeError: If a worker dies; the message says what of, where the worker could tell.
    """
    if n_envs == 1:
        yield DummyVecEnv([_returning(env)])
        return
    with TemporaryDirectory(prefix="compress-env-") as folder:
        # Pickled, an environment is its arguments: each worker builds its own from them.
        told = [Path(folder) / str(number) for number in range(n_envs)]
        makers = [_Told(make, to) for make, to in zip(_makers(env, n_envs), told, strict=True)]
        workers: SubprocVecEnv | None = None
        try:
            workers = SubprocVecEnv(list(makers), start_method="spawn")
            yield workers
        except (EOFError, ConnectionError):
            raise RuntimeError(f"a worker process has died{_last_words(told)}") from None
        finally:
            if workers is not None:
                _close(workers)


def _makers(env: gym.Env[Any, Any], n_envs: int) -> list[Callable[[], gym.Env[Any, Any]]]:
    return list(make_actors(_returning(env), n_envs))


def _last_words(told: list[Path]) -> str:
    """Return what the first of the workers that have written anything has died of."""
    texts = [path.read_text(encoding="utf-8") for path in told if path.is_file()]
    return f": {texts[0]}" if texts else "; its own message, if any, is above"


@dataclass(frozen=True)
class _Told:
    """Makes an environment in a worker, and writes down what goes wrong in it."""

    make: Callable[[], gym.Env[Any, Any]]
    path: Path

    def __call__(self) -> gym.Env[Any, Any]:
        with _writing_errors(self.path):
            return _Telling(self.make(), self.path)


class _Telling(gym.Wrapper[Any, Any, Any, Any]):
    """Writes an error of the environment to a file and ends the process, without a traceback."""

    def __init__(self, env: gym.Env[Any, Any], path: Path) -> None:
        super().__init__(env)
        self._path = path

    def step(self, action: Any) -> Any:
        with _writing_errors(self._path):
            return self.env.step(action)

    def reset(self, **options: Any) -> Any:
        with _writing_errors(self._path):
            return self.env.reset(**options)

    def get_wrapper_attr(self, name: str) -> Any:
        with _writing_errors(self._path):
            return super().get_wrapper_attr(name)


@contextmanager
def _writing_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (AttributeError, EOFError):  # a question that is answered with no, and the end
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        sys.exit(1)


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
