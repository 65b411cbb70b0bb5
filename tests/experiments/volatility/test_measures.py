"""Measures of volatility, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.volatility.measures import (
    cvar,
    dispersion_across,
    dispersion_within,
    drawdown,
    episodes_to_reach,
    smooth,
    unpaired_interval,
)

CURVES = st.lists(st.floats(-10.0, 10.0), min_size=2, max_size=40)


def test_running_mean_by_hand() -> None:
    np.testing.assert_allclose(smooth([1, 2, 6, 4], 2), [1.5, 4, 5])
    np.testing.assert_allclose(smooth([[1, 3], [2, 6]], 5), [[2], [4]])


def test_dispersion_across_seeds_by_hand() -> None:
    # Interquartile ranges of 0, 1, 2, 3, 4 and of 0, 2, 4, 6, 8: 2 and 4.
    curves = np.outer(np.arange(5), [1, 2])
    assert dispersion_across(curves, window=1) == 3.0
    # Ups and downs that all seeds share, or that the running mean takes out, do not count.
    assert dispersion_across([[0, 1, 0, 1], [1, 0, 1, 0]], window=2) == 0.0


def test_dispersion_within_a_run_by_hand() -> None:
    assert dispersion_within([0, 1, 2, 3, 4]) == 0.0  # a steady rise
    # Differences 0, 1, 2, 3, 4.
    assert dispersion_within([0, 0, 1, 3, 6, 10]) == 2.0
    # Windows (0, 1), (1, 2), (2, 3) and (3, 4) of them: each has an interquartile range of 0.5.
    assert dispersion_within([0, 0, 1, 3, 6, 10], window=2) == 0.5


def test_drawdown_and_its_tail_by_hand() -> None:
    np.testing.assert_allclose(drawdown([1, 3, 2, 5, 0]), [0, 0, 1, 0, 5])
    assert cvar([1, 5, 3, 2, 4], 0.4) == 4.5
    assert cvar([1, 5, 3], 0.05) == 5.0
    assert cvar([1, 5, 3], 1.0) == 3.0
    assert cvar(np.arange(100), 0.05) == 97.0  # 95 to 99


@given(CURVES, st.floats(-5.0, 5.0), st.floats(0.1, 5.0))
def test_measures_scale_with_the_reward_and_ignore_its_level(
    rewards: list[float], level: float, scale: float
) -> None:
    moved = level + scale * np.array(rewards)
    for measure in (dispersion_within, lambda curve: cvar(drawdown(curve))):
        assert measure(moved) == pytest.approx(scale * measure(rewards), abs=1e-9)
    assert dispersion_within(moved) >= 0.0 and (drawdown(moved) >= 0.0).all()


def test_episodes_until_a_reward() -> None:
    assert episodes_to_reach([0.1, 0.5, 0.3, 0.7], 0.5) == 2
    assert episodes_to_reach([0.1, 0.2], 0.5) == np.inf


def test_unpaired_difference_resamples_seeds() -> None:
    rng = np.random.default_rng(0)
    steady, spread = rng.normal(0, 0.1, (8, 15)), np.arange(8)[:, None] + np.zeros((8, 15))
    found = unpaired_interval(dispersion_across, steady, spread)
    expected = dispersion_across(steady) - dispersion_across(spread)
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high < 0.0 and found.side == "below"
    single = unpaired_interval(dispersion_across, steady[:1], spread)
    assert np.isnan(single.low) and single.side == "undecided"
