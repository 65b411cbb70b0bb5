"""Actors in worker processes: their share of the machine, and one store for all of them."""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from compress_env.envs import workers
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.workers import make_actors
from compress_env.store.store import TransitionStore
from compress_env.task.task import FinetuneConfig
from tests.fakes import BranchedNet, make_data, seeded

N_LAYERS = 4


class Reporting(PruningEnv):
    """Says what its process is like."""

    def process(self) -> tuple[int, bool, str | None]:
        """Return the number of threads, whether Ctrl-C is ignored, and the store's file."""
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert self.store is not None
        return torch.get_num_threads(), ignored, None if self.store.path is None else "file"


def build(store: Any = "memory") -> Reporting:
    return Reporting(
        seeded(BranchedNet),
        make_data(),
        finetune_steps=2,
        finetune_config=FinetuneConfig(batch_size=16),
        device="cpu",
        store=store,
    )


class Step(NamedTuple):
    """What one actor sees after a step."""

    observation: list[float]
    reward: float
    done: bool
    info: str


def important(info: dict[str, Any]) -> str:
    return json.dumps([info["accuracy"], info["dense_macs"], info["n_evaluations"]])


def play(env: PruningEnv, actions: Sequence[NDArray[np.float32]]) -> list[Step]:
    """Take actions in one episode after the other."""
    env.reset()
    steps = []
    for action in actions:
        observation, reward, done, _, info = env.step(action)
        steps.append(Step(observation.tolist(), float(reward), done, important(info)))
        if done:
            env.reset()
    return steps


def play_subprocesses(vector: SubprocVecEnv, actions: NDArray[np.float32]) -> list[list[Step]]:
    vector.reset()
    steps: list[list[Step]] = [[] for _ in range(vector.num_envs)]
    for row in actions:
        observations, rewards, dones, infos = vector.step(row)
        for number, info in enumerate(infos):
            seen = info.get("terminal_observation", np.asarray(observations)[number])
            reward, done = float(rewards[number]), bool(dones[number])
            steps[number].append(Step(seen.tolist(), reward, done, important(info)))
    return steps


def play_async(vector: AsyncVectorEnv, actions: NDArray[np.float32]) -> list[list[Step]]:
    vector.reset()
    steps: list[list[Step]] = [[] for _ in range(vector.num_envs)]
    for row in actions:
        observations, rewards, dones, _, infos = vector.step(row)
        for number in range(vector.num_envs):
            info = {key: values[number].item() for key, values in infos.items() if key in INFO}
            seen = infos["final_obs"][number] if dones[number] else observations[number]
            reward, done = float(rewards[number]), bool(dones[number])
            if done:
                info = {k: infos["final_info"][k][number].item() for k in INFO}
            steps[number].append(Step(seen.tolist(), reward, done, important(info)))
    return steps


INFO = ("accuracy", "dense_macs", "n_evaluations")


@contextmanager
def untouched_process() -> Iterator[None]:
    before = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    yield
    assert (torch.get_num_threads(), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.slow
def test_processes_share_one_store_and_the_machine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two workers fill a file at the same time; the next two compute nothing."""
    path = tmp_path / "store"
    drawn = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (3 * N_LAYERS, 2, 1))
    # In their first episode both try the same at the same time.
    drawn[:N_LAYERS, 1] = drawn[:N_LAYERS, 0]
    actions = drawn.astype(np.float32)
    expected, distinct = [], set()
    for number in range(2):
        env = build(store=None)
        expected.append(play(env, actions[:, number]))  # type: ignore[arg-type]
        distinct |= env._evaluated

    with untouched_process():
        actors = make_actors(partial(build, path), 2, threads_per_actor=1)
        subprocesses = SubprocVecEnv(list(actors), start_method="spawn")
        try:
            assert subprocesses.env_method("process") == [(1, True, "file")] * 2
            assert play_subprocesses(subprocesses, actions) == expected
            assert subprocesses.get_attr("n_lookups") == [len(actions)] * 2
        finally:
            subprocesses.close()
    with closing(TransitionStore(path)) as store:
        assert len(store) == len(distinct)

    with untouched_process():
        vector = AsyncVectorEnv(
            actors, context="spawn", autoreset_mode=gym.vector.AutoresetMode.SAME_STEP
        )
        try:
            assert vector.call("process") == ((1, True, "file"),) * 2
            assert play_async(vector, actions) == expected
            assert vector.get_attr("n_hits") == (len(actions),) * 2
        finally:
            vector.close()
    with closing(build(path)) as env:
        assert play(env, actions[:, 0]) == expected[0]  # type: ignore[arg-type]
        assert env.n_hits == len(actions)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_actors_in_the_main_process_are_ordinary_environments() -> None:
    with untouched_process():
        # Whoever starts the tests in the background may have them ignore Ctrl-C anyway.
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        vector = DummyVecEnv(list(make_actors(build, 2, threads_per_actor=7)))
        assert vector.env_method("process") == [(torch.get_num_threads(), ignored, None)] * 2
        one, other = vector.envs
        assert one is not other
        vector.close()


def test_an_actor_prepares_a_worker_process(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[Any, ...]] = []
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    monkeypatch.setattr(signal, "signal", lambda *args: done.append(args))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: done.append((n,)))
    env = gym.Env[Any, Any]()
    (actor,) = make_actors(lambda: env, 1, threads_per_actor=3)
    assert done == []
    assert actor() is env
    assert done == [(signal.SIGINT, signal.SIG_IGN), (3,)]


@pytest.mark.parametrize(
    ("cores", "n_actors", "expected"), [(8, 2, 4), (8, 3, 2), (2, 8, 1)], ids=str
)
def test_the_cores_are_divided(
    cores: int, n_actors: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_usable_cores", lambda: cores)
    actors = make_actors(build, n_actors)
    assert [vars(actor)["n_threads"] for actor in actors] == [expected] * n_actors


def test_the_usable_cores_are_at_least_one() -> None:
    assert workers._usable_cores() >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_actors": 0}, "n_actors must be at least 1, got 0"),
        ({"n_actors": -2, "threads_per_actor": 1}, "n_actors must be at least 1, got -2"),
        (
            {"n_actors": 1, "threads_per_actor": 0},
            "threads_per_actor must be at least 1, got 0",
        ),
    ],
)
def test_bad_counts_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_actors(build, **arguments)
