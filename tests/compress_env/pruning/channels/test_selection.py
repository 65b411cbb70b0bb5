"""Channel selection against scikit-learn's Lasso on explicit features."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import Lasso, lars_path
from torch import Tensor

from compress_env.pruning.channels import selection
from compress_env.pruning.channels.selection import (
    lasso_problem,
    magnitude_scores,
    select_at_random,
    select_by_lasso,
    select_by_magnitude,
)
from compress_env.pruning.channels.statistics import GramStatistics, RowStatistics


def gather(x: Tensor, y: Tensor) -> GramStatistics:
    """The statistics of explicit rows, written out."""
    return GramStatistics(x.double().T @ x.double(), x.double().T @ y.double(), len(x))


def make_problem(
    seed: int, n_channels: int = 8, n_columns: int = 3, n_outputs: int = 4, n_rows: int = 60
) -> tuple[Tensor, Tensor, Tensor]:
    """X with correlated columns, W, and Y = X W^T + noise."""
    generator = torch.Generator().manual_seed(seed)
    n_inputs = n_channels * n_columns
    mixing = torch.eye(n_inputs) + 0.3 * torch.randn(n_inputs, n_inputs, generator=generator)
    x = (torch.randn(n_rows, n_inputs, generator=generator) @ mixing).double()
    weight = torch.randn(n_outputs, n_inputs, generator=generator).double()
    y = x @ weight.T + torch.randn(n_rows, n_outputs, generator=generator).double()
    return x, weight, y


def plain_columns(n_channels: int, n_columns: int) -> Tensor:
    return torch.arange(n_channels * n_columns).view(n_channels, n_columns)


def explicit_features(x: Tensor, weight: Tensor, columns: Tensor) -> NDArray[np.float64]:
    """The P*N rows whose column c is channel c's contribution to every response."""
    # (P, k) @ (k, N) -> (P, N) -> (P * N,), stacked to (P * N, C)
    parts = [(x[:, own] @ weight[:, own].T).flatten() for own in columns]
    return torch.stack(parts, dim=1).numpy()


def lasso_support(features: NDArray[np.float64], target: NDArray[np.float64], n: int) -> list[int]:
    """Support by coordinate descent in the middle of the path's first segment with n active."""
    alphas, _, coefficients = lars_path(features, target, method="lasso")
    knot = int(np.argmax((coefficients != 0).sum(axis=0) == n))
    assert (coefficients[:, knot] != 0).sum() == n
    middle = 0.5 * (alphas[knot - 1] + alphas[knot])
    model = Lasso(alpha=middle, fit_intercept=False, tol=1e-12, max_iter=1_000_000)
    return np.flatnonzero(model.fit(features, target).coef_).tolist()


@pytest.mark.parametrize("seed", range(15))
def test_support_equals_that_of_lasso_on_explicit_features(seed: int) -> None:
    x, weight, y = make_problem(seed)
    columns = plain_columns(8, 3)
    features = explicit_features(x, weight, columns)
    statistics = gather(x, y)
    for n_keep in range(1, 8):
        kept = select_by_lasso(statistics, weight, columns, n_keep)
        assert kept.tolist() == lasso_support(features, y.flatten().numpy(), n_keep)


@pytest.mark.parametrize("seed", range(5))
def test_columns_outside_the_candidates_count_as_kept(seed: int) -> None:
    x, weight, y = make_problem(seed)
    columns = plain_columns(8, 3)[torch.tensor([6, 1, 3, 4])]
    certain = plain_columns(8, 3)[torch.tensor([0, 2, 5, 7])].flatten()
    target = y - x[:, certain] @ weight[:, certain].T
    features = explicit_features(x, weight, columns)
    for n_keep in (1, 2, 3):
        kept = select_by_lasso(gather(x, y), weight, columns, n_keep)
        assert kept.tolist() == lasso_support(features, target.flatten().numpy(), n_keep)


@given(
    seed=st.integers(0, 10_000),
    n_channels=st.integers(1, 10),
    n_columns=st.integers(1, 4),
    n_rows=st.integers(1, 50),
    n_others=st.integers(0, 3),
    step=st.sampled_from([1, 300, 10_000]),
)
@settings(max_examples=60, deadline=None)
def test_the_problem_is_that_of_explicit_features_in_both_forms(
    seed: int, n_channels: int, n_columns: int, n_rows: int, n_others: int, step: int
) -> None:
    x, weight, y = make_problem(seed, n_channels + n_others, n_columns, 3, n_rows)
    order = torch.randperm(n_channels + n_others, generator=torch.Generator().manual_seed(seed))
    columns = plain_columns(n_channels + n_others, n_columns)[order]
    certain = columns[n_channels:].flatten()
    features = explicit_features(x, weight, columns[:n_channels])
    target = (y - x[:, certain] @ weight[:, certain].T).flatten().numpy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_MAX_BLOCK", step)
        for statistics in (gather(x, y), RowStatistics(x, y)):
            problem = lasso_problem(statistics, weight, columns[:n_channels])
            np.testing.assert_allclose(problem.gram, features.T @ features, rtol=1e-9, atol=1e-7)
            np.testing.assert_allclose(problem.target, features.T @ target, rtol=1e-9, atol=1e-7)
            assert np.array_equal(problem.gram, problem.gram.T)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("n_rows", [40, 500], ids=["wide", "narrow"])
