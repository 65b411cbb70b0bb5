"""The transition store: what a step led to, kept so that no step is ever computed twice.

One row per (task fingerprint, executed values so far), in SQLite: in memory for one environment, in
a file in WAL mode for the processes and runs of one machine. Rows are JSON with a checksum; nothing
in a file is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

from filelock import FileLock

__all__ = ["Executed", "Prefix", "Transition", "TransitionStore", "flatten"]

Executed: TypeAlias = int | tuple[int, ...]
"""What was done to one layer: bits, or the channels that each of its groups keeps."""
Prefix: TypeAlias = tuple[Executed, ...]
"""What was done to the first layers of the walk, in order."""
_T = TypeVar("_T")

_APPLICATION_ID = 0x434E5645  # SQLite's own mark of whose file it is
_SCHEMA = 1
_TIMEOUT_S = 10.0
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


class TransitionStore:
    """A map from (task fingerprint, executed values) to a `Transition`.

    A file that is corrupt, locked, full, or not a transition store is reported once, left as it
    is, and replaced by a store in memory, so that the run goes on. Several processes may use one
    file at the same time, on one machine: WAL mode does not work over network file systems.
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

    def get(self, task: str, executed: Prefix) -> Transition | None:
        """Return what the values led to in a task, or None if nobody has tried them."""

        def read() -> Transition | None:
            query = "SELECT record, checksum FROM transitions WHERE task = ? AND executed = ?"
            key = json.dumps(executed)
            row = self._connection.execute(query, (task, key)).fetchone()
            return None if row is None else _parse(task, key, *row)

        return self._guard(read, lambda: None)

    def put(self, task: str, executed: Prefix, transition: Transition) -> None:
        """Keep what the values led to in a task."""
        key, record = json.dumps(executed), json.dumps(transition)
        row = (task, key, record, _checksum(task, key, record))

        def write() -> None:
            self._connection.execute("INSERT OR REPLACE INTO transitions VALUES (?, ?, ?, ?)", row)

        self._guard(write, write)

    def __len__(self) -> int:
        """Return the number of transitions, of all tasks."""
        query = "SELECT COUNT(*) FROM transitions"
        return self._guard(lambda: int(self._connection.execute(query).fetchone()[0]), lambda: 0)

    def close(self) -> None:
        """Close the file; the store cannot be used afterwards."""
        if hasattr(self, "_connection"):
            self._connection.close()

    def _guard(self, action: Callable[[], _T], instead: Callable[[], _T]) -> _T:
        """Run an action on the file; if that fails, go on in memory and do something else."""
        try:
            self._check_process()
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
        reason = next(iter(str(fault).splitlines()), type(fault).__name__)
        _logger.warning("going on without the store %s: %s", self.path, reason)
        self.path = None
        self.close()
        self._connection = _connect(None)


def _connect(path: Path | None) -> sqlite3.Connection:
    if path is None:
        connection = _open(":memory:")
        _create(connection)
        return connection
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no directory {str(path.parent)!r}")
    # Two processes that turn on WAL mode at once would find the file locked.
    with FileLock(f"{path}.lock", timeout=_TIMEOUT_S):
        connection = _open(str(path))
        with _closing_on_error(connection):
            if _is_new(connection):
                _create(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _open(name: str) -> sqlite3.Connection:
    # Each statement is a transaction of its own; SQLite itself is safe to call from any thread.
    return sqlite3.connect(name, _TIMEOUT_S, isolation_level=None, check_same_thread=False)


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
    return False


def _create(connection: sqlite3.Connection) -> None:
    connection.executescript(
        f"""
        BEGIN;
        CREATE TABLE transitions (
            task TEXT, executed TEXT, record TEXT NOT NULL, checksum BLOB NOT NULL,
            PRIMARY KEY (task, executed)
        ) WITHOUT ROWID;
        PRAGMA application_id = {_APPLICATION_ID};
        PRAGMA user_version = {_SCHEMA};
        COMMIT;
        """
    )


def _parse(task: str, key: str, record: Any, checksum: Any) -> Transition:
    if not isinstance(record, str) or checksum != _checksum(task, key, record):
        raise ValueError("a row is corrupt")
    return Transition(*json.loads(record))


def _checksum(*parts: str) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
