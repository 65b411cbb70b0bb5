"""Runs of the main job measure little: what they come to is the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from experiments.common import latency


@pytest.fixture(autouse=True, scope="module")
def _coarse() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "LIMIT_S", 0.0)
        patch.setattr(latency, "_WARM_UP_S", 0.0)
        yield
