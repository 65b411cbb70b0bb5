"""Rules by name: what each looks at, and the rate or bits that it gives every decision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from compress_env.allocation.bits import FitScale, choose_least, relative_errors
from compress_env.allocation.gates import fisher_scores, gate_gradients, taylor_scores
from compress_env.allocation.per_cost import rank_per_cost
from compress_env.allocation.ranking import rank_channels
from compress_env.allocation.saliency import Norm, by_mean, channel_norms
from compress_env.pruning.budgets import Budgets
from compress_env.pruning.graph.surgery import Decision
from compress_env.pruning.plan import PruningPlan
from compress_env.quantization.fake_quant import MAX_BITS

__all__ = ["BIT_RULES", "N_IMAGES", "PRUNING_RULES", "BitTask", "PruningTask"]

N_IMAGES = 256
"""Training images whose gradients rules look at."""


class PruningTask(NamedTuple):
    """What rules of pruning look at."""

    model: nn.Module
    """The unpruned network."""
    plan: PruningPlan
    """Of its walk."""
    budgets: Budgets
    """The most that is allowed, by unit; at least one."""
    batches: Iterable[tuple[Tensor, Tensor]]
    """Minibatches of `N_IMAGES` training images or more and their labels; read at most once."""


class BitTask(NamedTuple):
    """What rules of quantization look at."""

    weights: Sequence[Tensor]
    """(N, ...) each, in the order of the walk."""
    fit: FitScale
    """Finds the scales of a weight at a bit-width."""
    min_bits: int
    """Fewest bits of any layer."""
    most_bytes: Callable[[Sequence[int]], int]
    """Most bytes of the file at the bits of the first layers; the others take `min_bits`."""
    budget_bytes: float
    """The most that is allowed."""


def _by_norm(norm: Norm, task: PruningTask) -> list[float]:
    scores = channel_norms(task.model, task.plan.decisions, norm)
    return rank_channels(scores, task.plan, task.budgets)


def _by_fisher(task: PruningTask) -> list[float]:
    return rank_per_cost(fisher_scores(_gradients(task)), task.plan, task.budgets)


def _by_taylor(task: PruningTask) -> list[float]:
    scores = taylor_scores(_gradients(task))
    by_group = [
        np.concatenate([by_mean(part) for part in np.split(each, _group_ends(decision))])
        for each, decision in zip(scores, task.plan.decisions, strict=True)
    ]
    return rank_channels(by_group, task.plan, task.budgets)


def _group_ends(decision: Decision) -> NDArray[np.int64]:
    """Return where one group of a decision ends and the next begins."""
    ends: NDArray[np.int64] = np.cumsum([group.n_channels for group in decision.groups])[:-1]
    return ends


def _gradients(task: PruningTask) -> list[NDArray[np.float64]]:
    return gate_gradients(task.model, task.plan.decisions, task.batches, N_IMAGES)


def _by_relative_error(task: BitTask) -> list[float]:
    bits = list(range(task.min_bits, MAX_BITS + 1))
    losses = relative_errors(task.weights, bits, task.fit)
    fewest = task.most_bytes([])
    # What a layer takes beyond its fewest bits is its own: the bytes of a file are a sum.
    before = [[task.min_bits] * t for t in range(len(task.weights))]
    costs = np.array([[task.most_bytes([*first, n]) - fewest for n in bits] for first in before])
    chosen = choose_least(losses, costs, task.budget_bytes - fewest)
    return [float(bits[k]) for k in chosen]


PruningRule: TypeAlias = Callable[[PruningTask], list[float]]
BitRule: TypeAlias = Callable[[BitTask], list[float]]

PRUNING_RULES: dict[str, PruningRule] = {
    "l1": partial(_by_norm, "l1"),
    "l2": partial(_by_norm, "l2"),
    "batch_norm": partial(_by_norm, "batch_norm"),
    "lamp": partial(_by_norm, "lamp"),
    "taylor": _by_taylor,
    "fisher": _by_fisher,
}
"""Rules that choose pruning rates, by name: one threshold over the norms, or the first-order Taylor
scores, of all channels; or the Fisher information of a channel's gate for what it costs."""
BIT_RULES: dict[str, BitRule] = {"relative_error": _by_relative_error}
"""Rules that choose bits, by name."""
