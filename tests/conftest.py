"""Fixtures for every test: a cache of their own, and the data when it is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from matplotlib.figure import Figure

from tests.fakes import DATA_ROOT

settings.register_profile("same examples every time", derandomize=True, deadline=None)
settings.load_profile("same examples every time")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Run on one thread: faster for networks this small, and the same on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep baselines that tests train out of the user's cache, and train each once."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESS_ENV_CACHE", str(shared / "cache"))
        patch.setenv("COMPRESS_ENV_DATA", str(DATA_ROOT))
        yield


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save figures without what is on them: drawing it takes longer than a small job."""
    savefig = Figure.savefig

    def save_blank(self: Figure, *args: Any, **options: Any) -> None:
        savefig(Figure((1.0, 1.0)), *args, **options)

    monkeypatch.setattr(Figure, "savefig", save_blank)


@pytest.fixture
def mnist() -> Path:
    """Return the root of the data sets, or skip the test without MNIST in it."""
    if not os.path.isdir(DATA_ROOT / "MNIST" / "raw"):
        pytest.skip(f"MNIST is not in {DATA_ROOT}; set COMPRESS_ENV_DATA")
    return DATA_ROOT
