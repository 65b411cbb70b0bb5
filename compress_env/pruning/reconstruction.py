"""Least-squares weights for the inputs that a layer keeps.

Shape legend: D inputs of one output unit, S the kept ones among them, N output channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress_env.pruning.statistics import LayerStatistics, RowStatistics

__all__ = ["reconstruct"]

_COLUMNS_AT_ONCE = 1024  # of weights computed from rows


def reconstruct(statistics: LayerStatistics, columns: Tensor, ridge: float = 1e-6) -> Tensor:
    """Return the weights that best reproduce the responses from the kept columns.

    Solves ``(A_SS + eps I) W_S^T = B_S`` by Cholesky in float64, with ``eps = ridge * mean(diag
    A_SS)``, so that the ridge does not depend on the scale of the inputs. From rows, where there
    are fewer of them than kept columns, the same weights are ``W_S^T = X_S^T (X_S X_S^T + eps
    I)^-1 Y``. Where the matrix is not positive definite in floating point, the ridge is raised
    tenfold until it is.

    Args:
        statistics: Statistics of the layer, on any device.
        columns: The kept columns S, shape (|S|,), int64, in the order that the result will have.
        ridge: Ridge relative to the mean diagonal, positive.

    Returns:
        Weights, shape (N, |S|), on the device of the statistics, float64; in the dtype of the
        rows if there are fewer of them than kept columns. Columns without any signal get zeros.

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
        return _solve_by_rows(statistics, columns, ridge)
    cross = statistics.cross_rows(columns)
    weight = _solve(statistics.gram_block(columns, columns), cross, len(columns), ridge)
    # (|S|, N) -> (N, |S|)
    return weight.T.contiguous()


def _solve_by_rows(statistics: RowStatistics, columns: Tensor, ridge: float) -> Tensor:
    """Return the weights by a system of P x P, a few columns at a time."""
    responses = statistics.responses.double()
    # (P, N) -> (N, P)
    dual = _solve(statistics.row_gram(columns), responses, len(columns), ridge).T
    weight = statistics.inputs.new_empty(len(dual), len(columns))
    for start in range(0, len(columns), _COLUMNS_AT_ONCE):
        part = slice(start, start + _COLUMNS_AT_ONCE)
        weight[:, part] = dual @ statistics.inputs[:, columns[part]].double()
    return weight


def _solve(gram: Tensor, right: Tensor, n_columns: int, ridge: float) -> Tensor:
    """Solve a ridged system, whose trace is the energy of so many columns, in place of it."""
    # Both extremes of a tensor with NaN are NaN.
    if not torch.isfinite(torch.stack([*gram.aminmax(), *right.aminmax()])).all():
        raise ValueError("expected finite statistics, got some that are not")
    mean = float(gram.trace()) / n_columns
    # All inputs dead: any positive ridge gives zeros.
    factor = _factor(gram, ridge * mean if mean > 0 else ridge)
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
