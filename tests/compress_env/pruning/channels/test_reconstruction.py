"""Least-squares weights against numpy's solver on explicit rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress_env.pruning.channels.reconstruction import reconstruct
from compress_env.pruning.channels.statistics import GramStatistics, RowStatistics


def gather(x: Tensor, y: Tensor) -> GramStatistics:
    """The statistics of explicit rows, written out."""
    return GramStatistics(x.double().T @ x.double(), x.double().T @ y.double(), len(x))


def make_rows(seed: int, n_rows: int = 80, n_inputs: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """X, W and Y = X W^T with correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(n_inputs, n_inputs, generator=generator).double()
    x = torch.randn(n_rows, n_inputs, generator=generator).double() @ mixing
    weight = torch.randn(5, n_inputs, generator=generator).double()
    return x, weight, x @ weight.T


@pytest.mark.parametrize("seed", range(5))
def test_weights_equal_least_squares_on_the_rows(seed: int) -> None:
    x, _, y = make_rows(seed)
    columns = torch.tensor([7, 0, 3, 11])
    weight = reconstruct(gather(x, y), columns, ridge=1e-12)
    expected = np.linalg.lstsq(x[:, columns].numpy(), y.numpy(), rcond=None)[0].T
    assert weight.shape == (5, 4) and weight.dtype == torch.float64
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6, atol=1e-8)


def test_the_ridge_is_relative_to_the_mean_energy_of_a_row() -> None:
    x, _, y = make_rows(0)
    weight = reconstruct(gather(x, y), torch.arange(12), ridge=0.1)
    gram = (x.T @ x).numpy()
    eps = 0.1 * np.trace(gram) / len(x)
    expected = np.linalg.solve(gram + eps * np.eye(12), (x.T @ y).numpy()).T
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-9)


@given(seed=st.integers(0, 1000), n_kept=st.integers(1, 12), n_rows=st.integers(3, 60))
@settings(max_examples=40, deadline=None)
def test_the_error_does_not_exceed_that_of_the_old_weights(
    seed: int, n_kept: int, n_rows: int
) -> None:
    x, weight, y = make_rows(seed, n_rows)
    columns = torch.randperm(12, generator=torch.Generator().manual_seed(seed))[:n_kept]
    fitted = reconstruct(gather(x, y), columns, ridge=1e-9)
    before = (y - x[:, columns] @ weight[:, columns].T).square().sum()
    after = (y - x[:, columns] @ fitted.T).square().sum()
    assert float(after) <= float(before) + 1e-6 * float(y.square().sum())


@given(
    seed=st.integers(0, 1000),
    n_kept=st.integers(1, 30),
    n_rows=st.integers(1, 40),
    n_dead=st.integers(0, 3),
    has_prior=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_rows_and_sums_give_the_same_weights(
    seed: int, n_kept: int, n_rows: int, n_dead: int, has_prior: bool
) -> None:
    x, _, y = make_rows(seed, n_rows, n_inputs=30)
    x[:, :n_dead] = 0
    columns = torch.randperm(30, generator=torch.Generator().manual_seed(seed))[:n_kept]
    prior = torch.randn(5, n_kept, dtype=torch.float64) if has_prior else None
    by_rows = reconstruct(RowStatistics(x, y), columns, prior, ridge=1e-5)
    by_sums = reconstruct(gather(x, y), columns, prior, ridge=1e-5)
    dead = columns < n_dead
    at_rest = torch.zeros(5, n_kept, dtype=torch.float64) if prior is None else prior
    torch.testing.assert_close(by_rows[:, dead], at_rest[:, dead], rtol=0, atol=0)
    torch.testing.assert_close(by_rows, by_sums, rtol=1e-6, atol=1e-7)


def test_rows_in_single_precision_are_fitted_in_double_precision() -> None:
    x, _, y = make_rows(0, n_rows=20, n_inputs=40)
    exact = reconstruct(RowStatistics(x.float().double(), y.float().double()), torch.arange(40))
    fitted = reconstruct(RowStatistics(x.float(), y.float()), torch.arange(40))
    assert fitted.dtype == torch.float32
    torch.testing.assert_close(fitted, exact.float(), rtol=0, atol=0)


def test_the_ridge_pulls_towards_the_prior() -> None:
    x, _, y = make_rows(0)
    prior = torch.arange(60, dtype=torch.float64).reshape(5, 12)
    fitted = reconstruct(gather(x, y), torch.arange(12), prior, ridge=0.1)
    eps = 0.1 * (x.T @ x).trace() / len(x)
    gram = x.T @ x + eps * torch.eye(12, dtype=torch.float64)
    expected = torch.linalg.solve(gram, x.T @ y + eps * prior.T).T
    torch.testing.assert_close(fitted, expected)
    far = reconstruct(gather(x, y), torch.arange(12), prior, ridge=1e9)
    torch.testing.assert_close(far, prior, rtol=0, atol=1e-5)


def test_all_columns_give_back_the_exact_weights() -> None:
    x, weight, y = make_rows(1)
    fitted = reconstruct(gather(x, y), torch.arange(12), ridge=1e-12)
    torch.testing.assert_close(fitted, weight, rtol=1e-6, atol=1e-6)


def test_equal_and_dead_inputs_are_finite() -> None:
    x, _, y = make_rows(2)
    x[:, 1] = x[:, 0]
    x[:, 2] = 0
    fitted = reconstruct(gather(x, y), torch.arange(4))
    torch.testing.assert_close(fitted[:, 0], fitted[:, 1], rtol=1e-3, atol=1e-6)
    assert not fitted[:, 2].any()
    nothing = reconstruct(gather(x * 0, y), torch.arange(4))
    assert nothing.tolist() == torch.zeros(5, 4).tolist()


def test_the_ridge_rises_tenfold_until_the_matrix_is_positive_definite() -> None:
    statistics = gather(make_rows(3)[0], make_rows(3)[2])
    energy = statistics.gram.trace() / statistics.n_rows
    lowest = torch.linalg.eigvalsh(statistics.gram)[0]
    identity = torch.eye(12, dtype=torch.float64)
    indefinite = statistics.gram - (lowest + 2e-3 * energy) * identity
    fitted = reconstruct(statistics._replace(gram=indefinite), torch.arange(12), ridge=1e-6)
    eps = 1e-2 * indefinite.trace() / statistics.n_rows
    expected = torch.linalg.solve(indefinite + eps * identity, statistics.cross).T
    torch.testing.assert_close(fitted, expected)


@pytest.mark.parametrize(
    ("columns", "ridge", "message"),
    [([0], 0.0, "ridge > 0"), ([0], float("nan"), "ridge > 0"), ([], 1e-6, "at least one column")],
    ids=["zero ridge", "nan ridge", "no column"],
)
def test_reconstruct_rejects_bad_arguments(columns: list[int], ridge: float, message: str) -> None:
    x, _, y = make_rows(0)
    chosen = torch.tensor(columns, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        reconstruct(gather(x, y), chosen, ridge=ridge)


def test_reconstruct_rejects_statistics_that_are_not_finite() -> None:
    x, _, y = make_rows(0)
    x[0, 0] = float("inf")
    with pytest.raises(ValueError, match="finite statistics"):
        reconstruct(gather(x, y), torch.arange(3))
    rows = RowStatistics(x[:2], y[:2])
    with pytest.raises(ValueError, match="finite statistics"):
        reconstruct(rows, torch.arange(3))
