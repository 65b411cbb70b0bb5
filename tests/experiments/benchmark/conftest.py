"""Benchmarks are of tiny tasks, and run in the process of the tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
from filelock import FileLock

from experiments.benchmark.benchmark import Config, run
from experiments.benchmark.table import write_best_known
from experiments.trial import trials
from tests.experiments.benchmark.folders import AGENTS, KNOWN, folder_of
from tests.fakes import TINY, InProcessPool, quiet, tiny_tasks


@pytest.fixture(scope="module", autouse=True)
def _tiny_tasks() -> Iterator[None]:
    with tiny_tasks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "LocalPool", InProcessPool)
        yield


@pytest.fixture(scope="module")
def ran(_tiny_tasks: None, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A benchmark of four agents on two tasks from two seeds; run once, copied for each module."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "benchmark"
    config = Config(
        algo=AGENTS,
        task=TINY,
        seeds=(0, 1),
        evaluations=4,
        out=root / "out",
        best_known=root / "known.csv",
    )
    with FileLock(root.with_suffix(".lock")):
        if not (root / "out" / "leaderboard.md").exists():
            root.mkdir(exist_ok=True)
            write_best_known(config.best_known, KNOWN)
            assert run(config, quiet()) == []
    out = tmp_path_factory.mktemp("benchmark") / "out"
    shutil.copytree(folder_of(config), out)
    return replace(config, out=out)
