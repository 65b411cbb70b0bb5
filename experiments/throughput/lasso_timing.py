"""Channel selection by the lasso's path against bisection over lambda, and the memory it takes.

Shape legend: C input channels, k columns of each, N output channels, P sampled rows, S the kept
columns.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import isqrt
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso
from torch import Tensor, nn

from compress_env.pruning.channels.patches import PatchSampler, sample_patches
from compress_env.pruning.channels.reconstruction import reconstruct
from compress_env.pruning.channels.selection import LassoProblem, lasso_problem, select_by_lasso
from compress_env.pruning.channels.statistics import (
    LayerStatistics,
    collect_responses,
    collect_statistics,
)

__all__ = [
    "LayerSize",
    "conv_size",
    "measure_peak_bytes",
    "select_by_bisection",
    "time_lasso",
]

Rows = list[dict[str, Any]]
FloatArray: TypeAlias = NDArray[np.float64]

_MAP_SIDE = 4  # of a convolution's inputs, as in the last layers of VGG-16 for small images
_KERNEL = 3
_KERNEL_AREA = _KERNEL**2
_POSITIONS = 10  # per image, of a convolution
_BATCH_SIZE = 100
_MAX_HALVINGS = 60
_MAX_REGRESSION = 2**25  # elements of explicit features that are worth the memory: 256 MiB


@dataclass(frozen=True)
class LayerSize:
    """Size of a layer and of the sample of its inputs."""

    n_channels: int
    """C."""
    n_outputs: int
    """N."""
    n_rows: int = 5000
    """P, a multiple of the positions per image: 10 for a convolution, 1 for a linear layer."""
    side: int | None = None
    """None: a 3x3 convolution. Else a linear layer that reads maps of this side, flattened."""
    noise: float = 0.3
    """Standard deviation of what is each channel's own, beside what channels share, 1."""


class _Case(NamedTuple):
    """A layer with the inputs that it is fitted on."""

    model: nn.Sequential
    name: str
    """The layer's name in the model."""
    batches: Sequence[Tensor]
    """The live network's inputs of the layer."""
    positions: Tensor
    responses: Tensor
    """(P, N): what the unpruned network answers."""
    columns: Tensor
    """(C, k): the columns of each channel."""

    @property
    def weight(self) -> Tensor:
        """The layer's weight, (N, C * k)."""
        weight = self.model.get_submodule(self.name).weight
        assert isinstance(weight, Tensor)
        return weight.detach().flatten(1)

    def statistics(self) -> LayerStatistics:
        """Collect the layer's statistics."""
        return collect_statistics(
            self.model, self.name, self.batches, self.positions, self.responses
        )


def conv_size(n_channels: int, noise: float = 0.3) -> LayerSize:
    """Return the size of a 3x3 convolution with as many outputs as inputs."""
    return LayerSize(n_channels, n_channels, noise=noise)


