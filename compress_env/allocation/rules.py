"""Rules by name: what each looks at, and the rate or bits that it gives every decision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn

from compress_env.allocation.allocation import allocate
from compress_env.allocation.bits import FitScale, choose_least, relative_errors, weight_changes
from compress_env.allocation.descent import least_loss
from compress_env.allocation.ladder import ladder_of
from compress_env.allocation.per_cost import rank_per_cost
from compress_env.allocation.ranking import rank_channels
from compress_env.allocation.scores.afie import afie
from compress_env.allocation.scores.curvature import fisher_losses, hessian_traces
from compress_env.allocation.scores.curves import Probes, kl_curves, losses_at, rungs_to_measure
from compress_env.allocation.scores.gates import fisher_scores, gate_gradients, taylor_scores
from compress_env.allocation.scores.saliency import Norm, by_mean, channel_norms
from compress_env.allocation.scores.sensitivity import sensitivity
from compress_env.pruning.budgets import Budgets
from compress_env.pruning.graph.surgery import Decision
from compress_env.pruning.plan import PruningPlan
from compress_env.quantization.fake_quant import MAX_BITS

__all__ = [
    "BIT_RULES",
    "N_IMAGES",
    "PRUNING_RULES",
    "Allocation",
    "BitTask",
    "PruningTask",
    "Source",
]

N_IMAGES = 256
"""Training images whose gradients rules look at."""
N_TRIALS = 5
"""Trials of damage for each layer."""


class Allocation(NamedTuple):
    """What a rule gives, and what it has looked at for that."""

    values: list[float]
    """Pruning rates or bits, one for each decision."""
    n_evaluations: int = 0
    """Networks that were scored, as the environment scores them."""
    n_probes: int = 0
    """Networks that were run on training images alone, to see what one decision does by itself."""


class Source(NamedTuple):
    """The network, and what can be found out about it."""

    model: nn.Module
    """The network before compression."""
    batches: Iterable[tuple[Tensor, Tensor]]
    """Minibatches of `N_IMAGES` training images or more and their labels; read at most once."""
    probes: Probes
    """Networks with one decision carried out, and their answers."""
    score: Callable[[nn.Module], float]
    """What the environment says of a network."""
    seed: int = 0
    """Of whatever is drawn at random, 0 or more."""


class PruningTask(NamedTuple):
    """What rules of pruning look at."""

    source: Source
    """The unpruned network."""
    plan: PruningPlan
    """Of its walk."""
    budgets: Budgets
    """The most that is allowed, by unit; at least one."""


class BitTask(NamedTuple):
    """What rules of quantization look at."""

    source: Source
    """The uncompressed network."""
    layers: Sequence[str]
    """Names of its layers, in the order of the walk."""
    weights: Sequence[Tensor]
    """(N, ...) each, of these layers."""
    fit: FitScale
    """Finds the scales of a weight at a bit-width."""
    min_bits: int
    """Fewest bits of any layer."""
    most_bytes: Callable[[Sequence[int]], int]
    """Most bytes of the file at the bits of the first layers; the others take `min_bits`."""
    budget_bytes: float
    """The most that is allowed."""

    @property
    def options(self) -> list[int]:
        """The bits that a layer can have."""
        return list(range(self.min_bits, MAX_BITS + 1))


def _by_norm(norm: Norm, task: PruningTask) -> Allocation:
    scores = channel_norms(task.source.model, task.plan.decisions, norm)
    return Allocation(rank_channels(scores, task.plan, task.budgets))


def _by_fisher(task: PruningTask) -> Allocation:
    return Allocation(rank_per_cost(fisher_scores(_gradients(task)), task.plan, task.budgets))


def _by_taylor(task: PruningTask) -> Allocation:
    scores = taylor_scores(_gradients(task))
    by_group = [
        np.concatenate([by_mean(part) for part in np.split(each, _group_ends(decision))])
        for each, decision in zip(scores, task.plan.decisions, strict=True)
    ]
    return Allocation(rank_channels(by_group, task.plan, task.budgets))


def _group_ends(decision: Decision) -> NDArray[np.int64]:
    """Return where one group of a decision ends and the next begins."""
    ends: NDArray[np.int64] = np.cumsum([group.n_channels for group in decision.groups])[:-1]
    return ends


def _gradients(task: PruningTask) -> list[NDArray[np.float64]]:
    source = task.source
    return gate_gradients(source.model, task.plan.decisions, source.batches, N_IMAGES)


def _by_kl_curve(task: PruningTask) -> Allocation:
    ladders = [ladder_of(task.plan, t) for t in range(len(task.plan.decisions))]
    rungs = [rungs_to_measure(ladder) for ladder in ladders]
    rates = [ladder.rates[each].tolist() for ladder, each in zip(ladders, rungs, strict=True)]
    curves = kl_curves(task.source.probes, rates)
    losses = [losses_at(*each) for each in zip(ladders, rungs, curves, strict=True)]
    values = least_loss(losses, task.plan, task.budgets)
    return Allocation(values, n_probes=_n_probes(rates))


def _by_afie(task: PruningTask) -> Allocation:
    return Allocation(_by_layer(afie(task.source.model)["afie"], task))


def _by_sbpf(task: PruningTask) -> Allocation:
    source = task.source
    layers = list(dict.fromkeys(name for each in task.plan.producers for name in each))
    settings = {"n_trials": N_TRIALS, "seed": source.seed}
    found = sensitivity(source.model, source.score, layers=layers, **settings)
    rates = _by_layer(found["sensitivity"], task)
    return Allocation(rates, n_evaluations=1 + len(layers) * N_TRIALS)


def _by_layer(scores: pd.Series, task: PruningTask) -> list[float]:
    """Return rates that fall with a score of each layer."""
    targets = {unit: 1.0 - most / task.plan.full(unit) for unit, most in task.budgets.items()}
    rates: list[float] = allocate(scores, targets, plan=task.plan)["pruning_rate"].tolist()
    return rates


def _by_relative_error(task: BitTask) -> Allocation:
    return Allocation(_least_bits(task, relative_errors(task.weights, task.options, task.fit)))


def _by_hawq_v2(task: BitTask) -> Allocation:
    source = task.source
    traces = hessian_traces(
        source.model, task.layers, source.batches, n_images=N_IMAGES, seed=source.seed
    )
    errors = [
        [float(change.double().square().sum()) for change in changes] for changes in _changes(task)
    ]
    return Allocation(_least_bits(task, traces[:, None] * np.array(errors)))


def _by_fisher_bits(task: BitTask) -> Allocation:
    source = task.source
    losses = fisher_losses(
        source.model, task.layers, _changes(task), source.batches, n_images=N_IMAGES
    )
    return Allocation(_least_bits(task, losses))


def _by_kl_bits(task: BitTask) -> Allocation:
    values = [[float(n) for n in task.options]] * len(task.layers)
    losses = np.array(kl_curves(task.source.probes, values))
    return Allocation(_least_bits(task, losses), n_probes=_n_probes(values))


def _changes(task: BitTask) -> list[list[Tensor]]:
    return [weight_changes(weight, task.options, task.fit) for weight in task.weights]


def _n_probes(values: Sequence[Sequence[float]]) -> int:
    """Return how many networks `kl_curves` runs: one for each value, and one before."""
    return sum(1 + len(each) for each in values)


def _least_bits(task: BitTask, losses: NDArray[np.float64]) -> list[float]:
    """Return the bits of the least total loss (T, K) that the bytes allow."""
    bits, fewest = task.options, task.most_bytes([])
    # What a layer takes beyond its fewest bits is its own: the bytes of a file are a sum.
    before = [[task.min_bits] * t for t in range(len(task.weights))]
    costs = np.array([[task.most_bytes([*first, n]) - fewest for n in bits] for first in before])
    chosen = choose_least(losses, costs, task.budget_bytes - fewest)
    return [float(bits[k]) for k in chosen]


PruningRule: TypeAlias = Callable[[PruningTask], Allocation]
BitRule: TypeAlias = Callable[[BitTask], Allocation]

PRUNING_RULES: dict[str, PruningRule] = {
    "l1": partial(_by_norm, "l1"),
    "l2": partial(_by_norm, "l2"),
    "batch_norm": partial(_by_norm, "batch_norm"),
    "lamp": partial(_by_norm, "lamp"),
    "taylor": _by_taylor,
    "fisher": _by_fisher,
    "kl_curve": _by_kl_curve,
    "afie": _by_afie,
    "sbpf": _by_sbpf,
}
"""Rules that choose pruning rates, by name: one threshold over the norms, or the first-order Taylor
scores, of all channels; the Fisher information of a channel's gate for what it costs; the least sum
of what single decisions do to the answers; or a score of each layer."""
BIT_RULES: dict[str, BitRule] = {
    "relative_error": _by_relative_error,
    "hawq_v2": _by_hawq_v2,
    "fisher_bits": _by_fisher_bits,
    "kl_bits": _by_kl_bits,
}
"""Rules that choose bits, by name: the least sum, under the bound of the bytes, of relative errors,
of squared errors by the curvature of the loss, of squared changes of single images' losses, or of
what single layers do to the answers."""
