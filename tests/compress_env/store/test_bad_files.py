"""Files that cannot serve as a transition store, and files of strangers."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from compress_env.store import store as module
from compress_env.store.store import TransitionStore
from tests.compress_env.store.fakes import (
    KEY,
    SCORED,
    check_goes_on,
    make_file,
    make_foreign,
    warnings_of,
)


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
