"""The transition store: what a step led to, kept so that no step is ever computed twice.

One row per (task fingerprint, executed values so far), in SQLite: in memory for one environment, in
a file in WAL mode for the processes and runs of one machine. Rows are JSON with a checksum; nothing
in a file is ever executed.

Whom to trust with a file: whoever can write to it says what steps led to. A stranger's file can
neither run code, nor hang a process, nor raise an error, and what it holds is only believed where
a network could have come to it (`Transition`). Even so it can be wrong, such as an accuracy of 0.97
that is really 0.1: the checksum tells of damage, not of lies. Take files from those alone whose
results you would publish as your own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, TypeAlias, TypeVar

from filelock import FileLock

from compress_env.errors import reason_of

__all__ = ["Executed", "Prefix", "Transition", "TransitionStore", "flatten"]

Executed: TypeAlias = int | tuple[int, ...]
"""What was done to one layer: bits, or the channels that each of its groups keeps."""
Prefix: TypeAlias = tuple[Executed, ...]
"""What was done to the first layers of the walk, in order."""
_T = TypeVar("_T")

_APPLICATION_ID = 0x434E5645  # SQLite's own mark of whose file it is
_SCHEMA = 1
_TABLE = """CREATE TABLE transitions (
    task TEXT, executed TEXT, record TEXT NOT NULL, checksum BLOB NOT NULL,
    PRIMARY KEY (task, executed)
) WITHOUT ROWID"""
_TIMEOUT_S = 10.0
_MAX_FILE_BYTES = 2**36
_MAX_ROW_BYTES = 2**20
_MAX_ERROR_LENGTH = 2**16
_MAX_COUNT = 2**63
_STEPS_BETWEEN_CHECKS = 10_000  # of SQLite's virtual machine, a fraction of a millisecond
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: _MAX_ROW_BYTES,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 10_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 16,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 16,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 1,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
}
_COMPANIONS = ("-wal", "-shm", "-journal", ".lock")  # files that belong to a store's
_FAULTS = (sqlite3.Error, OSError, ValueError)
_logger = logging.getLogger(__name__)


def flatten(executed: Prefix) -> Iterator[int]:
    """Yield the executed values of all layers, one group after the other."""
    for values in executed:
        yield from values if isinstance(values, tuple) else (values,)


class Transition(NamedTuple):
    """What the network is after a step: all that observation, reward and info are made from."""

    accuracy: float | None
    """Validation accuracy, None where the step is not scored."""
    dense_macs: int
    """Multiply-accumulates per image, every element counted."""
    dense_params: int
    """Parameters as stored."""
    sparse_macs: int
    """Multiply-accumulates per image by non-zero weights."""
    sparse_params: int
    """Non-zero parameters."""
    nonzeros: Sequence[int]
    """Non-zero weights of every convolution and linear layer, in execution order."""
    out_channels: int
    """Output channels of the layer to decide next; of the last layer after the last step."""
    in_channels: int
    """Its input channels."""
    error: str | None = None
    """Why the step failed, and always fails."""
    size_bytes: int = 0
    """Bytes of the network as a packed file; 0 where only pruning is decided, or not scored."""
    information_std: float | None = None
    """Standard deviation of the information that the outputs of the layer decided last keep, in
    nats; None where it was not measured."""

    def is_possible(self) -> bool:
        """Whether some network can have come to this: all types and ranges are right."""
        counts = [x for name, x in self._asdict().items() if name not in _NO_COUNTS]
        return (
            isinstance(self.nonzeros, list | tuple)
            and all(type(n) is int and 0 <= n < _MAX_COUNT for n in (*counts, *self.nonzeros))
            and (self.accuracy is None or _is_fraction(self.accuracy))
            and (self.error is None or _is_message(self.error))
            and (self.information_std is None or _is_spread(self.information_std))
        )


_NO_COUNTS = ("accuracy", "nonzeros", "error", "information_std")


def _is_fraction(value: Any) -> bool:
    return type(value) in (int, float) and 0.0 <= value <= 1.0


def _is_spread(value: Any) -> bool:
    return type(value) in (int, float) and 0.0 <= value < math.inf


def _is_message(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_ERROR_LENGTH and value.isprintable()


class TransitionStore:
    """A map from (task fingerprint, executed values) to a `Transition`.

    A file that is corrupt, locked, full, or not a transition store is reported once, left as it
    is, and replaced by a store in memory, so that the run goes on. Several processes may use one
    file at the same time, on one machine: WAL mode does not work over network file systems.

    A file that a stranger has made does no harm but one: it can hold plausible results that are
    wrong. Only share files with those whom you believe.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        """Open the store.

        Args:
            path: A file, made when missing; in memory when None.
        """
        self.path = None if path is None else Path(path)
        self._process = os.getpid()
        try:
            self._connection = _connect(self.path)
        except _FAULTS as fault:
            self._go_on_in_memory(fault)

    def __del__(self) -> None:
        """Close the file when nobody refers to the store any more."""
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the path; a store in memory arrives empty."""
        return type(self), (self.path,)

    def get(
        self,
        task: str,
        executed: Prefix,
        fits: Callable[[Transition], bool] = Transition.is_possible,
    ) -> Transition | None:
        """Return what the values led to in a task, or None if nobody has tried them.

        Args:
            task: The task's fingerprint.
            executed: The values.
            fits: Whether they can have led to a transition, asked of one that is possible; if not,
                the file is not believed.
        """

        def read() -> Transition | None:
            query = "SELECT record, checksum FROM transitions WHERE task = ? AND executed = ?"
            key = json.dumps(executed)
            row = self._connection.execute(query, (task, key)).fetchone()
            found = None if row is None else _parse(task, key, *row)
            if not (found is None or fits(found)):
                raise ValueError("a row says what cannot be")
            return found

        return self._guard(read, lambda: None)

    def put(self, task: str, executed: Prefix, transition: Transition) -> None:
        """Keep what the values led to in a task, unless no network can have come to that."""
        if not transition.is_possible():
            return
        key, record = json.dumps(executed), json.dumps(transition)
        row = (task, key, record, _checksum(task, key, record))

        def write() -> None:
            self._connection.execute("INSERT OR REPLACE INTO transitions VALUES (?, ?, ?, ?)", row)

        self._guard(write, write)

    def __len__(self) -> int:
        """Return the number of transitions, of all tasks."""
        # Unlike COUNT(*), a sum can be interrupted.
        query = "SELECT COALESCE(SUM(1), 0) FROM transitions"
        return self._guard(lambda: int(self._connection.execute(query).fetchone()[0]), lambda: 0)

    def close(self) -> None:
        """Close the file; the store cannot be used afterwards."""
        if hasattr(self, "_connection"):
            self._connection.close()

    def _guard(self, action: Callable[[], _T], instead: Callable[[], _T]) -> _T:
        """Run an action on the file; if that fails, go on in memory and do something else."""
        try:
            self._check_process()
            with _in_time(self._connection):
                return action()
        except sqlite3.ProgrammingError:
            raise  # a mistake of the caller, such as a closed store
        except _FAULTS as fault:
            self._go_on_in_memory(fault)
            return instead()

    def _check_process(self) -> None:
        if self.path is not None and os.getpid() != self._process:
            raise OSError("it was opened before the process was forked, start workers by spawn")

    def _go_on_in_memory(self, fault: Exception) -> None:
        if self.path is None:
            raise fault
        _logger.warning("going on without the store %s: %s", self.path, reason_of(fault))
        self.path = None
        self.close()
        self._connection = _connect(None)


def _connect(path: Path | None) -> sqlite3.Connection:
    if path is None:
        connection = _open(":memory:")
        _create(connection)
        return connection
    _check_files(path)
    # Two processes that turn on WAL mode at once would find the file locked.
    with FileLock(f"{path}.lock", timeout=_TIMEOUT_S):
        connection = _open(str(path))
        with _closing_on_error(connection), _in_time(connection):
            if _is_new(connection):
                _create(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _check_files(path: Path) -> None:
    """Check that there is nothing beside files, none of them too large.

    Raises:
        OSError: If there is, or no directory.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no directory {str(path.parent)!r}")
    for file in (path, *(Path(f"{path}{ending}") for ending in _COMPANIONS)):
        # Looked at once: while others make the store, its journal comes and goes.
        with suppress(FileNotFoundError):
            status = file.stat()
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise OSError(f"{file.name!r} is not a file")
            if stat.S_ISREG(status.st_mode) and status.st_size > _MAX_FILE_BYTES:
                raise OSError(f"{file.name!r} is larger than {_MAX_FILE_BYTES >> 30} GiB")


