"""On how many threads a command computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.common.cli.threads import settle_threads


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


def test_one_thread_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    assert settle_threads() == "1 thread (OMP_NUM_THREADS not set)"
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert settle_threads() == "2 threads (OMP_NUM_THREADS)"
    assert torch.get_num_threads() == 2


def test_a_run_goes_on_with_the_threads_it_was_begun_with(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hardware": {"torch_threads": 2}}))
    assert settle_threads(tmp_path) == "2 threads (as the run was begun with)"
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("hardware", [{"torch_threads": 10**9}, {"torch_threads": True}, {}, 3])
def test_a_folder_that_tells_no_number_is_like_none(hardware: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hardware": hardware}))
    assert settle_threads(tmp_path) == "1 thread (OMP_NUM_THREADS not set)"
    assert settle_threads(tmp_path / "nowhere") == "1 thread (OMP_NUM_THREADS not set)"
