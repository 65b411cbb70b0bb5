"""Transitions, a file of them, and what a store says when it leaves its file."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from compress_env.store.store import Prefix, Transition, TransitionStore

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


def make_foreign(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