def _open(name: str) -> sqlite3.Connection:
    # Each statement is a transaction of its own; SQLite itself is safe to call from any thread.
    connection = sqlite3.connect(name, _TIMEOUT_S, isolation_level=None, check_same_thread=False)
    for limit, value in _LIMITS.items():
        connection.setlimit(limit, value)
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


@contextmanager
def _in_time(connection: sqlite3.Connection) -> Iterator[None]:
    """Interrupt statements that have been computing for too long."""
    end = monotonic() + _TIMEOUT_S
    connection.set_progress_handler(lambda: monotonic() > end, _STEPS_BETWEEN_CHECKS)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)


@contextmanager
def _closing_on_error(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


def _is_new(connection: sqlite3.Connection) -> bool:
    """Return whether a file is empty.

    Raises:
        ValueError: If it is somebody else's, which is found before anything is written.
    """
    # Asked of SQLite: to close the file by other means would release the locks of this process.
    (n_pages,) = connection.execute("PRAGMA page_count").fetchone()
    (mark,) = connection.execute("PRAGMA application_id").fetchone()
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if n_pages == 0:
        return True
    if mark != _APPLICATION_ID:
        raise ValueError("it is a database, but not a transition store")
    if schema != _SCHEMA:
        raise ValueError(f"its format is {schema}, expected {_SCHEMA}")
    _check_table(connection)
    return False


def _check_table(connection: sqlite3.Connection) -> None:
    """Check that a file holds the one table that `_create` makes, and nothing that computes.

    Raises:
        ValueError: If it holds another, a view, a trigger or an index.
    """
    rows = connection.execute("SELECT type, name, sql FROM sqlite_schema LIMIT 2").fetchall()
    found = [(kind, name, _squeeze(sql)) for kind, name, sql in rows]
    if found != [("table", "transitions", _squeeze(_TABLE))]:
        raise ValueError("its tables are not those of a transition store")


def _squeeze(sql: Any) -> str:
    return " ".join(str(sql).split()).replace("( ", "(").replace(" )", ")")


def _create(connection: sqlite3.Connection) -> None:
    connection.executescript(
        f"""
        BEGIN;
        {_TABLE};
        PRAGMA application_id = {_APPLICATION_ID};
        PRAGMA user_version = {_SCHEMA};
        COMMIT;
        """
    )


def _parse(task: str, key: str, record: Any, checksum: Any) -> Transition:
    if not isinstance(record, str) or checksum != _checksum(task, key, record):
        raise ValueError("a row is corrupt")
    try:
        found = Transition(*json.loads(record))
        if found.is_possible():
            return found
    except (TypeError, ValueError, RecursionError):
        pass
    raise ValueError("a row is not a transition")


def _checksum(*parts: str) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
