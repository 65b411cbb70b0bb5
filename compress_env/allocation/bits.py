"""Bits of the least sum of losses for the bytes, and losses that weights alone tell.

Shapes: T layers, K bit-widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_env.quantization.fake_quant import dequantize, quantize_to_integers

__all__ = ["FitScale", "choose_least", "relative_error", "relative_errors", "weight_changes"]

FitScale = Callable[[Tensor, int], Tensor]
"""Finds the scales (N,) of a weight (N, ...) at a number of bits."""


def relative_errors(
    weights: Sequence[Tensor], bits: Sequence[int], fit: FitScale
) -> NDArray[np.float64]:
    """Return |dW|^2 / |W|^2 of each weight at each bit-width, (T, K).

    Args:
        weights: Weights, (N, ...) each, finite.
        bits: Bit-widths, 1..8.
        fit: Finds the scales of a weight at a bit-width, (N,).
    """
    return np.array([[relative_error(w, n, fit) for n in bits] for w in weights])


def relative_error(weight: Tensor, bits: int, fit: FitScale) -> float:
    """Return the squared error of a quantized weight by its squared norm; 0 where all is 0."""
    (change,) = weight_changes(weight, [bits], fit)
    energy = float(weight.detach().double().square().sum())
    return float(change.double().square().sum()) / energy if energy > 0 else 0.0


@torch.no_grad()
def weight_changes(weight: Tensor, bits: Sequence[int], fit: FitScale) -> list[Tensor]:
    """Return what quantization adds to a weight at each bit-width.

    Args:
        weight: (N, ...), finite.
        bits: Bit-widths, 1..8.
        fit: Finds the scales of a weight at a bit-width, (N,).
    """
    weight = weight.detach()
    scales = [fit(weight, n) for n in bits]
    return [
        dequantize(quantize_to_integers(weight, scale, n), scale) - weight
        for n, scale in zip(bits, scales, strict=True)
    ]


def choose_least(
    losses: NDArray[np.float64], costs: NDArray[np.int64], budget: float
) -> NDArray[np.int64]:
    """Choose one of K options for each of T layers: the least total loss that a budget allows.

    The multiple-choice knapsack, solved exactly as a mixed-integer linear program; of equal losses
    any is chosen.

    Args:
        losses: (T, K) of each option, finite.
        costs: (T, K), whole numbers.
        budget: The most that the chosen options may cost together; may be infinite.

    Returns:
        (T,) numbers of the options, int64.

    Raises:
        ValueError: If the cheapest options cost more.
    """
    least = int(costs.min(axis=1).sum())
    if budget < least:
        raise ValueError(f"the budget must be at least {least}, got {budget:g}")
    limit = math.floor(min(budget, int(costs.max(axis=1).sum())))
    allowed = limit
    while True:
        chosen = _solve(losses, costs, allowed)
        cost = int(np.take_along_axis(costs, chosen[:, None], axis=1).sum())
        if cost <= limit:
            return chosen
        allowed -= cost - limit  # the solver allows a millionth too much


def _solve(
    losses: NDArray[np.float64], costs: NDArray[np.int64], allowed: int
) -> NDArray[np.int64]:
    from scipy.optimize import Bounds, LinearConstraint, milp  # only where it is solved

    n_layers, n_options = losses.shape
    chosen_once = np.kron(np.eye(n_layers), np.ones(n_options))
    scale = max(allowed, 1)
    # Gaps below a millionth count as none, so losses are made large.
    found = milp(
        losses.ravel() * (1e5 / max(float(losses.max()), 1e-30)),
        integrality=np.ones(losses.size, np.int64),
        bounds=Bounds(0.0, 1.0),
        constraints=[
            LinearConstraint(chosen_once, 1.0, 1.0),
            LinearConstraint(costs.reshape(1, -1) / scale, -np.inf, allowed / scale),
        ],
        options={"mip_rel_gap": 0.0},
    )
    assert found.x is not None, found.message
    options: NDArray[np.int64] = found.x.reshape(n_layers, n_options).argmax(axis=1)
    return options
