"""Choice of the input channels that a layer keeps.

Shape legend: C candidate channels, k columns of each (kernel elements, or places after a flatten),
D inputs of one output unit, N output channels, P sampled rows.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_env.pruning.channels.statistics import Columns, LayerStatistics

__all__ = [
    "LassoProblem",
    "columns_of",
    "lasso_problem",
    "magnitude_scores",
    "select_at_random",
    "select_by_lasso",
    "select_by_magnitude",
]

FloatArray: TypeAlias = NDArray[np.float64]

# A channel whose energy is below this fraction of the strongest one's carries no signal.
_DEAD_FRACTION = 1e-12
# A coefficient below this fraction of the largest one is rounding left by a channel that went out.
_ZERO_FRACTION = 1e-13
# A path of the lasso may be longer than the number of channels, as channels also go out again.
_MAX_STEPS_PER_CHANNEL = 8
# Elements of ``A * (W^T W)`` that are computed at a time: 4 MiB in float64.
_MAX_BLOCK = 2**19


class LassoProblem(NamedTuple):
    """The lasso over channels: ``min 1/2 beta^T gram beta - target^T beta + lambda ||beta||_1``."""

    gram: FloatArray
    """Shape (C, C)."""
    target: FloatArray
    """Shape (C,)."""


def magnitude_scores(weight: Tensor, channel_columns: Tensor) -> Tensor:
    """Return the L1 norm of the weights that read each input channel.

    Args:
        weight: Flattened weight of the layer, shape (N, D).
        channel_columns: Columns of each candidate channel, shape (C, k), int64.

    Returns:
        Scores, shape (C,), in the dtype of ``weight``.
    """
    # (D,) -> (C, k) -> (C,)
    return weight.detach().abs().sum(dim=0)[channel_columns.to(weight.device)].sum(dim=1)


def select_at_random(n_channels: int, n_keep: int, generator: torch.Generator) -> Tensor:
    """Keep channels at random, each choice of `n_keep` as likely.

    Args:
        n_channels: Number of channels C.
        n_keep: Number of channels to keep, 1..C.
        generator: A CPU generator.

    Returns:
        Kept channels, ascending, shape (n_keep,), int64, on the CPU.

    Raises:
        ValueError: If ``n_keep`` is not in 1..C.
    """
    if not 1 <= n_keep <= n_channels:
        raise ValueError(f"expected n_keep in 1..{n_channels}, got {n_keep}")
    return torch.randperm(n_channels, generator=generator)[:n_keep].sort().values


def select_by_magnitude(weight: Tensor, channel_columns: Tensor, n_keep: int) -> Tensor:
    """Keep the channels with the largest L1 norm; of equal ones, those with lower indices.

    Args:
        weight: Flattened weight of the layer, shape (N, D).
        channel_columns: Columns of each candidate channel, shape (C, k), int64.
        n_keep: Number of channels to keep, 1..C.

    Returns:
        Kept channels (indices into ``channel_columns``), ascending, shape (n_keep,), int64, on the
        CPU.

    Raises:
        ValueError: If ``n_keep`` is not in 1..C or the weight is not finite.
    """
    _check_n_keep(n_keep, channel_columns)
    _check_finite(weight=weight)
    scores = magnitude_scores(weight, channel_columns)
    order = torch.argsort(scores.cpu(), descending=True, stable=True)
    return order[:n_keep].sort().values


def select_by_lasso(
    statistics: LayerStatistics, weight: Tensor, channel_columns: Tensor, n_keep: int
) -> Tensor:
    """Keep the first ``n_keep`` channels that the lasso's regularisation path makes active.

    Minimises over beta in R^C, for a falling lambda,

        1/(2P) || Y' - sum_c beta_c X_c W_c^T ||^2 + lambda ||beta||_1 ,

    where Y' is Y less what the columns outside ``channel_columns`` contribute, as these stay. The
    whole path comes from the two sufficient statistics by least-angle regression, and the support
    at its first point with ``n_keep`` active channels is kept. Where the path has no such point
    (channels without signal, equal channels, ties), the largest smaller support is filled up with
    the channels of largest ``|r_c| / sqrt(G_cc)``, r the right-hand side and G the Gram matrix of
    the problem, then with the lowest indices.

    Source: channel selection by lasso as in Zhan, Lin & Cao (arXiv 1912.02254); the block sums and
    the completion of a support are (ours).

    Args:
        statistics: Statistics of the live layer's inputs and the unpruned layer's responses.
        weight: Flattened weight of the live layer, shape (N, D).
        channel_columns: Columns of each candidate channel, shape (C, k), int64, all different.
        n_keep: Number of channels to keep, 1..C.

    Returns:
        Kept channels (indices into ``channel_columns``), ascending, shape (n_keep,), int64, on the
        CPU.

    Raises:
        ValueError: If ``n_keep`` is not in 1..C, something is not finite, or shapes disagree.
    """
    _check_n_keep(n_keep, channel_columns)
    problem = lasso_problem(statistics, weight, channel_columns)
    if n_keep == len(channel_columns):
        return torch.arange(n_keep)
    return torch.from_numpy(_support(problem, n_keep))


def lasso_problem(
    statistics: LayerStatistics, weight: Tensor, channel_columns: Tensor
) -> LassoProblem:
    """Reduce the statistics to the Gram matrix and the right-hand side of the beta problem.

    Element (c, d) of the Gram matrix is the sum over the block (c, d) of ``A * (W^T W)``, k x k
    elements; element c of the right-hand side is that over the rows of c of ``B * W^T``. Blocks
    below the diagonal are those above it. ``W^T W`` is computed for a few rows of blocks at a time,
    in the weight's own precision, and summed in float64.

    Args:
        statistics: Statistics of the layer.
        weight: Flattened weight of the live layer, shape (N, D).
        channel_columns: Columns of each candidate channel, shape (C, k), int64, all different.

    Returns:
        The problem, on the CPU.

    Raises:
        ValueError: If something is not finite, or shapes disagree.
    """
    _check_finite(weight=weight)
    _check_shapes(statistics, weight, channel_columns)
    energy = statistics.input_energy
    weight = weight.detach().to(energy.device, torch.promote_types(weight.dtype, torch.float32))
    n_channels, n_columns = channel_columns.shape
    gram, target = energy.new_zeros(n_channels, n_channels), energy.new_empty(n_channels)
    others = _others(channel_columns, energy)
    step = max(1, _MAX_BLOCK // (n_columns * len(energy)))
    for start in range(0, n_channels, step):
        own = _columns(channel_columns[start : start + step], energy.device)
        later = _columns(channel_columns[start:], energy.device)
        upper = _products(statistics, weight, own, later)
        gram[start : start + step, start:] = _sum_blocks(upper, n_columns)
        moments = _moments(statistics, weight, own, others)
        target[start : start + step] = moments.view(-1, n_columns).sum(dim=1)
    gram = gram.triu() + gram.triu(1).T
    _check_finite(inputs=gram, responses=target)
    return LassoProblem(gram.cpu().numpy(), target.cpu().numpy())


def _products(
    statistics: LayerStatistics, weight: Tensor, rows: Columns, columns: Columns
) -> Tensor:
    """Return a block of ``A * (W^T W)``."""
    products = weight[:, rows].T @ weight[:, columns]
    return products * statistics.gram_block(rows, columns, weight.dtype)


def _sum_blocks(products: Tensor, n_columns: int) -> Tensor:
    """Sum over blocks of k x k elements in float64."""
    # (R * k, C * k) -> (R, k, C * k) -> (R, C * k)
    rows = products.reshape(-1, n_columns, products.shape[1]).sum(dim=1, dtype=torch.float64)
    # (R, C * k) -> (R, C, k) -> (R, C)
    return rows.view(len(rows), -1, n_columns).sum(dim=2)


def _moments(
    statistics: LayerStatistics, weight: Tensor, rows: Columns, others: Columns | None
) -> Tensor:
    """Return row sums of ``B * W^T``, less what the columns that stay for certain explain."""
    cross = statistics.cross_rows(rows, weight.dtype)
    moments = (cross * weight[:, rows].T).sum(dim=1, dtype=torch.float64)
    if others is None:
        return moments
    certain = _products(statistics, weight, rows, others)
    return moments - certain.sum(dim=1, dtype=torch.float64)


def _others(channel_columns: Tensor, energy: Tensor) -> Columns | None:
    """Return the columns of no candidate, or None if there is none."""
    certain = torch.ones(len(energy), dtype=torch.bool)
    certain[channel_columns.flatten().cpu()] = False
    others = certain.nonzero()
    return _columns(others, energy.device) if len(others) else None


def _columns(indices: Tensor, device: torch.device) -> Columns:
    """Return indices as a slice, which reads without a copy, where they follow one another."""
    flat = indices.flatten()
    first = int(flat[0])
    if torch.equal(flat, torch.arange(first, first + len(flat), device=flat.device)):
        return slice(first, first + len(flat))
    return flat.to(device)


def _support(problem: LassoProblem, n_keep: int) -> NDArray[np.int64]:
    """Return the ascending indices of ``n_keep`` channels: the lasso's first, then the fill."""
    energy = np.diag(problem.gram).clip(min=0.0)
    live = np.flatnonzero(energy > _DEAD_FRACTION * energy.max(initial=0.0))
    # The path's stopping rule is absolute, so the problem is brought to unit size as a whole.
    energy_scale = energy[live].mean() if len(live) else 1.0
    target_scale = np.abs(problem.target[live]).max(initial=0.0) or 1.0
    scaled = LassoProblem(
        problem.gram[np.ix_(live, live)] / energy_scale, problem.target[live] / target_scale
    )
    active = live[_active_on_path(scaled, n_keep)]
    return _fill(active, problem, live, n_keep)


