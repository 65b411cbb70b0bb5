"""Bits by relative error: errors by hand, and the best choice that a budget allows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_env.allocation import choose_least, relative_errors
from compress_env.allocation.bits import relative_error
from compress_env.quantization.fake_quant import FakeQuantize
from compress_env.quantization.scales import fit_scale, rounded_scale


@pytest.mark.parametrize("fit", [fit_scale, rounded_scale])
def test_errors_are_those_of_the_quantizer(fit: object) -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert callable(fit)
    errors = relative_errors([weight, 2 * weight], range(1, 9), fit)
    assert errors.shape == (2, 8)
    assert (np.diff(errors[0]) < 0).all() and errors[0, 0] < 1.0
    np.testing.assert_allclose(errors[0], errors[1], rtol=0.02)  # but for rounded scales
    for bits in range(1, 9):
        quantized = FakeQuantize(weight, bits, fit(weight, bits))(weight)
        expected = (weight - quantized).square().sum() / weight.square().sum()
        assert errors[0, bits - 1] == pytest.approx(float(expected), rel=1e-5)


def test_error_of_nothing_is_nothing() -> None:
    assert relative_error(torch.zeros(3, 2), 4, fit_scale) == 0.0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), share=st.floats(0.0, 1.1), scale=st.sampled_from([1e-6, 1.0]))
def test_choice_is_the_best_of_all(seed: int, share: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    losses = scale * np.sort(rng.lognormal(sigma=2.0, size=(4, 8)))[:, ::-1]
    costs = np.cumsum(rng.integers(1, 5000, (4, 8)), axis=1)
    least, most = int(costs[:, 0].sum()), int(costs[:, -1].sum())
    budget = least + share * (most - least)
    rows = np.arange(4)
    chosen = choose_least(losses, costs, budget)
    assert costs[rows, chosen].sum() <= budget
    best = min(
        float(losses[rows, options].sum())
        for options in map(list, itertools.product(range(8), repeat=4))
        if costs[rows, options].sum() <= budget
    )
    assert losses[rows, chosen].sum() == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("n_layers", [1, 60])
def test_large_files_are_met_to_the_byte(n_layers: int) -> None:
    rng = np.random.default_rng(n_layers)
    costs = rng.integers(10**5, 10**7, (n_layers, 1)) * np.arange(1, 9)
    losses = rng.lognormal(size=(n_layers, 1)) * 4.0 ** -np.arange(8)
    budget = int(0.3 * costs[:, -1].sum())
    chosen = choose_least(losses, costs, budget)
    cost = int(costs[np.arange(n_layers), chosen].sum())
    assert cost <= budget
    if n_layers > 1:
        assert cost > 0.99 * budget


def test_extremes() -> None:
    losses, costs = np.array([[3.0, 1.0], [5.0, 2.0]]), np.array([[1, 4], [2, 3]])
    assert choose_least(losses, costs, math.inf).tolist() == [1, 1]
    assert choose_least(losses, costs, 3).tolist() == [0, 0]
    assert choose_least(losses, costs, 4).tolist() == [0, 1]
    assert choose_least(np.zeros((2, 2)), costs, 3).tolist() == [0, 0]
    with pytest.raises(ValueError, match="the budget must be at least 3, got 2"):
        choose_least(losses, costs, 2)
