"""Runs of the main job measure little and draw coarsely: what they come to is the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from experiments.common import latency, run_folder


@pytest.fixture(autouse=True, scope="module")
def _coarse() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "DPI", 30)
        patch.setattr(latency, "LIMIT_S", 0.0)
        patch.setattr(latency, "_WARM_UP_S", 0.0)
        yield
