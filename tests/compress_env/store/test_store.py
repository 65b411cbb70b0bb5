"""The transition store as a map, and files that cannot serve as one."""

from __future__ import annotations

import copy
import gc
import json
import logging
import math
import os
import pickle
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from compress_env.store import store as module
from compress_env.store.store import Prefix, Transition, TransitionStore, flatten

KEY: Prefix = (0, (4, 2), (3,))
SCORED = Transition(1 / 3, 1000, 200, 900, 150, [30, 70], 8, 4)
UNSCORED = SCORED._replace(accuracy=None)
FAILED = UNSCORED._replace(error="FloatingPointError: loss is not finite")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def check_goes_on(store: TransitionStore, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    """Expect that the store has reported one fault, and works in memory."""
    store.put("task", KEY, SCORED)
    store.put("task", (1,), FAILED)
    assert store.get("task", KEY) == SCORED
    assert store.get("task", (1,)) == FAILED
    assert store.get("task", (2,)) is None
    assert len(warnings_of(caplog)) == 1
    assert reason in warnings_of(caplog)[0]
    assert "going on without the store" in warnings_of(caplog)[0]
    assert store.path is None


def make_file(path: Path, n_rows: int = 1) -> bytes:
    """Make a store with rows of one task, and return its bytes."""
    with closing(TransitionStore(path)) as store:
        store.put("task", KEY, SCORED)
        for number in range(1, n_rows):
            store.put("task", (0, number), SCORED)
    return path.read_bytes()


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


class TestFilesThatCannotBeOpened:
    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda p: p.write_text("epoch,accuracy\n1,0.5\n" * 100), "file is not a database"),
            (lambda p: p.write_bytes(b"\x00" * 4096), "file is not a database"),
            (lambda p: p.write_bytes(b"SQLite format 3\x00"), "file is not a database"),
            (
                lambda p: make_foreign(p, "CREATE TABLE runs (x); INSERT INTO runs VALUES (1)"),
                "not",
            ),
            (lambda p: make_foreign(p, "PRAGMA user_version = 7"), "not a transition store"),
            (
                lambda p: make_foreign(
                    p, "PRAGMA journal_mode = WAL; CREATE TABLE transitions (x)"
                ),
                "it is a database, but not a transition store",
            ),
        ],
        ids=["text", "zeros", "header alone", "tables", "without tables", "the same table's name"],
    )
    def test_foreign_files_stay_as_they_are(
        self,
        make: Callable[[Path], object],
        reason: str,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        path = tmp_path / "theirs"
        make(path)
        before = path.read_bytes()
        with closing(TransitionStore(path)) as store:
            check_goes_on(store, caplog, reason)
        assert path.read_bytes() == before
        assert {p.name for p in tmp_path.iterdir()} <= {"theirs", "theirs.lock"}

    def test_a_store_of_another_format_stays_as_it_is(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "store"
        before = make_file(path)
        monkeypatch.setattr(module, "_SCHEMA", 2)
        with closing(TransitionStore(path)) as store:
            check_goes_on(store, caplog, "its format is 1, expected 2")
        assert path.read_bytes() == before

    def test_a_missing_directory(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with closing(TransitionStore(tmp_path / "typo" / "store")) as store:
            check_goes_on(store, caplog, "no directory")
        assert list(tmp_path.iterdir()) == []

    def test_a_directory(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "store").mkdir()
        with closing(TransitionStore(tmp_path / "store")) as store:
            check_goes_on(store, caplog, "unable to open database file")

    def test_a_damaged_header(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "store"
        damaged = bytearray(make_file(path))
        damaged[:16] = b"\xff" * 16
        path.write_bytes(damaged)
        with closing(TransitionStore(path)) as store:
            check_goes_on(store, caplog, "file is not a database")

    def test_an_empty_file_becomes_a_store(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "store").touch()
        with closing(TransitionStore(tmp_path / "store")) as store:
            store.put("task", KEY, SCORED)
        with closing(TransitionStore(tmp_path / "store")) as store:
            assert store.get("task", KEY) == SCORED
        assert warnings_of(caplog) == []

    def test_locked_by_another_program(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_TIMEOUT_S", 0.05)
        with closing(sqlite3.connect(tmp_path / "store", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with closing(TransitionStore(tmp_path / "store")) as store:
                check_goes_on(store, caplog, "database is locked")

    def test_being_made_for_too_long_by_another_process(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_TIMEOUT_S", 0.05)
        with (
            FileLock(tmp_path / "store.lock"),
            closing(TransitionStore(tmp_path / "store")) as store,
        ):
            check_goes_on(store, caplog, "could not be acquired")


def make_foreign(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


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


MARKS = f"PRAGMA application_id = {0x434E5645}; PRAGMA user_version = 1;"
RECORDS = "task TEXT, executed TEXT, record TEXT NOT NULL, checksum BLOB NOT NULL"
MANY = (
    "CREATE TABLE many (x); WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT "
    "3000) INSERT INTO many SELECT x FROM n;"
)
ENDLESS = (
    "SELECT 'task' AS task, a.x || b.x || c.x AS executed, 'x' AS record, 'x' AS checksum "
    "FROM many a, many b, many c"
)
TABLE = f"""
        CREATE TABLE transitions (
            {RECORDS},
            PRIMARY KEY (task, executed)
        ) WITHOUT ROWID;
"""


class TestFilesOfStrangers:
    @pytest.mark.timeout(20)
    @pytest.mark.parametrize(
        "script",
        [
            f"{MANY} CREATE VIEW transitions AS {ENDLESS};",
            f"CREATE TABLE other (x); {TABLE}",
            f"{TABLE} CREATE TRIGGER t BEFORE INSERT ON transitions BEGIN SELECT 1; END;",
            f"{TABLE} CREATE INDEX i ON transitions (abs(record));",
            f"CREATE TABLE transitions ({RECORDS}, PRIMARY KEY (task, executed));",
            TABLE.replace("record TEXT NOT NULL", "record TEXT NOT NULL CHECK (record > 0)"),
            TABLE.replace("record TEXT NOT NULL", "record TEXT NOT NULL DEFAULT (hex(1))"),
            TABLE.replace("record TEXT NOT NULL", "record TEXT AS (hex(zeroblob(1000000)))"),
            f"BEGIN; {''.join(f'CREATE VIEW v{n} AS SELECT 1;' for n in range(200))} COMMIT;",
            "",
        ],
        ids=[
            "endless view", "another table", "trigger", "index", "with row ids", "check", "default",
            "generated", "many", "none",
        ],
    )  # fmt: skip
    def test_only_the_very_table_is_read(
        self, script: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "store"
        make_foreign(path, MARKS + script)
        before = path.read_bytes()
        with closing(TransitionStore(path)) as store:
            check_goes_on(store, caplog, "its tables are not those of a transition store")
        assert path.read_bytes() == before

    def test_a_store_of_an_earlier_version_is_read(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        make_foreign(tmp_path / "store", MARKS + TABLE)
        make_file(tmp_path / "store")
        with closing(TransitionStore(tmp_path / "store")) as store:
            assert store.get("task", KEY) == SCORED
        assert warnings_of(caplog) == []

    @pytest.mark.timeout(20)
    def test_a_statement_that_takes_too_long_is_interrupted(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_TIMEOUT_S", 0.2)
        path = tmp_path / "store"
        make_file(path)
        with closing(TransitionStore(path)) as store:
            # Put there after the file was opened.
            make_foreign(
                path, f"{MANY} DROP TABLE transitions; CREATE VIEW transitions AS {ENDLESS}"
            )
            assert store.get("task", KEY) is None
            check_goes_on(store, caplog, "interrupted")

    def test_a_huge_row_is_not_read(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "store"
        make_file(path)
        make_foreign(path, "UPDATE transitions SET record = hex(zeroblob(2000000))")
        with closing(TransitionStore(path)) as store:
            assert store.get("task", KEY) is None
            check_goes_on(store, caplog, "too big")

    @pytest.mark.parametrize("ending", ["", "-wal", "-journal", ".lock"])
    @pytest.mark.timeout(20)
    def test_pipes_are_not_waited_for(
        self, ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        os.mkfifo(tmp_path / f"store{ending}")
        with closing(TransitionStore(tmp_path / "store")) as store:
            check_goes_on(store, caplog, "is not a file")

    def test_a_file_that_is_too_large_is_left_alone(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_file(tmp_path / "store")
        monkeypatch.setattr(module, "_MAX_FILE_BYTES", 1000)
        with closing(TransitionStore(tmp_path / "store")) as store:
            check_goes_on(store, caplog, "is larger than")

    @pytest.mark.parametrize(
        "record",
        [
            {"accuracy": 1e9},
            {"accuracy": -0.1},
            {"accuracy": math.nan},
            {"accuracy": math.inf},
            {"accuracy": True},
            {"accuracy": "0.5"},
            {"accuracy": [0.5]},
            {"dense_macs": -1},
            {"dense_macs": 1.5},
            {"dense_params": None},
            {"sparse_macs": 10**30},
            {"sparse_params": True},
            {"nonzeros": 3},
            {"nonzeros": "12"},
            {"nonzeros": {"0": 1}},
            {"nonzeros": [1, -1]},
            {"nonzeros": [1, None]},
            {"out_channels": "8"},
            {"in_channels": math.nan},
            {"size_bytes": -5},
            {"error": 3},
            {"error": "x" * 100_000},
            {"error": "\x1b[2J"},
            {"error": "two\nlines"},
        ],
        ids=str,
    )
    def test_what_no_network_can_come_to_is_neither_read_nor_kept(
        self, record: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        impossible = SCORED._replace(**record)
        with closing(TransitionStore()) as store:
            store.put("task", KEY, impossible)
            assert len(store) == 0
        self.check_not_believed(json.dumps(impossible), tmp_path / "store", caplog)

    @pytest.mark.parametrize(
        "record",
        [
            "null", "7", "{}", "[]", "[0.5]", '"text"', "[" * 100_000, "[1" + "0" * 5000 + "]",
            json.dumps([*SCORED, 1, 2, 3]), "not JSON",
        ],
        ids=lambda record: record[:10],
    )  # fmt: skip
    def test_what_is_no_transition_is_not_believed(
        self, record: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.check_not_believed(record, tmp_path / "store", caplog)

    def check_not_believed(self, record: str, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Put a record with a right checksum into a file, and expect a miss."""
        make_file(path)
        key = json.dumps(KEY)
        row = (record, module._checksum("task", key, record))
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("UPDATE transitions SET record = ?, checksum = ?", row)
        with closing(TransitionStore(path)) as store:
            assert store.get("task", KEY) is None
            check_goes_on(store, caplog, "a row is not a transition")

    def test_what_does_not_fit_the_task_is_not_believed(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        make_file(tmp_path / "store")
        with closing(TransitionStore(tmp_path / "store")) as store:
            assert store.get("task", KEY, lambda found: found.dense_macs == 1000) == SCORED
            assert store.get("task", KEY, lambda found: found.dense_macs < 1000) is None
            check_goes_on(store, caplog, "a row says what cannot be")
