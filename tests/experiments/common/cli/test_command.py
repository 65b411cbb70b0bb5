"""What ends a command from outside."""

from __future__ import annotations

import importlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.common.cli import command
from experiments.common.cli.command import Interrupted, interruptible

CARELESS = """
import signal
try:
    signal.raise_signal(signal.{name})
except:
    pass
"""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


@pytest.fixture(autouse=True)
def _handlers_stay() -> Iterator[None]:
    before = [signal.getsignal(each) for each in SIGNALS]
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    yield
    signal.setitimer(signal.ITIMER_REAL, left)
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stop_that_a_module_catches_comes_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"careless_{name}.py").write_text(CARELESS.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    is_caught = False
    with pytest.raises(Interrupted, match=name), interruptible():
        importlib.import_module(f"careless_{name}")
        is_caught = True
        time.sleep(60)
    assert is_caught and sys.modules.pop(f"careless_{name}")


def test_a_stop_that_is_caught_twice_comes_again() -> None:
    n_caught = 0
    with pytest.raises(Interrupted) as caught, interruptible():
        while n_caught < 2:
            try:
                signal.raise_signal(signal.SIGTERM) if n_caught == 0 else time.sleep(60)
            except Interrupted:
                n_caught += 1
        time.sleep(60)
    assert n_caught == 2 and caught.value.exit_status == 143


def test_what_cleans_up_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "AGAIN_S", 0.01)
    n_cleaned = 0
    with pytest.raises(Interrupted), interruptible():
        try:
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                time.sleep(0.05)
                n_cleaned += 1
        except BaseException:
            time.sleep(0.05)
            n_cleaned += 1
            raise
    time.sleep(0.05)
    assert n_cleaned == 2


def test_nothing_comes_when_the_block_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "AGAIN_S", 0.01)
    is_caught = False
    with interruptible():
        try:
            signal.raise_signal(signal.SIGINT)
        except Interrupted:
            is_caught = True
    time.sleep(0.05)
    assert is_caught
