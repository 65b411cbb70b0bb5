"""Who shares the rows of a store, and what happens to bad ones."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.store import fingerprint
from compress_env.store import store as store_module
from compress_env.store.snapshots import Network
from compress_env.store.store import Executed, Prefix, Transition, TransitionStore
from compress_env.task.task import FinetuneConfig
from tests.compress_env.envs.fakes import (
    CONFIG,
    EPISODES,
    Named,
    assert_same,
    make,
    play,
    take,
)
from tests.fakes import BranchedNet, make_data, seeded


class TestSharing:
    """Two environments share a row if and only if the step is the same."""

    @staticmethod
    def n_shared(first: dict[str, Any], second: dict[str, Any]) -> int:
        store = TransitionStore()
        play(make(store=store, **first), [0.5, 0.5])
        env = make(store=store, **second)
        play(env, [0.5, 0.5])
        assert env.n_lookups == 2
        assert env.n_hits == (2 if len(store) == 2 else 0)
        return env.n_hits

    def test_the_same_task(self) -> None:
        assert self.n_shared({}, {"data": make_data()}) == 2

    @pytest.mark.parametrize(
        "options",
        [
            {"reward": "flops"},
            {"snapshot_bytes": 0},
            {"transition_noise": False},
            {"render_mode": "ansi"},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_what_a_step_does_not_depend_on(self, options: dict[str, Any]) -> None:
        assert self.n_shared({}, options) == 2

    def test_another_budget(self) -> None:
        """Of the values executed under both budgets, each is computed once."""
        store = TransitionStore()
        play(make(store=store), [1.0] * 4)
        env = make(store=store, flops_budget=0.6)
        play(env, [1.0] * 4)
        assert (env.n_lookups, env.n_hits) == (4, 4)

    @pytest.mark.parametrize(
        "options",
        [
            {"finetune_steps": 1},
            {"finetune_at": "episode"},
            {"method": "channel"},
            {"seed": 1},
            {"reward_at": "episode"},
            {"finetune_config": FinetuneConfig(batch_size=16, batch_norm_batches=3)},
            {"scorer": Named()},
            {"finetune_config": replace(CONFIG, distill=0.5)},
            {"data": make_data(seed=1)},
            {"model": seeded(BranchedNet, seed=1)},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_another_task(self, options: dict[str, Any]) -> None:
        assert self.n_shared({}, options) == 0

    def test_another_seed_when_all_noise_is_the_same(self) -> None:
        """The calibration images are sampled by the task's own seed."""
        options: dict[str, Any] = {"kind": "channel", "transition_noise": True}
        assert self.n_shared(options, options) == 2
        assert self.n_shared(options, options | {"seed": 1}) == 0

    def test_another_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store = TransitionStore()
        play(make(store=store), [0.5])
        monkeypatch.setattr(fingerprint, "code_version", lambda: "changed")
        env = make(store=store)
        play(env, [0.5])
        assert (env.n_hits, len(store)) == (0, 2)

    def test_tasks_in_one_store_go_on_as_if_alone(self) -> None:
        store = TransitionStore()
        options: list[dict[str, Any]] = [
            {"kind": "magnitude"},
            {"kind": "channel and batch norm"},
            {"kind": "bits"},
            {"kind": "magnitude", "seed": 3},
        ]
        alone = [make(store=None, **o) for o in options]
        together = [make(store=store, **o) for o in options]
        for episode in EPISODES[:3]:
            for one, other in zip(alone, together, strict=True):
                assert_same(play(one, episode), play(other, episode))

    def test_environments_of_their_own_memory_share_nothing(self) -> None:
        one, other = make(), make(seed=1)
        play(one, [0.5])
        play(other, [0.5])
        assert one.n_hits == other.n_hits == 0


@contextmanager
def flushing() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class TestOtherWaysOfComputing:
    """What was computed in another way is neither read nor gone on from."""

    @pytest.mark.parametrize("kind", ["channel", "bits"])
    @pytest.mark.parametrize("store", ["memory", "file", None])
    def test_a_switch_in_the_midst_of_an_episode(
        self, kind: str, store: str | None, tmp_path: Path
    ) -> None:
        path = tmp_path / "store" if store == "file" else store
        with closing(make(kind, store=path)) as env:
            play(env, [0.5] * 8)
            env.reset()
            take(env, [0.5])
            with flushing():
                done, advance = [], env._networks._advance

                def counting(network: Network, seed: int, t: int, executed: Executed) -> None:
                    done.append(t)
                    advance(network, seed, t, executed)

                env._networks._advance = counting
                before = env.n_hits
                take(env, [0.5])
                assert (done, env.n_hits) == ([0, 1], before)
            env.forget_evaluations()
            assert_same(play(env, [0.5] * 8), play(make(kind, store=None), [0.5] * 8))

    def test_statistics_of_the_unpruned_network_are_collected_anew(self) -> None:
        env = make("channel")
        play(env, [0.5])
        before = env._calibration  # type: ignore[attr-defined]
        with flushing():
            play(env, [0.5])
            assert env._calibration is not before  # type: ignore[attr-defined]

    def test_each_way_has_its_own_rows(self) -> None:
        store = TransitionStore()
        env = make(store=store)
        play(env, [0.5] * 4)
        with flushing():
            play(env, [0.5] * 4)
            play(env, [0.5] * 4)
        play(env, [0.5] * 4)
        assert (len(store), env.n_hits, env.n_lookups) == (8, 8, 16)


