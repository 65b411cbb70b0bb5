"""Least-squares weights for the inputs that a layer keeps.

Shape legend: D inputs of one output unit, S the kept ones among them, N output channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress_env.pruning.statistics import LayerStatistics

__all__ = ["reconstruct"]


def reconstruct(statistics: LayerStatistics, columns: Tensor, ridge: float = 1e-6) -> Tensor:
    """Return the weights that best reproduce the responses from the kept columns.

    Solves ``(A_SS + eps I) W_S^T = B_S`` by Cholesky in float64, with ``eps = ridge * mean(diag
    A_SS)``, so that the ridge does not depend on the scale of the inputs. Where the matrix is not
    positive definite in floating point, the ridge is raised tenfold until it is.

    Args:
        statistics: Statistics of the layer, on any device.
        columns: The kept columns S, shape (|S|,), int64, in the order that the result will have.
        ridge: Ridge relative to the mean diagonal, positive.

    Returns:
        Weights, shape (N, |S|), float64, on the device of the statistics. Columns without any
        signal get zeros.

    Raises:
        ValueError: If ``ridge`` is not positive, there is no column, or the statistics are not
            finite.
    """
    if not ridge > 0:
        raise ValueError(f"expected ridge > 0, got {ridge}")
    if not len(columns):
        raise ValueError("expected at least one column, got none")
    columns = columns.to(statistics.gram.device)
    gram = statistics.gram.index_select(0, columns).index_select(1, columns)
    cross = statistics.cross.index_select(0, columns)
    # Both extremes of a tensor with NaN are NaN.
    if not torch.isfinite(torch.stack([*gram.aminmax(), *cross.aminmax()])).all():
        raise ValueError("expected finite statistics, got some that are not")
    weight: Tensor = torch.cholesky_solve(cross, _factor(gram, ridge))
    # (|S|, N) -> (N, |S|)
    return weight.T.contiguous()


def _factor(gram: Tensor, ridge: float) -> Tensor:
    """Return the Cholesky factor of the Gram matrix with the smallest ridge that allows one."""
    mean = float(gram.diagonal().mean())
    # All inputs dead: any positive ridge gives zeros.
    eps = ridge * mean if mean > 0 else ridge
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(_with_ridge(gram, eps))
    while failed:
        eps *= 10
        factor, failed = torch.linalg.cholesky_ex(_with_ridge(gram, eps))
    return factor


def _with_ridge(gram: Tensor, eps: float) -> Tensor:
    ridged = gram.clone()
    ridged.diagonal().add_(eps)
    return ridged
