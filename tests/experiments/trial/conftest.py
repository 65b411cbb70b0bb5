"""Trials are of tiny tasks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes import tiny_tasks


@pytest.fixture(scope="module", autouse=True)
def _tiny_tasks() -> Iterator[None]:
    with tiny_tasks():
        yield