class TestRowsOfStrangers:
    @pytest.mark.parametrize(
        "changes",
        [
            {"accuracy": None},
            {"dense_macs": 10**6},
            {"dense_params": 10**6},
            {"sparse_macs": 10**6},
            {"sparse_params": 10**6},
            {"nonzeros": []},
            {"nonzeros": [10**9] * 8},
            {"out_channels": 1000},
            {"out_channels": 0},
            {"in_channels": 1000},
            {"size_bytes": 10**9},
            {"size_bytes": 1},
            {"error": "failed", "accuracy": 1.0},
        ],
        ids=str,
    )
    def test_what_the_task_cannot_come_to_is_computed(
        self, changes: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "store"
        put = TransitionStore.put

        def lie(store: TransitionStore, task: str, executed: Prefix, truth: Transition) -> None:
            put(store, task, executed, truth._replace(**changes))

        with closing(make(store=path)) as env, pytest.MonkeyPatch.context() as patch:
            patch.setattr(TransitionStore, "put", lie)
            play(env, [0.5] * 4)
        TestFaults.check(make(store=path), caplog, "a row says what cannot be")


class TestFaults:
    """An episode goes on as if there were no store, and says so once."""

    @staticmethod
    def check(env: LayerwiseCompressionEnv, caplog: pytest.LogCaptureFixture, reason: str) -> None:
        reference = make(store=None)
        for episode in EPISODES[:3]:
            assert_same(play(env, episode), play(reference, episode))
        messages = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert len(messages) == 1
        assert reason in messages[0]
        env.close()

    def test_another_file(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "results.csv"
        path.write_text("seed,accuracy\n" * 500)
        self.check(make(store=path), caplog, "not a database")
        assert path.read_text() == "seed,accuracy\n" * 500

    def test_a_missing_directory(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.check(make(store=tmp_path / "missing" / "store"), caplog, "no directory")

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE transitions SET record = replace(record, '[', '[ ')",
            "UPDATE transitions SET record = x'00'",
            "DROP TABLE transitions",
        ],
        ids=["changed", "of another type", "gone"],
    )
    def test_rows_that_are_corrupt(
        self, change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with closing(make(store=tmp_path / "store")) as env:
            play(env, [0.5] * 4)
        with closing(sqlite3.connect(tmp_path / "store", isolation_level=None)) as connection:
            connection.execute(change)
        self.check(make(store=tmp_path / "store"), caplog, "going on without the store")

    def test_pages_that_are_corrupt(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "store"
        with closing(make(store=path)) as env:
            play(env, [0.5] * 4)
        content = path.read_bytes()
        path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
        self.check(make(store=path), caplog, "malformed")

    def test_locked_in_the_midst_of_an_episode(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_module, "_TIMEOUT_S", 0.05)
        env = make(store=tmp_path / "store")
        with closing(sqlite3.connect(tmp_path / "store", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            self.check(env, caplog, "locked")

    def test_full_in_the_midst_of_an_episode(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        env = make(store=tmp_path / "store")
        env.reset()
        take(env, [-1.0])
        assert env.store is not None
        (n_pages,) = env.store._connection.execute("PRAGMA page_count").fetchone()
        # Enough for the first rows only.
        env.store._connection.execute(f"PRAGMA max_page_count = {n_pages}")
        for number in range(100):
            if caplog.records:
                break
            env.store.put("filler", (number,), env._uncompressed)
        env.forget_evaluations()
        self.check(env, caplog, "full")


@pytest.mark.parametrize("option", [3, True, b"store"])
def test_what_is_no_store_is_refused(option: Any) -> None:
    with pytest.raises(TypeError, match="store must be 'memory', a path, a TransitionStore or"):
        make(store=option)


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (1.5, TypeError), (None, TypeError)]
)
def test_bad_snapshot_bytes_are_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="snapshot_bytes must be"):
        make(snapshot_bytes=value)
