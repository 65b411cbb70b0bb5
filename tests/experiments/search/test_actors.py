"""The environments of a search: in this process, or in workers that may die."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

from experiments.search import actors
from experiments.search.actors import open_actors


class Workers:
    """Stands in for worker processes."""

    def __init__(self, makers: list[Any], start_method: str) -> None:
        assert start_method == "spawn"
        self.makers, self.n_envs = makers, len(makers)
        self.waiting, self.closed = False, False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Workers]:
    made: list[Workers] = []

    def start(*args: Any, **options: Any) -> Workers:
        made.append(Workers(*args, **options))
        return made[-1]

    monkeypatch.setattr(actors, "SubprocVecEnv", start)
    return made


def test_one_environment_is_played_in_this_process(started: list[Workers]) -> None:
    env = gym.make("CartPole-v1")
    with open_actors(env, 1) as vector:
        assert vector.num_envs == 1 and vector.get_attr("spec") == [env.spec]
    assert started == []


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError, BrokenPipeError])
def test_a_dead_worker_is_told_and_the_others_are_ended(
    error: type[Exception], started: list[Workers]
) -> None:
    with pytest.raises(RuntimeError, match="a worker process has died"):
        with open_actors(gym.make("CartPole-v1"), 2):
            raise error
    (workers,) = started
    assert workers.n_envs == 2 and workers.closed


def test_other_errors_are_passed_on_and_workers_are_ended(started: list[Workers]) -> None:
    with pytest.raises(KeyError):
        with open_actors(gym.make("CartPole-v1"), 3):
            raise KeyError("mine")
    assert started[0].closed


class Failing(gym.Wrapper[Any, Any, Any, Any]):
    """An environment whose images cannot be read."""

    def step(self, action: Any) -> Any:
        raise OSError("cannot read the image 3.png:\n  Truncated File Read")


def test_what_a_worker_has_died_of_is_told(started: list[Workers]) -> None:
    with pytest.raises(RuntimeError, match=r"has died: cannot .* 3\.png: Truncated File Read$"):
        with open_actors(Failing(gym.make("CartPole-v1")), 2):
            (workers,) = started
            actor = workers.makers[1]()
            actor.reset(seed=0)
            with pytest.raises(SystemExit):  # which a process ends with in silence
                actor.step(0)
            raise EOFError


def test_workers_answer_questions_about_what_is_not_there(started: list[Workers]) -> None:
    with open_actors(gym.make("CartPole-v1"), 2):
        actor = started[0].makers[0]()
        with pytest.raises(AttributeError):
            actor.get_wrapper_attr("walk")
        assert actor.get_wrapper_attr("spec").id == "CartPole-v1"
