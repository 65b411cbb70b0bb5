"""The transition store as a map, and what it does when its file breaks in use."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from compress_env.store import store as module
from compress_env.store.store import Prefix, Transition, TransitionStore, flatten
from tests.compress_env.store.fakes import (
    FAILED,
    KEY,
    SCORED,
    UNSCORED,
    check_goes_on,
    make_file,
    make_foreign,
    warnings_of,
)


@pytest.mark.parametrize("kept_in", ["memory", "file"])
@pytest.mark.parametrize("transition", [SCORED, UNSCORED, FAILED], ids=["scored", "", "failed"])
def test_what_is_put_comes_back(kept_in: str, transition: Transition, tmp_path: Path) -> None:
    with closing(TransitionStore(None if kept_in == "memory" else tmp_path / "store")) as store:
        assert store.get("task", KEY) is None
        store.put("task", KEY, transition)
        found = store.get("task", KEY)
        assert found == transition
        assert isinstance(found, Transition)
        store.put("task", KEY, transition)
        assert len(store) == 1


def test_tasks_and_prefixes_do_not_mix() -> None:
    keys: list[Prefix] = [(), (0,), (0, 1, 2), (0, (1, 2)), (0, (1,), (2,)), (0, 12), (1, 0)]
    rows = {
        (task, key): SCORED._replace(dense_macs=number + 10 * len(task))
        for task in ("", "a", "ab")
        for number, key in enumerate(keys)
    }
    with closing(TransitionStore()) as store:
        for (task, key), transition in rows.items():
            assert store.get(task, key) is None
            store.put(task, key, transition)
        assert {name: store.get(*name) for name in rows} == rows
        assert len(store) == len(rows)


def test_executed_values_are_flattened_in_order() -> None:
    assert list(flatten(((4, 2), (3,), 8))) == [4, 2, 3, 8]


def test_stores_in_memory_share_nothing() -> None:
    with closing(TransitionStore()) as one, closing(TransitionStore()) as other:
        one.put("task", KEY, SCORED)
        assert other.get("task", KEY) is None


def test_a_file_is_shared_and_lasts(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with closing(TransitionStore(path)) as one, closing(TransitionStore(str(path))) as other:
        one.put("task", KEY, SCORED)
        assert other.get("task", KEY) == SCORED
        other.put("task", (1,), UNSCORED)
        assert one.get("task", (1,)) == UNSCORED
    with closing(TransitionStore(path)) as later, closing(sqlite3.connect(path)) as connection:
        assert len(later) == 2
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_many_can_make_one_file_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def use(number: int) -> None:
        with closing(TransitionStore(tmp_path / "store")) as store:
            for row in range(5):
                store.put("task", (number, row), SCORED)
                store.put("task", (row,), SCORED)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    with closing(TransitionStore(tmp_path / "store")) as store:
        assert len(store) == 8 * 5 + 5
    assert warnings_of(caplog) == []


def test_a_journal_that_comes_and_goes_meanwhile_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As between two looks at it, while another process makes the store."""
    exists = Path.exists

    def seen(self: Path, **options: bool) -> bool:
        return self.name.endswith("-journal") or exists(self, **options)

    monkeypatch.setattr(Path, "exists", seen)
    with closing(TransitionStore(tmp_path / "store")) as store:
        store.put("task", KEY, SCORED)
        assert len(store) == 1
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda store: pickle.loads(pickle.dumps(store))]
)
def test_a_copy_has_the_same_file_and_nothing_of_a_memory(
    twin_of: Callable[[TransitionStore], TransitionStore], tmp_path: Path
) -> None:
    for path, expected in ((tmp_path / "store", SCORED), (None, None)):
        with closing(TransitionStore(path)) as store:
            store.put("task", KEY, SCORED)
            with closing(twin_of(store)) as twin:
                assert twin.path == path
                assert twin.get("task", KEY) == expected
                twin.put("task", (1,), UNSCORED)
                assert twin.get("task", (1,)) == UNSCORED


