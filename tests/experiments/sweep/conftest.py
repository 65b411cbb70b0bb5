"""The experiment that comes to grief is one of the sweep's in every test."""

from __future__ import annotations

import pytest

from experiments.sweep.cells import EXPERIMENTS
from tests.experiments.sweep.fakes import FAKE


@pytest.fixture(autouse=True)
def _fake_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPERIMENTS, "fake", FAKE)
