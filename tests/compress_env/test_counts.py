"""Counts and other numbers that a caller gives."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from compress_env.counts import check_count, check_number


@pytest.mark.parametrize(
    "value", [7, np.int64(7), np.uint8(7), np.array(7), torch.tensor(7)], ids=repr
)
def test_integers_of_every_kind_are_counts(value: Any) -> None:
    count = check_count("n_steps", value, 7)
    assert (count, type(count)) == (7, int)


@pytest.mark.parametrize(
    "value", [True, np.True_, 7.0, np.float64(7), "7", None, np.array([7, 7]), np.array(7.0)]
)
def test_nothing_else_is(value: Any) -> None:
    with pytest.raises(TypeError, match="n_steps must be an int, got "):
        check_count("n_steps", value)


def test_too_small_ones_are_refused() -> None:
    with pytest.raises(ValueError, match="n_steps must be 0 or more, got -1"):
        check_count("n_steps", np.int8(-1))
    with pytest.raises(ValueError, match="n_steps must be at least 2, got 1"):
        check_count("n_steps", 1, 2)
    assert check_count("n_steps", -3, None) == -3


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), Fraction(1, 2)], ids=repr)
def test_real_numbers_of_every_kind_become_floats(value: Any) -> None:
    number = check_number("budget", value)
    assert (number, type(number)) == (0.5, float)


@pytest.mark.parametrize(
    "value", [True, np.True_, "0.5", None, [0.5], np.array([0.5]), 1j], ids=repr
)
def test_nothing_else_is_a_real_number(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^budget must be a real number, got "):
        check_number("budget", value)
