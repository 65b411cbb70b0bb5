"""Intervals over seeds: what they say, and how they are written."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.common.intervals import (
    Interval,
    count_outcomes,
    format_interval,
    format_points,
    outcome,
    paired_interval,
    student_interval,
)


def test_a_difference_is_that_of_seeds() -> None:
    found = paired_interval([1.0, 3.0], [2.0, 5.0])
    half = 12.706204736 * 0.5  # t(0.975, 1) sd / sqrt(2)
    assert found == pytest.approx((-1.5, -1.5 - half, -1.5 + half))


def test_a_single_seed_has_no_interval() -> None:
    found = student_interval([2.0])
    assert found.value == 2.0 and np.isnan([found.low, found.high]).all()
    assert found.side == "undecided"


@pytest.mark.parametrize(
    ("mean", "half", "expected"),
    [
        (-2.0, 1.0, "better"),
        (2.0, 1.0, "worse"),
        (-1.0, 1.0, "undecided"),
        (0.0, 0.0, "equal"),
        (-2.0, 0.0, "better"),
        (-2.0, math.nan, "undecided"),
        (0.0, math.nan, "undecided"),
    ],
)
def test_an_interval_around_nothing_is_undecided(mean: float, half: float, expected: str) -> None:
    difference = Interval(mean, mean - half, mean + half)
    assert outcome(difference) == expected
    assert count_outcomes({0.5: difference}) == f"{expected} 1"


def test_outcomes_are_counted_best_first() -> None:
    worse, better = Interval(1.0, 0.5, 1.5), Interval(-1.0, -1.5, -0.5)
    assert count_outcomes({1: worse, 2: better, 3: worse}) == "better 1, worse 2"


def test_intervals_are_written_with_their_ends_or_their_half_width() -> None:
    known, single = Interval(1.0, 0.5, 1.5), Interval(1.0, math.nan, math.nan)
    assert format_interval(known) == "1.00 [0.50, 1.50]"
    assert format_interval(known, 1, "+") == "+1.0 [+0.5, +1.5]"
    assert format_interval(single, 3) == "1.000"
    assert (format_points(known), format_points(single)) == ("+1.00 ± 0.50", "+1.00")
