"""Least-squares weights for the inputs that a layer keeps.

Shape legend: D inputs of one output unit, S the kept ones among them, N output channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress_env.pruning.channels.statistics import LayerStatistics, RowStatistics

__all__ = ["reconstruct"]

_COLUMNS_AT_ONCE = 1024  # of weights computed from rows


def reconstruct(
    statistics: LayerStatistics,
    columns: Tensor,
    prior: Tensor | None = None,
    ridge: float = 0.1,
) -> Tensor:
    """Return the weights that best reproduce the responses from the kept columns.

    Solves ``(A_SS + eps I) W_S^T = B_S + eps V^T`` by Cholesky in float64: least squares with a
    ridge that pulls towards the weights V that the layer had **(ours**: the papers' is towards
    zero**)**, so that what few calibration images say nothing of stays as it was. ``eps = ridge *
    trace(A_SS) / P``, by the mean energy of the P rows, goes with the scale of the inputs, and
    weighs the more the more weights there are to each row. From rows, where there are fewer than
    kept columns, the same weights are ``W_S^T = V^T + X_S^T (X_S X_S^T + eps I)^-1 (Y - X_S
    V^T)``. Where the matrix is not positive definite in floating point, the ridge is raised
    tenfold until it is.

    Args:
        statistics: Statistics of the layer, on any device.
        columns: The kept columns S, shape (|S|,), int64, in the order that the result will have.
        prior: V, (N, |S|), any floating dtype; zeros when None.
        ridge: Strength of the pull, positive.

    Returns:
        Weights, shape (N, |S|), on the device of the statistics, float64; in the dtype of the
        rows if there are fewer of them than kept columns. Columns without any signal get the
        prior's values.

    Raises:
        ValueError: If ``ridge`` is not positive, there is no column, or the statistics are not
            finite.
    """
    if not ridge > 0:
        raise ValueError(f"expected ridge > 0, got {ridge}")
    if not len(columns):
        raise ValueError("expected at least one column, got none")
    columns = columns.to(statistics.input_energy.device)
    if isinstance(statistics, RowStatistics) and statistics.n_rows < len(columns):
        return _solve_by_rows(statistics, columns, prior, ridge)
    # The change of the prior that explains what it leaves unexplained.
    gram, right = statistics.gram_block(columns, columns), statistics.cross_rows(columns)
    if prior is not None:
        right = right - gram @ prior.to(gram).T
    # (|S|, N) -> (N, |S|)
    change = _solve(gram, right, statistics.n_rows, ridge).T
    return (change if prior is None else prior.to(change) + change).contiguous()


def _solve_by_rows(
    statistics: RowStatistics, columns: Tensor, prior: Tensor | None, ridge: float
) -> Tensor:
    """Return the weights by a system of P x P, a few columns at a time."""
    responses = statistics.responses.double()
    weight = statistics.inputs.new_zeros(responses.shape[1], len(columns))
    starts = range(0, len(columns), _COLUMNS_AT_ONCE)
    parts = [slice(start, start + _COLUMNS_AT_ONCE) for start in starts]
    if prior is not None:
        weight.copy_(prior)
        for part in parts:
            inputs = statistics.inputs[:, columns[part]].double()
            responses = responses - inputs @ weight[:, part].double().T
    # (P, N) -> (N, P)
    dual = _solve(statistics.row_gram(columns), responses, statistics.n_rows, ridge).T
    for part in parts:
        weight[:, part] += dual @ statistics.inputs[:, columns[part]].double()
    return weight


def _solve(gram: Tensor, right: Tensor, n_rows: int, ridge: float) -> Tensor:
    """Solve a ridged system, whose trace is the energy of so many rows, in place of it."""
    # Both extremes of a tensor with NaN are NaN.
    if not torch.isfinite(torch.stack([*gram.aminmax(), *right.aminmax()])).all():
        raise ValueError("expected finite statistics, got some that are not")
    energy = float(gram.trace()) / n_rows
    # All inputs dead: any positive ridge gives zeros.
    factor = _factor(gram, ridge * energy if energy > 0 else ridge)
    solution: Tensor = torch.cholesky_solve(right, factor)
    return solution


def _factor(gram: Tensor, eps: float) -> Tensor:
    """Return the Cholesky factor with the smallest ridge that allows one; changes the diagonal."""
    diagonal = gram.diagonal().clone()
    while True:
        gram.diagonal().copy_(diagonal + eps)
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not failed:
            return factor
        eps *= 10