@pytest.mark.parametrize("kept_in", ["memory", "file"])
def test_a_closed_store_is_refused(
    kept_in: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = TransitionStore(None if kept_in == "memory" else tmp_path / "store")
    store.close()
    store.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        store.get("task", KEY)
    assert warnings_of(caplog) == []


def test_the_file_is_closed_with_the_last_reference(tmp_path: Path) -> None:
    store = TransitionStore(tmp_path / "store")
    store.put("task", KEY, SCORED)
    assert (tmp_path / "store-wal").exists()
    del store
    gc.collect()
    # SQLite removes it when the last connection is closed.
    assert not (tmp_path / "store-wal").exists()


class TestFaultsWhileInUse:
    @pytest.mark.parametrize(
        "change",
        [
            """UPDATE transitions SET record = replace(record, '1000', '1001')""",
            """UPDATE transitions SET record = replace(record, '0.3', '0.4')""",
            """UPDATE transitions SET record = CAST(record AS BLOB)""",
            """UPDATE transitions SET record = 5""",
            """UPDATE transitions SET record = CAST(x'ff' AS TEXT)""",
            """UPDATE transitions SET checksum = 'none'""",
            """UPDATE transitions SET executed = '[1]' WHERE executed = '[0, 1]'""",
            """UPDATE transitions SET task = 'task' WHERE task = 'other'""",
            """DROP TABLE transitions""",
        ],
    )
    def test_a_changed_row_is_not_believed(
        self, change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "store"
        with closing(TransitionStore(path)) as store:
            store.put("task", (0, 1), SCORED)
            store.put("other", (3,), SCORED)
        make_foreign(path, change)
        keys: list[Prefix] = [(3,), (1,), (0, 1)]
        with closing(TransitionStore(path)) as store:
            assert [store.get("task", key) for key in keys] == [None] * 3
            check_goes_on(store, caplog, "")

    def test_rows_that_cannot_be_counted(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        make_file(tmp_path / "store")
        with closing(TransitionStore(tmp_path / "store")) as store:
            make_foreign(tmp_path / "store", "DROP TABLE transitions")
            assert len(store) == 0
            check_goes_on(store, caplog, "no such table")

    def test_damaged_pages(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "store"
        damaged = bytearray(make_file(path, n_rows=200))
        assert len(damaged) > 4 * 4096
        damaged[4096:] = b"\xa5" * (len(damaged) - 4096)  # all but the page with the header
        path.write_bytes(damaged)
        with closing(TransitionStore(path)) as store:
            assert store.get("task", KEY) is None
            check_goes_on(store, caplog, "malformed")

    def test_a_file_that_was_cut_short(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "store"
        path.write_bytes(make_file(path, n_rows=200)[:6000])
        with closing(TransitionStore(path)) as store:
            assert store.get("task", KEY) is None
            check_goes_on(store, caplog, "")

    def test_locked_for_writing(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_TIMEOUT_S", 0.05)
        path = tmp_path / "store"
        make_file(path)
        with (
            closing(TransitionStore(path)) as store,
            closing(sqlite3.connect(path, isolation_level=None)) as other,
        ):
            other.execute("BEGIN EXCLUSIVE")
            assert store.get("task", KEY) == SCORED  # readers do not wait in WAL mode
            assert warnings_of(caplog) == []
            check_goes_on(store, caplog, "database is locked")

    @pytest.mark.parametrize(
        ("pragma", "reason"),
        [("max_page_count = 1", "full"), ("query_only = ON", "readonly")],
        ids=["full", "read-only"],
    )
    def test_a_file_that_takes_no_more(
        self, pragma: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        long = SCORED._replace(error="x" * 10_000)  # needs a page of its own
        with closing(TransitionStore(tmp_path / "store")) as store:
            store._connection.execute(f"PRAGMA {pragma}")
            store.put("task", (7,), long)
            assert store.get("task", (7,)) == long
            check_goes_on(store, caplog, reason)
        with closing(TransitionStore(tmp_path / "store")) as store:
            assert len(store) == 0

    def test_a_forked_process_leaves_the_file_alone(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "store"
        with closing(TransitionStore(path)) as store:
            monkeypatch.setattr(os, "getpid", lambda: -1)
            assert len(store) == 0
            check_goes_on(store, caplog, "start workers by spawn")
        monkeypatch.undo()
        with closing(TransitionStore(path)) as store:
            assert len(store) == 0
