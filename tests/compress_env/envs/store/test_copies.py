"""What outlives an environment with a store: the state of its episode, its copies, its file."""

from __future__ import annotations

import copy
import gc
import json
import pickle
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.store.store import TransitionStore
from compress_env.task.task import FinetuneConfig
from tests.compress_env.envs.fakes import (
    assert_same,
    make,
    play,
    take,
)


class TestEpisodeState:
    @pytest.mark.parametrize("noise", [False, True], ids=["", "noise"])
    @pytest.mark.parametrize("kind", ["channel", "bits"])
    def test_a_fresh_environment_goes_on_from_it(self, kind: str, noise: bool) -> None:
        actions = np.random.default_rng(0).uniform(-1, 1, 8).astype(np.float32).tolist()
        original = make(kind, transition_noise=noise)
        n = len(original.walk)
        for n_taken in range(n + 1):
            original.forget_evaluations()
            observation = original.reset(seed=5)[0]
            if n_taken:
                observation = np.array(json.loads(take(original, actions[:n_taken])[-1])[0])
            state = json.loads(json.dumps(original.episode_state()))
            fresh = make(kind, transition_noise=noise)
            np.testing.assert_array_equal(fresh.restore_episode(state), observation)
            assert fresh.episode_state() == state
            rest = take(original, actions[n_taken:n])
            assert take(fresh, actions[n_taken:n]) == rest
            # also the episodes after this one
            original.forget_evaluations()
            fresh.forget_evaluations()
            for env in (original, fresh):
                env.reset()
            assert take(fresh, actions[:n]) == take(original, actions[:n])

    def test_actions_in_double_precision_are_taken_again_as_they_were(self) -> None:
        env, fresh = make("magnitude"), make("magnitude")
        env.reset()
        action = np.nextafter(0.1, 1.0)
        env.step(np.array([action]))
        fresh.restore_episode(env.episode_state())
        assert fresh.episode_state()["actions"] == [action] != [float(np.float32(action))]

    def test_an_episode_that_has_failed_is_at_its_end(self) -> None:
        config = FinetuneConfig(learning_rate=1e30, batch_size=16)
        env, fresh = (make("channel", finetune_config=config) for _ in range(2))
        env.reset()
        failed = take(env, [0.5])
        assert "FloatingPointError" in failed[0]
        observation = fresh.restore_episode(env.episode_state())
        assert observation.tolist() == json.loads(failed[0])[0]
        with pytest.raises(gym.error.ResetNeeded):
            fresh.step(np.zeros(1, np.float32))


def pickled(env: LayerwiseCompressionEnv) -> LayerwiseCompressionEnv:
    twin = pickle.loads(pickle.dumps(env))
    gc.collect()  # nothing of what made it may be needed still
    assert isinstance(twin, LayerwiseCompressionEnv)
    return twin


class TestCopies:
    @pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
    @pytest.mark.parametrize("option", ["memory", "file", "store", "store in a file", None])
    def test_they_give_the_same_episodes(
        self,
        option: str | None,
        copied: Callable[[LayerwiseCompressionEnv], LayerwiseCompressionEnv],
        tmp_path: Path,
    ) -> None:
        stores: dict[str | None, Any] = {
            "memory": "memory",
            "file": tmp_path / "store",
            "store": TransitionStore(),
            "store in a file": TransitionStore(tmp_path / "store"),
            None: None,
        }
        with closing(make(store=stores[option])) as env:
            expected = play(env, [0.5] * 4)
            twin = copied(env)
            assert_same(play(twin, [0.5] * 4), expected)
            shares = option in ("file", "store in a file")
            assert twin.n_hits == (len(twin.walk) if shares else 0)
            assert (twin.store is None) == (option is None)
            assert twin.store is not env.store or option is None
            twin.close()
            env.forget_evaluations()
            assert_same(play(env, [0.5] * 4), expected)

    def test_a_copy_is_whole(self) -> None:
        env = pickled(make())
        env.reset()
        take(env, [0.5])
        assert {"store", "finetune", "batch_norm", "evaluation"} <= env.step_seconds.keys()
        assert env._networks._advance.__self__ is env  # type: ignore[attr-defined]


class TestClosing:
    def test_the_own_file_is_closed_and_steps_are_computed_from_then_on(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        env = make(store=tmp_path / "store")
        expected = play(env, [0.5] * 4)
        assert (tmp_path / "store-wal").exists()
        env.close()
        assert not (tmp_path / "store-wal").exists()
        env.close()
        env.forget_evaluations()
        assert_same(play(env, [0.5] * 4), expected)
        assert caplog.records == []

    def test_a_given_store_stays_open(self) -> None:
        store = TransitionStore()
        with closing(make(store=store)) as env:
            play(env, [0.5] * 4)
        assert len(store) == 4
        store.close()
