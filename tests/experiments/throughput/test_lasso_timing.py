"""Bisection against the path, and what memory a wide layer takes."""

from __future__ import annotations

import numpy as np
import pytest

from compress_env.pruning.channels.selection import LassoProblem
from experiments.throughput import lasso_timing
from experiments.throughput.lasso_timing import (
    LayerSize,
    conv_size,
    measure_peak_bytes,
    select_by_bisection,
    time_lasso,
)

MIB = 2**20


def test_bisection_keeps_the_largest_products_of_orthogonal_channels() -> None:
    problem = LassoProblem(np.eye(5), np.array([3.0, -1.0, 2.0, 0.5, -4.0]))
    for n_keep, expected in ((1, [4]), (2, [0, 4]), (4, [0, 1, 2, 4])):
        kept = select_by_bisection(problem, n_keep, 1e-8)
        assert kept is not None and kept.tolist() == expected


def test_bisection_says_when_no_lambda_leaves_so_many() -> None:
    problem = LassoProblem(np.eye(3), np.array([2.0, 2.0, 2.0]))
    assert select_by_bisection(problem, 2, 1e-8) is None


def test_both_methods_agree_on_a_linear_layer() -> None:
    rows = time_lasso(LayerSize(24, 12, n_rows=200, side=2), (1e-9,), 2, seed=0)
    assert [row["same"] for row in rows] == [True, True]
    assert all(row["rows_ms"] > 0 for row in rows)


def test_bisection_over_rows_is_left_out_where_they_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lasso_timing, "_MAX_REGRESSION", 24 * 12 * 200 - 1)
    rows = time_lasso(LayerSize(24, 12, n_rows=200, side=2), (1e-4,), 1, seed=0)
    assert np.isnan(rows[0]["rows_ms"])


# About a third above what it takes. D x D in float64 has 41 MiB for the convolution, where three
# or four such are needed, and 264 MiB for the linear layer, where none is.
@pytest.mark.parametrize(
    ("size", "limit_mib"),
    [(LayerSize(256, 256, n_rows=2500), 240), (LayerSize(120, 64, n_rows=200, side=7), 64)],
    ids=["convolution, sums", "linear, rows"],
)
def test_pruning_a_wide_layer_takes_bounded_memory(size: LayerSize, limit_mib: int) -> None:
    peak_bytes = measure_peak_bytes(size)
    if np.isnan(peak_bytes):
        pytest.skip("this system does not tell a process's peak memory")
    assert 0 < peak_bytes < limit_mib * MIB


@pytest.mark.slow
def test_pruning_the_widest_convolution_takes_less_than_a_gibibyte() -> None:
    assert not measure_peak_bytes(conv_size(512)) >= 1024 * MIB
