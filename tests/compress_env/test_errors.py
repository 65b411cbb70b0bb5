"""Tests of what errors of foreign code are told as."""

from __future__ import annotations

import pytest

from compress_env.errors import reason_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("first\nsecond"), "first"),
        (FileNotFoundError("no such file"), "no such file"),
        (EOFError("no more"), "no more"),
        (KeyError("image"), "KeyError: 'image'"),
        (AssertionError("expected 32x32"), "AssertionError: expected 32x32"),
        (AssertionError(), "AssertionError"),
        (RuntimeError(""), "RuntimeError"),
    ],
)
def test_reason_is_a_line_that_says_something(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
