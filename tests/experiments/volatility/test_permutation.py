"""Permutation tests of dispersions: what they find, what they do not, and what does not count."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.volatility import permutation
from experiments.volatility.measures import dispersion_across
from experiments.volatility.permutation import compare_across, compare_means


def curves(rng: np.random.Generator, n_seeds: int, scale: float, level: float = 0.0) -> np.ndarray:
    """Curves whose seeds differ for good, and from episode to episode."""
    steady, noise = rng.normal(size=(n_seeds, 1)), 0.3 * rng.normal(size=(n_seeds, 20))
    return level + scale * (steady + noise)


def test_ratio_is_that_of_the_measures_whatever_the_levels() -> None:
    rng = np.random.default_rng(0)
    first, second = curves(rng, 20, 0.2), curves(rng, 20, 1.0, level=9.0)
    found = compare_across(first, second)
    expected = dispersion_across(first) / dispersion_across(second)
    assert found.ratio == pytest.approx(expected) and found.p < 0.01 and found.side == "below"
    assert compare_across(second, first).side == "above"
    shifted = compare_across(first + np.linspace(0.0, 5.0, 20), second)
    assert shifted[:2] == pytest.approx(found[:2])


def test_a_difference_in_level_is_no_difference_in_dispersion() -> None:
    rng = np.random.default_rng(1)
    assert compare_across(curves(rng, 20, 1.0), curves(rng, 20, 1.0, 50.0)).side == "undecided"


def test_size_and_power_with_twenty_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A true ratio of 0.3 is found in nine of ten trials, one of 1 in one of twenty."""
    monkeypatch.setattr(permutation, "N_PERMUTATIONS", 200)
    rng = np.random.default_rng(2)

    def found(ratio: float) -> int:
        pairs = ((curves(rng, 20, ratio), curves(rng, 20, 1.0)) for _ in range(40))
        return sum(compare_across(*pair).side != "undecided" for pair in pairs)

    assert found(0.3) >= 32 and found(1.0) <= 6


def test_few_seeds_are_not_counted_across_seeds() -> None:
    rng = np.random.default_rng(3)
    found = compare_across(curves(rng, 9, 0.01), curves(rng, 20, 1.0))
    assert found.side == "not counted" and found.why_not == "9 seeds, fewer than 10"
    assert found.ratio < 0.1 and np.isnan(found.p)
    assert compare_across(curves(rng, 10, 0.01), curves(rng, 10, 1.0)).side == "below"


def test_means_of_seeds_by_hand() -> None:
    """Of 2 * 3 seeds all of one agent below all of the other: 2 of 20 orders are so extreme."""
    low, high = [1.0, 1.1, 0.9, 1.0, 1.05], [9.0, 9.1, 8.9, 9.0, 9.05]
    found = compare_means(low, high)
    assert found.ratio == pytest.approx(1.01 / 9.01, rel=1e-9) and found.side == "below"
    assert found.p == pytest.approx(2 / 252, abs=0.006)
    few = compare_means(low[:3], high[:3])
    assert few.side == "not counted" and few.why_not == "3 seeds, too few for any p below 0.05"
    assert compare_means(low[:4], high[:4]).side == "below"


def test_equal_by_construction_is_not_counted() -> None:
    rng = np.random.default_rng(4)
    same = curves(rng, 20, 1.0)
    assert compare_across(same, same.copy()).why_not == "the same by construction"
    assert compare_means(same[:, 0], same[:, 0]).why_not == "the same by construction"
    flat = np.zeros((12, 20))
    assert compare_across(flat, flat + 1.0).why_not == "neither varies"
    one_is = compare_across(flat, same)
    assert (one_is.ratio, one_is.side) == (0.0, "below")