def test_single_precision_and_rows_give_the_same_support(seed: int, n_rows: int) -> None:
    x, weight, _ = make_problem(seed, n_channels=32, n_columns=4, n_outputs=24, n_rows=n_rows)
    x, weight = x.relu().float(), weight.float()
    y, columns = x @ weight.T, plain_columns(32, 4)
    for n_keep in (3, 8, 16, 24, 29):
        expected = select_by_lasso(gather(x, y), weight.double(), columns, n_keep).tolist()
        for statistics in (gather(x, y), RowStatistics(x, y)):
            assert select_by_lasso(statistics, weight, columns, n_keep).tolist() == expected


def test_a_path_on_which_channels_leave_again_is_followed() -> None:
    for seed in itertools.count():
        x, weight, y = make_problem(seed, n_channels=12, n_columns=1, n_outputs=1, n_rows=15)
        features = explicit_features(x, weight, plain_columns(12, 1))
        _, _, coefficients = lars_path(features, y.flatten().numpy(), method="lasso")
        sizes = (coefficients != 0).sum(axis=0)
        first = int(np.argmax(sizes == 10))
        if sizes[first] == 10 and first > 10:
            break
    kept = select_by_lasso(gather(x, y), weight, plain_columns(12, 1), 10)
    assert kept.tolist() == np.flatnonzero(coefficients[:, first]).tolist()


def test_the_channels_that_matter_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 20, generator=generator)
    weight = torch.full((2, 20), 0.01)
    weight[:, [3, 11, 17]] = 1.0
    kept = select_by_lasso(gather(x, x @ weight.T), weight, plain_columns(20, 1), 3)
    assert kept.tolist() == [3, 11, 17]
    assert kept.dtype == torch.int64


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("factor", [1e-13, 1e13], ids=["tiny", "huge"])
def test_selection_does_not_depend_on_the_units(seed: int, factor: float) -> None:
    x, weight, y = make_problem(seed)
    columns = plain_columns(8, 3)
    expected = select_by_lasso(gather(x, y), weight, columns, 5).tolist()
    for a, b, c in ((factor, 1.0, 1.0), (1.0, factor, 1.0), (1.0, 1.0, factor)):
        statistics = gather(x * a, y * b)
        assert select_by_lasso(statistics, weight * c, columns, 5).tolist() == expected


@pytest.mark.parametrize("dead", ["input", "weight"])
def test_dead_channels_go_first(dead: str) -> None:
    x, weight, y = make_problem(0)
    columns = plain_columns(8, 3)
    (x if dead == "input" else weight)[:, columns[[0, 5]].flatten()] = 0
    kept = select_by_lasso(gather(x, y), weight, columns, 6)
    assert kept.tolist() == [1, 2, 3, 4, 6, 7]
    filled = select_by_lasso(gather(x, y), weight, columns, 7)
    assert filled.tolist() == [0, 1, 2, 3, 4, 6, 7]


@pytest.mark.parametrize("energy", [0.0, 1.0], ids=["no input", "no response"])
def test_without_any_signal_the_lowest_indices_stay(energy: float) -> None:
    gram = energy * torch.eye(6, dtype=torch.float64)
    nothing = GramStatistics(gram, torch.zeros(6, 2, dtype=torch.float64), 10)
    kept = select_by_lasso(nothing, torch.ones(2, 6), plain_columns(3, 2), 2)
    assert kept.tolist() == [0, 1]


@pytest.mark.parametrize("n_keep", range(1, 6))
def test_equal_channels_are_completed_to_the_number_asked_for(n_keep: int) -> None:
    x = torch.randn(50, 1, generator=torch.Generator().manual_seed(0)).expand(-1, 6)
    weight = torch.ones(2, 6)
    kept = select_by_lasso(gather(x, x @ weight.T), weight, plain_columns(6, 1), n_keep)
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert len(kept) == n_keep


def test_the_fill_prefers_the_strongest_normalised_correlation() -> None:
    # Channels e1, e1 - e2, e2 and 0.1 (e1 + e2): the path ends at {0, 2}, which span the others.
    x = torch.tensor([[1.0, 1.0, 0.0, 0.1], [0.0, -1.0, 1.0, 0.1]])
    y = torch.tensor([[2.0], [1.0]])
    kept = select_by_lasso(gather(x, y), torch.ones(1, 4), plain_columns(4, 1), 3)
    assert kept.tolist() == [0, 2, 3]