def _make_case(size: LayerSize, seed: int) -> _Case:
    """Draw a layer and its inputs, both correlated, and responses before a disturbance of them.

    Maps and weights of a channel are mixtures of the same few hidden ones.
    """
    side, n_positions = (size.side, 1) if size.side else (_MAP_SIDE, _POSITIONS)
    n_images = size.n_rows // n_positions
    generator = torch.Generator().manual_seed(seed)
    n_hidden = max(1, isqrt(size.n_channels) // 2)
    mixing = torch.randn(size.n_channels, n_hidden, generator=generator) / n_hidden**0.5
    # (n, C, side * side) -> (n, C, side, side)
    clean = _mixtures(mixing, (n_images, side**2), size.noise, generator).relu_()
    clean = clean.view(n_images, -1, side, side)
    live = (clean + size.noise / 2 * torch.randn(clean.shape, generator=generator)).relu()
    n_columns = side**2 if size.side else _KERNEL_AREA
    # (N, C, k)
    weight = _mixtures(mixing, (size.n_outputs, n_columns), size.noise, generator)
    model = _make_model(size, weight / weight[0].numel() ** 0.5)
    name = str(len(model) - 1)
    positions = PatchSampler(n_images, n_positions, seed).positions(1 if size.side else side**2)
    batches = torch.split(clean, _BATCH_SIZE)
    responses = collect_responses(model, [name], batches, {name: positions})[name]
    columns = torch.arange(size.n_channels * n_columns).view(-1, n_columns)
    return _Case(model, name, torch.split(live, _BATCH_SIZE), positions, responses, columns)


def _mixtures(
    mixing: Tensor, shape: tuple[int, int], noise: float, generator: torch.Generator
) -> Tensor:
    """Return mixtures (n, C, m) of hidden values, with noise of their own, for a shape (n, m)."""
    n_channels, n_hidden = mixing.shape
    hidden = torch.randn(shape[0], n_hidden, shape[1], generator=generator)
    own = torch.randn(shape[0], n_channels, shape[1], generator=generator)
    return (mixing @ hidden).add_(own, alpha=noise)


def _make_model(size: LayerSize, weight: Tensor) -> nn.Sequential:
    """Return the layer, after a flatten if it is a linear one, with a weight (N, C, k)."""
    layer = (
        nn.Linear(weight[0].numel(), size.n_outputs)
        if size.side
        else nn.Conv2d(size.n_channels, size.n_outputs, _KERNEL, padding=1)
    )
    layer.weight.data.copy_(weight.view(layer.weight.shape))
    return nn.Sequential(nn.Flatten(), layer) if size.side else nn.Sequential(layer)


def select_by_bisection(
    problem: LassoProblem, n_keep: int, tolerance: float
) -> NDArray[np.int64] | None:
    """Halve an interval of lambda until coordinate descent leaves so many channels.

    Scikit-learn's `Lasso` takes the Gram matrix as it is, and starts from the solution for the
    lambda before.

    Args:
        problem: The lasso over channels, with a positive definite Gram matrix.
        n_keep: Channels to keep.
        tolerance: Of coordinate descent, relative to the energy of the responses.

    Returns:
        Kept channels, ascending, or None if no lambda that was tried leaves so many.
    """
    # C rows that have the problem's Gram matrix, factor^T factor, and its products with a target.
    factor = cholesky(problem.gram)
    target = solve_triangular(factor, problem.target, trans="T")
    return _bisect(factor, target, n_keep, tolerance, problem.gram)


def _select_from_rows(case: _Case, n_keep: int, tolerance: float) -> NDArray[np.int64] | None:
    """Bisect without statistics: over a regression of all responses, (P * N, C), in memory."""
    layer = case.model[-1]
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    before, places = case.model[:-1], torch.split(case.positions, _BATCH_SIZE)
    batches = zip(case.batches, places, strict=True)
    patches = [sample_patches(before(maps), layer, part) for maps, part in batches]
    # (P, C * k) -> (C, P, k)
    x = torch.cat(patches).view(-1, *case.columns.shape).transpose(0, 1).double()
    # (N, C * k) -> (C, k, N)
    weight = case.weight.view(-1, *case.columns.shape).permute(1, 2, 0).double()
    # (C, P, N) -> (P * N, C), with columns that follow one another in memory
    features = torch.bmm(x, weight).flatten(1).T.numpy()
    return _bisect(features, case.responses.double().flatten().numpy(), n_keep, tolerance, False)


def _bisect(
    features: FloatArray,
    target: FloatArray,
    n_keep: int,
    tolerance: float,
    gram: FloatArray | Literal[False],
) -> NDArray[np.int64] | None:
    lasso = Lasso(
        fit_intercept=False,
        precompute=gram,
        copy_X=False,
        warm_start=True,
        tol=tolerance,
        max_iter=100_000,
    )
    low, high = 0.0, float(np.abs(features.T @ target).max()) / len(target)
    for _ in range(_MAX_HALVINGS):
        lasso.alpha = (low + high) / 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            kept = np.flatnonzero(lasso.fit(features, target).coef_)
        if len(kept) == n_keep:
            return kept
        low, high = (lasso.alpha, high) if len(kept) > n_keep else (low, lasso.alpha)
    return None


def time_lasso(size: LayerSize, tolerances: Sequence[float], n_repetitions: int, seed: int) -> Rows:
    """Time the selection of half of the channels by all methods, in turn, from statistics.

    The path and the bisection over the Gram matrix begin with the same reduction of the statistics
    to the problem over channels, which is timed on its own, too. The bisection over rows begins
    with the sampled inputs, as without statistics, where its regression fits into 256 MiB.

    Args:
        size: The layer, with drawn weights and inputs.
        tolerances: Tolerances of coordinate descent.
        n_repetitions: Rounds to time, after one that warms up.
        seed: Seed of what is drawn.

    Returns:
        A row for each tolerance and round, in milliseconds; NaN where the rows are too many.
    """
    case = _make_case(size, seed)
    statistics, weight, n_keep = case.statistics(), case.weight, size.n_channels // 2
    fits = size.n_rows * size.n_outputs * size.n_channels <= _MAX_REGRESSION
    reduce = partial(lasso_problem, statistics, weight, case.columns)
    rows: Rows = []
    for repetition in range(-1, n_repetitions):
        _, reduction_ms = _timed(reduce)
        for tolerance in tolerances:
            row: dict[str, Any] = {"channels": size.n_channels, "noise": size.noise}
            row |= {"kept": n_keep, "tolerance": tolerance, "round": repetition}
            expected, path_ms = _timed(
                partial(select_by_lasso, statistics, weight, case.columns, n_keep)
            )
            kept, gram_ms = _timed(partial(_reduce_and_bisect, reduce, n_keep, tolerance))
            rows_ms = float("nan")
            if fits:
                _, rows_ms = _timed(partial(_select_from_rows, case, n_keep, tolerance))
            row |= {"reduction_ms": reduction_ms, "path_ms": path_ms, "gram_ms": gram_ms}
            rows.append(row | {"rows_ms": rows_ms, "same": np.array_equal(kept, expected)})
    return [row for row in rows if row["round"] >= 0]


def _reduce_and_bisect(
    reduce: Callable[[], LassoProblem], n_keep: int, tolerance: float
) -> NDArray[np.int64] | None:
    return select_by_bisection(reduce(), n_keep, tolerance)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = perf_counter()
    result = call()
    return result, 1e3 * (perf_counter() - start)


def measure_peak_bytes(size: LayerSize, seed: int = 0) -> float:
    """Return the memory that a fresh process takes at most, beyond the layer and its inputs.

    The statistics are collected, half of the channels selected, and the weights of all columns
    fitted, the most that can be kept. What counts is the peak of the process's resident memory
    less what was resident before.

    Returns:
        Bytes; NaN where the system does not tell (it is read from Linux's `/proc`).
    """
    if not Path("/proc/self/status").exists():
        return float("nan")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_run_and_measure, size, seed).result()


def _run_and_measure(size: LayerSize, seed: int) -> int:
    torch.set_num_threads(1)
    _prune(_make_case(LayerSize(16, 16, 200), seed))  # loads the libraries and their buffers
    case = _make_case(size, seed)
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets earlier peaks
    before = _resident_bytes("VmRSS")
    _prune(case)
    return _resident_bytes("VmHWM") - before


def _prune(case: _Case) -> None:
    statistics = case.statistics()
    select_by_lasso(statistics, case.weight, case.columns, len(case.columns) // 2)
    reconstruct(statistics, case.columns.flatten())


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
