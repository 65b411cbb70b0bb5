"""Intervals over seeds: by hand, and how often they hold the true value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from experiments.common.intervals import (
    NOTHING,
    Interval,
    bootstrap_interval,
    improvement_interval,
    iqm_interval,
    iqm_name,
    jackknife_interval,
    mean_interval,
    paired_interval,
)

Draw: TypeAlias = Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]

DRAWS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, shape: rng.normal(size=shape), 0.0),
    "exponential": (lambda rng, shape: rng.exponential(size=shape), 1.0),
    "lognormal": (lambda rng, shape: rng.lognormal(0.0, 0.5, shape), math.exp(0.125)),
    "student": (lambda rng, shape: rng.standard_t(3, shape), 0.0),
    "lognormal1": (lambda rng, shape: rng.lognormal(0.0, 1.0, shape), math.exp(0.5)),
}
"""Ways to draw values, and their mean."""


def coverage(found: Iterable[Interval], truth: float) -> float:
    """Return how many of 100 intervals hold the true value."""
    return 100.0 * float(np.mean([low <= truth <= high for _, low, high in found]))


def test_mean_by_hand() -> None:
    # n = 3, s = 1, t = 4.3027 with two degrees of freedom.
    half = 4.302653 / math.sqrt(3)
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.0 - half, 2.0 + half), rel=1e-6)
    assert mean_interval([1.0, 2.0, 3.0]).reach == pytest.approx((half, half), rel=1e-6)


def test_paired_difference_by_hand() -> None:
    # Differences 1, 2 and 3.
    found = paired_interval([2, 4, 6], [1, 2, 3])
    assert found == mean_interval([1.0, 2.0, 3.0])
    assert found.side == "undecided"
    assert paired_interval([1, 2, 3.1], [2, 3, 4]).side == "below"
    assert paired_interval([2, 3, 4], [1, 2, 3.1]).side == "above"
    assert paired_interval([2], [1]).side == "undecided"


def test_a_single_seed_has_no_interval() -> None:
    for found in (mean_interval([2.0]), iqm_interval([2.0]), iqm_interval([2.0], [1.0, 3.0])):
        assert found.value == 2.0 and np.isnan([found.low, found.high, *found.reach]).all()
        assert found.side == "undecided"
    assert np.isnan([*mean_interval([]), *iqm_interval(), *NOTHING]).all()


def test_the_longer_side_is_that_of_the_longer_tail() -> None:
    values = np.arange(10.0) ** 2
    found, mirrored = mean_interval(values), mean_interval(-values)
    assert found.reach[1] > 1.1 * found.reach[0]
    assert mirrored == pytest.approx((-found.value, -found.high, -found.low))
    even = mean_interval(np.arange(10.0))  # no skewness: Student's
    expected = stats.t.interval(0.95, 9, 4.5, stats.sem(np.arange(10.0)))
    assert even[1:] == pytest.approx(expected)
    assert mean_interval(np.full(10, 3.0)) == (3.0, 3.0, 3.0)


def test_few_values_have_a_mean_for_interquartile_mean() -> None:
    assert iqm_interval([1.0, 2.0, 9.0]) == mean_interval([1.0, 2.0, 9.0])
    assert iqm_interval([1.0, 2.0, 3.0, 90.0]).value == 2.5
    assert [iqm_name(n) for n in (1, 3, 4)] == ["mean", "mean", "interquartile mean"]


def test_bootstrap_is_stretched_to_the_width_of_students_interval() -> None:
    values = np.random.default_rng(0).normal(size=8)
    found = bootstrap_interval([values], np.mean)
    assert np.mean(found.reach) == pytest.approx(mean_interval(values).reach[0], rel=0.1)
    assert found == bootstrap_interval([values], np.mean)
    assert iqm_interval(np.full(5, 0.1), np.full(5, 0.1)) == pytest.approx((0.1, 0.1, 0.1))


def test_a_ratio_without_bounds_is_known_to_be_positive_only() -> None:
    sample = np.array([1.0, 2.0, 4.0])
    found = jackknife_interval(sample, lambda x: float(x.mean()))
    # Logarithms of 3, 2.5 and 1.5, the means without each; t = 4.3027.
    error = math.sqrt(2) * np.std(np.log([3.0, 2.5, 1.5]))
    ends = 7 / 3 * np.exp(4.302653 * error * np.array([-1.0, 1.0]))
    assert found == pytest.approx((7 / 3, *ends), rel=1e-6)
    for value in (0.0, math.inf):
        assert jackknife_interval(sample[:2], np.std)[1:] == (0.0, math.inf)
        ends = jackknife_interval(sample, lambda x, value=value: value)[1:]  # type: ignore[misc]
        assert ends == (0.0, math.inf)


@pytest.mark.parametrize(
    ("draw", "n", "lowest"),
    [
        *(("normal", n, 92.0) for n in (3, 5, 10, 20)),
        *((draw, n, 92.0) for draw in ("exponential", "lognormal", "student") for n in (10, 20)),
        ("exponential", 3, 86.0),
        ("exponential", 5, 86.0),
        ("lognormal", 3, 89.0),
        ("lognormal", 5, 89.0),
        ("lognormal1", 3, 80.0),
        ("lognormal1", 5, 79.0),
        ("lognormal1", 10, 85.0),
        ("lognormal1", 20, 86.0),
    ],
)
def test_means_are_covered(draw: str, n: int, lowest: float) -> None:
    values, truth = DRAWS[draw][0](np.random.default_rng(n), (1000, n)), DRAWS[draw][1]
    assert lowest <= coverage(map(mean_interval, values), truth) <= 98.0


@pytest.mark.parametrize("n", [3, 5, 10, 20])
def test_differences_of_pairs_are_covered(n: int) -> None:
    rng = np.random.default_rng(n)
    first = 0.5 + rng.exponential(size=(1000, n))
    found = map(paired_interval, first, rng.exponential(size=(1000, n)))
    assert 92.0 <= coverage(found, 0.5) <= 98.0


@pytest.mark.parametrize("n", [3, 5, 10, 20])
@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_interquartile_means_are_covered(draw: str, n: int) -> None:
    rng = np.random.default_rng(n)
    many = DRAWS[draw][0](rng, (10**6,))
    truth = DRAWS[draw][1] if n == 3 else float(stats.trim_mean(many, 0.25))
    found = map(iqm_interval, DRAWS[draw][0](rng, (200, n)))
    assert (86.0 if (draw, n) == ("exponential", 3) else 92.0) <= coverage(found, truth) <= 99.0


@pytest.mark.parametrize("n_seeds", [3, 5, 10])
def test_interquartile_means_over_tasks_are_covered(n_seeds: int) -> None:
    rng = np.random.default_rng(n_seeds)
    levels, scales = np.linspace(0.0, 1.0, 4)[:, None], np.array([[0.1], [0.3], [0.2], [0.1]])
    truth = float(stats.trim_mean(levels + scales * rng.normal(size=(4, 10**5)), 0.25, None))
    drawn = levels + scales * rng.normal(size=(300, 4, n_seeds))
    assert 90.0 <= coverage((iqm_interval(*each) for each in drawn), truth) <= 99.0


@pytest.mark.parametrize("n_tasks", [1, 12])
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_probabilities_of_improvement_are_covered(n_tasks: int, shift: float) -> None:
    rng = np.random.default_rng(n_tasks)
    first, second = rng.normal(size=(2, 300, n_tasks, 5))
    truth = float(stats.norm.cdf(shift / math.sqrt(2)))
    found = list(map(improvement_interval, first + shift, second))
    assert 92.0 <= coverage(found, truth)
    assert all(0.0 <= low <= value <= high <= 1.0 for value, low, high in found)
    assert all(high > low for _, low, high in found)  # even where all pairs agree


@pytest.mark.parametrize("spread", ["normal", "uniform"])
def test_ratios_of_deviations_are_covered(spread: str) -> None:
    rng = np.random.default_rng(0)
    drawn = getattr(rng, spread)(size=(300, 24))
    drawn *= {"normal": 1.0, "uniform": math.sqrt(12)}[spread]
    found = (
        jackknife_interval(values, lambda x: float(np.std(x, ddof=1))) for values in 3.0 * drawn
    )
    assert 92.0 <= coverage(found, 3.0) <= 98.0
