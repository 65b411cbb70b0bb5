"""Intervals over seeds: how they and what they say are written."""

from __future__ import annotations

import math

import pytest

from experiments.common.drawing.intervals import (
    count_outcomes,
    format_ends,
    format_interval,
    format_mean,
    format_points,
    outcome,
)
from experiments.common.intervals import Interval


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
    even, single = Interval(1.0, 0.5, 1.5), Interval(1.0, math.nan, math.nan)
    longer = Interval(1.0, 0.5, 2.0)
    assert format_ends(even) == "1.00 [0.50, 1.50]"
    assert format_ends(even, 1, "+") == "+1.0 [+0.5, +1.5]"
    assert format_ends(single, 3) == format_interval(single, 3) == "1.000"
    assert format_interval(even) == "1.00 ± 0.50"
    assert format_interval(longer, 1) == "1.0 [0.5, 2.0]"
    assert [format_points(each) for each in (even, longer, single)] == [
        "+1.00 ± 0.50",
        "+1.00 [+0.50, +2.00]",
        "+1.00",
    ]
    assert format_interval(Interval(0.0, 0.0, 0.0)) == "0.00 ± 0.00"


def test_means_of_few_and_of_many_seeds_are_written() -> None:
    assert format_mean([1.0, 2.0, 3.0], 1) == "2.0 ± 2.5"
    assert format_mean([2.0], 1) == "2.0"
    assert format_mean([0.0] * 9 + [10.0], 0).startswith("1 [")
