"""Benchmarks are of tiny tasks, and run in the process of the tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from experiments.benchmark.benchmark import Config, run
from experiments.benchmark.table import write_best_known
from experiments.trial import trials
from tests.experiments.benchmark.folders import AGENTS, KNOWN, folder_of
from tests.fakes import NOISY, TINY, InProcessPool, quiet, tiny_tasks


@pytest.fixture(scope="module", autouse=True)
def _tiny_tasks() -> Iterator[None]:
    with tiny_tasks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "LocalPool", InProcessPool)
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all processes of the tests."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "benchmark"
    root.mkdir(exist_ok=True)
    return root


@pytest.fixture(scope="module")
def ran(_tiny_tasks: None, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A benchmark of four agents on two tasks from two seeds; run once, copied for each module."""
    config = Config(
        algo=AGENTS,
        task=TINY,
        seeds=(0, 1),
        evaluations=4,
        out=shared / "ran",
        best_known=shared / "known.csv",
    )
    with FileLock(shared / "ran.lock"):
        if not (shared / "ran" / "leaderboard.md").exists():
            write_best_known(config.best_known, KNOWN)
            assert run(config, quiet()) == []
    out = tmp_path_factory.mktemp("benchmark") / "out"
    shutil.copytree(folder_of(config), out)
    return replace(config, out=out)


@pytest.fixture(scope="module")
def confirmed(_tiny_tasks: None, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three agents on two tasks that draw orders, from two seeds; likewise run once."""
    config = Config(
        algo=("uniform", "random", "cma_es"),
        task=NOISY,
        seeds=(0, 1),
        evaluations=10,
        out=shared / "confirmed",
    )
    with FileLock(shared / "confirmed.lock"):
        if not (shared / "confirmed" / "leaderboard.md").exists():
            assert run(config, quiet()) == []
    out = tmp_path_factory.mktemp("confirmed") / "out"
    shutil.copytree(folder_of(config), out)
    return out
