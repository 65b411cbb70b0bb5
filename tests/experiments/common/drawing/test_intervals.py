"""Intervals over seeds: what they say, and how they are written."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.common.drawing.intervals import (
    Interval,
    count_outcomes,
    format_interval,
    format_points,
    outcome,
    paired_interval,
    student_interval,
)


def test_paired_difference_by_hand() -> None:
    # Differences 1, 2 and 3: mean 2, deviation 1, t = 4.3027 with two degrees of freedom.
    found = paired_interval([2, 4, 6], [1, 2, 3])
    half = 4.302653 / np.sqrt(3)
    assert found == pytest.approx((2.0, 2.0 - half, 2.0 + half), rel=1e-6)
    assert found.side == "undecided"
    assert paired_interval([1, 2, 3.1], [2, 3, 4]).side == "below"
    assert paired_interval([2, 3, 4], [1, 2, 3.1]).side == "above"
    assert paired_interval([2], [1]).side == "undecided"


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