@pytest.mark.parametrize("seed", range(3))
def test_nearly_equal_channels_are_kept_once_and_without_a_warning(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 12, generator=generator).double()
    x[:, 6:] = x[:, :6] + 1e-8 * x[:, 6:]
    weight = torch.randn(3, 6, generator=generator).double().repeat(1, 2)
    statistics = gather(x, x @ weight.T)
    kept = select_by_lasso(statistics, weight, plain_columns(12, 1), 6).tolist()
    assert {channel % 6 for channel in kept} == set(range(6))
    assert len(select_by_lasso(statistics, weight, plain_columns(12, 1), 10)) == 10


@given(
    seed=st.integers(0, 10_000),
    n_channels=st.integers(1, 12),
    n_columns=st.integers(1, 4),
    n_rows=st.integers(1, 30),
    n_duplicates=st.integers(0, 4),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_exactly_the_number_asked_for_whatever_the_data(
    seed: int, n_channels: int, n_columns: int, n_rows: int, n_duplicates: int, data: st.DataObject
) -> None:
    x, weight, y = make_problem(seed, n_channels, n_columns, 3, n_rows)
    x[:, :n_duplicates] = x[:, -1:]
    n_keep = data.draw(st.integers(1, n_channels))
    columns = plain_columns(n_channels, n_columns)
    kept = select_by_lasso(gather(x, y), weight, columns, n_keep).tolist()
    assert len(kept) == n_keep
    assert kept == sorted(set(kept))
    assert 0 <= kept[0] and kept[-1] < n_channels


def test_lasso_rejects_what_is_not_finite_or_does_not_fit() -> None:
    x, weight, y = make_problem(0)
    statistics, columns = gather(x, y), plain_columns(8, 3)
    broken = weight.clone()
    broken[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not in weight"):
        select_by_lasso(statistics, broken, columns, 2)
    with pytest.raises(ValueError, match="not in responses"):
        select_by_lasso(statistics._replace(cross=statistics.cross / 0), weight, columns, 2)
    with pytest.raises(ValueError, match="not in inputs"):
        select_by_lasso(statistics._replace(gram=statistics.gram / 0), weight, columns, 2)
    with pytest.raises(ValueError, match=r"a weight of shape \(2, 24\), got them for \(4, 24\)"):
        select_by_lasso(statistics, weight[:2], columns, 2)
    with pytest.raises(ValueError, match="one twice"):
        select_by_lasso(statistics, weight, columns * 0, 2)


@pytest.mark.parametrize("n_keep", [0, 9, -1])
def test_selection_rejects_an_impossible_count(n_keep: int) -> None:
    x, weight, y = make_problem(0)
    columns = plain_columns(8, 3)
    with pytest.raises(ValueError, match=rf"expected n_keep in 1\.\.8, got {n_keep}"):
        select_by_lasso(gather(x, y), weight, columns, n_keep)
    with pytest.raises(ValueError, match=rf"expected n_keep in 1\.\.8, got {n_keep}"):
        select_by_magnitude(weight, columns, n_keep)


def test_everything_stays_when_everything_is_asked_for() -> None:
    x, weight, y = make_problem(0)
    columns = plain_columns(8, 3)
    assert select_by_lasso(gather(x, y), weight, columns, 8).tolist() == list(range(8))
    assert select_by_magnitude(weight, columns, 8).tolist() == list(range(8))


def test_magnitude_is_the_l1_norm_over_outputs_and_columns() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.0, 4.0], [-1.0, 0.0, 3.0, -1.0]])
    columns = torch.tensor([[0, 2], [1, 3]])
    assert magnitude_scores(weight, columns).tolist() == [5.0, 7.0]
    assert select_by_magnitude(weight, columns, 1).tolist() == [1]


def test_magnitude_breaks_ties_by_the_lower_index() -> None:
    weight = torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0]])
    assert select_by_magnitude(weight, plain_columns(5, 1), 3).tolist() == [0, 1, 3]
    with pytest.raises(ValueError, match="not in weight"):
        select_by_magnitude(weight / 0, plain_columns(5, 1), 3)


@pytest.mark.slow
def test_a_wide_layer_takes_a_fraction_of_a_second() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 512, generator=generator).relu()
    weight = torch.randn(512, 512, generator=generator)
    statistics, columns = gather(x, x @ weight.T), plain_columns(512, 1)

    def seconds() -> float:
        start = time.process_time()
        select_by_lasso(statistics, weight, columns, 256)
        return time.process_time() - start

    # Of processor time, so that it does not matter what else runs.
    assert min(seconds() for _ in range(5)) < 0.15 * torch.get_num_threads()


def test_random_selection_gives_every_channel_the_same_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(5)
    for _ in range(1000):
        kept = select_at_random(5, 2, generator)
        assert len(kept) == 2 and kept[0] < kept[1]
        counts[kept] += 1
    assert counts.tolist() == pytest.approx([400.0] * 5, abs=60)
    assert select_at_random(3, 3, generator).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"expected n_keep in 1\.\.3, got 4"):
        select_at_random(3, 4, generator)
