"""Ranges of numbers: what is one, and what an error says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.common.arguments import SEED, Range, check_device, checked, in_a_line

SCHEDULE = Range(0, is_open=True, may_be_schedule=True)


@pytest.mark.parametrize(
    ("value", "allowed", "message"),
    [
        (0, Range(1, is_whole=True), "x must be at least 1, got 0"),
        (8.0, Range(1, is_whole=True), "x must be a whole number at least 1, got 8.0"),
        (True, Range(1, is_whole=True), "x must be a whole number at least 1, got True"),
        ("8", Range(0), "x must be a number at least 0 and finite, got '8'"),
        (None, Range(0), "x must be a number at least 0 and finite, got None"),
        (math.inf, Range(0), "x must be at least 0 and finite, got inf"),
        (math.nan, Range(0, may_be_infinite=True), "x must be at least 0, got nan"),
        (0.0, Range(0, is_open=True), "x must be above 0 and finite, got 0.0"),
        (0, Range(0, 1, is_open=True), r"x must be in \(0, 1\], got 0"),
        (np.float32(1.5), Range(0, 1), r"x must be in \[0, 1\], got 1.5"),
        (2**32, SEED, r"x must be in \[0, 4294967295\], got 4294967296"),
        (lambda _: 1.0, Range(0), "x must be a number"),
        (lambda progress: -progress, SCHEDULE, "x at the start must be at least 0"),
    ],
)
def test_what_is_no_such_number_is_refused_in_a_line(
    value: Any, allowed: Range, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{message}[^\n]*$"):
        checked("x", value, allowed)


@given(st.integers(0, 2**32 - 1), st.sampled_from([int, np.int64, np.uint32, np.uint64]))
def test_whole_numbers_of_numpy_become_pythons(value: int, kind: Any) -> None:
    number = checked("seed", kind(value), SEED)
    assert number == value and type(number) is int


def test_what_may_stand_in_place_of_a_number() -> None:
    assert checked("seed", None, SEED) is None
    assert checked("x", abs, SCHEDULE) is abs
    ramp = checked("x", lambda progress: 1.0 - progress, SCHEDULE)  # starts at 0, as warm-ups do
    assert ramp(0.5) == 0.5
    assert checked("x", math.inf, Range(0, may_be_infinite=True)) == math.inf
    assert type(checked("x", np.float32(0.5), Range(0))) is float


def test_devices() -> None:
    check_device("auto")
    check_device("cuda:1")
    for device in ("gpu", -3, None, 1.5):
        with pytest.raises(ValueError, match=r"^device must be 'auto' or one of PyTorch's[^\n]*$"):
            check_device(device)


def test_long_values_are_shortened_to_a_line() -> None:
    line = in_a_line(np.zeros((200, 3)))
    assert "\n" not in line and len(line) <= 200