def _active_on_path(problem: LassoProblem, n_keep: int) -> NDArray[np.intp]:
    """Return the path's first support of ``n_keep`` channels, or else its largest smaller one."""
    limit = _MAX_STEPS_PER_CHANNEL * len(problem.target)
    # Channels seldom go out again, and a quarter more steps would take twice the time.
    n_steps = min(n_keep, limit)
    active = _path_supports(problem, n_steps)
    # A path that was cut short has one knot more than steps; one that has ended has fewer.
    while n_steps < limit and active.shape[1] > n_steps and active.sum(axis=0).max() < n_keep:
        n_missing = n_keep - int(active.sum(axis=0).max())
        n_steps = min(n_steps + max(2 * n_missing, n_steps // 4), limit)
        active = _path_supports(problem, n_steps)
    sizes = active.sum(axis=0)
    best = int(np.argmax(np.where(sizes <= n_keep, sizes, -1)))
    return np.flatnonzero(active[:, best])


def _path_supports(problem: LassoProblem, n_steps: int) -> NDArray[np.bool_]:
    """Follow the path for some steps; return which channels are active at each knot, (C, knots)."""
    if not n_steps:
        return np.zeros((len(problem.target), 1), dtype=np.bool_)
    from sklearn import config_context  # only where a lasso is solved
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path_gram

    # The problem has been checked before.
    trusted = config_context(assume_finite=True, skip_parameter_validation=True)
    with warnings.catch_warnings(), np.errstate(all="ignore"), trusted:
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        coefficients: Any = lars_path_gram(
            problem.target, problem.gram, n_samples=1, method="lasso", max_iter=n_steps
        )[2]
    size = np.abs(coefficients)
    supports: NDArray[np.bool_] = size > _ZERO_FRACTION * size.max(axis=0, initial=0.0)
    return supports


def _fill(
    active: NDArray[np.intp], problem: LassoProblem, live: NDArray[np.intp], n_keep: int
) -> NDArray[np.int64]:
    """Add channels to a support until it has ``n_keep``, strongest correlation first."""
    score = np.full(len(problem.target), -1.0)
    score[live] = np.abs(problem.target[live]) / np.sqrt(np.diag(problem.gram)[live])
    score[active] = np.inf
    order = np.argsort(-score, kind="stable")
    return np.sort(order[:n_keep]).astype(np.int64)


def _check_n_keep(n_keep: int, channel_columns: Tensor) -> None:
    if not 1 <= n_keep <= len(channel_columns):
        raise ValueError(f"expected n_keep in 1..{len(channel_columns)}, got {n_keep}")


def _check_finite(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        # Both extremes of a tensor with NaN are NaN.
        if tensor.numel() and not torch.isfinite(torch.stack(tensor.detach().aminmax())).all():
            raise ValueError(f"expected finite values, got some that are not in {name}")


def _check_shapes(statistics: LayerStatistics, weight: Tensor, channel_columns: Tensor) -> None:
    if statistics.shape != tuple(weight.shape):
        raise ValueError(
            f"expected statistics for a weight of shape {tuple(weight.shape)}, got them for "
            f"{tuple(statistics.shape)}"
        )
    if len(torch.unique(channel_columns)) != channel_columns.numel():
        raise ValueError("expected different columns for all channels, got one twice")


def columns_of(alive: NDArray[np.int64], positions: NDArray[np.int64], n_columns: int) -> Tensor:
    """Columns of a live layer's flattened weight that each channel of a group owns.

    Args:
        alive: (n,) unpruned input positions that the layer still has.
        positions: (n_channels, k) unpruned input positions of each channel.
        n_columns: n times the elements of a kernel.

    Returns:
        (n_channels, k * H * W) int64 on the CPU.
    """
    live = np.searchsorted(alive, positions)
    area = n_columns // len(alive)
    # (n_channels, k) -> (n_channels, k, H*W) -> (n_channels, k*H*W)
    columns = live[:, :, None] * area + np.arange(area)
    return torch.from_numpy(columns.reshape(len(live), -1))
