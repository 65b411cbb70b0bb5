"""Ranking in rounds: prune a share, fine-tune, and score what is left anew."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor, nn

from compress_env.allocation.ranking import Scores, rank_channels
from compress_env.pruning.cost import Unit
from compress_env.pruning.graph.surgery import Decision, LiveChannels, find_walk
from compress_env.pruning.plan import PruningPlan

__all__ = ["Rank", "Score", "rank_in_rounds"]

Score = Callable[[nn.Module, Sequence[Decision]], Scores]
"""Scores the channels of a network's decisions, such as `channel_norms`."""
Rank = Callable[[Scores, PruningPlan, Mapping[Unit, float]], list[float]]
"""Turns scores into rates: `rank_channels` or `rank_per_cost`."""


def rank_in_rounds(
    model: nn.Module,
    score: Score,
    finetune: Callable[[nn.Module], None],
    plan: PruningPlan,
    budgets: Mapping[Unit, float],
    *,
    image: Tensor,
    n_rounds: int,
    rank: Rank = rank_channels,
) -> list[float]:
    """Return the rates that come of scoring, removing a share and fine-tuning, again and again.

    In round r of R as much goes as meets budgets r / R of the way from the unpruned network to
    those asked for. Channels are removed physically, those of the lowest score of each group, and
    what remains is fine-tuned and scored anew; channels that are gone rank below all others. After
    the last round nothing is fine-tuned. One round is `rank` of the scores as they are.

    Args:
        model: The unpruned network; a copy is pruned.
        score: Scores channels; called with a network and its own walk.
        finetune: Trains a pruned network, in place.
        plan: Of the unpruned network, where only channels go.
        budgets: The most that is allowed, by unit.
        image: One batch of images, (b, C, H, W) float32.
        n_rounds: R, at least 1.
        rank: What turns scores into rates.

    Returns:
        (T,) rates, as `rank`.

    Raises:
        ValueError: If `n_rounds` is below 1, elements go, a pruned network has another walk, or as
            `rank`.
    """
    if n_rounds < 1:
        raise ValueError(f"n_rounds must be at least 1, got {n_rounds}")
    if plan.removes_elements:
        raise ValueError("rounds are for plans that remove channels only, got one of elements")
    network, decisions = copy.deepcopy(model), plan.decisions
    for number in range(1, n_rounds + 1):
        scores = score(network, decisions)
        rates = rank(_with_gone(scores, plan), plan, _limits(plan, budgets, number / n_rounds))
        if number < n_rounds:
            _remove(network, decisions, scores, plan.at_rates(rates))
            finetune(network)
            decisions = _walk_of(network, image, plan)
    return rates


def _limits(plan: PruningPlan, budgets: Mapping[Unit, float], share: float) -> dict[Unit, float]:
    return {unit: plan.full(unit) - share * (plan.full(unit) - m) for unit, m in budgets.items()}


def _with_gone(scores: Scores, plan: PruningPlan) -> Scores:
    """Return scores of all channels of the unpruned network; the lowest for those that are gone."""
    lowest = min(float(each.min()) for each in scores) - 1.0
    return [
        np.concatenate([np.full(decision.n_channels - len(each), lowest), each])
        for each, decision in zip(scores, plan.decisions, strict=True)
    ]


def _remove(
    network: nn.Module,
    decisions: Sequence[Decision],
    scores: Scores,
    kept: Sequence[tuple[int, ...]],
) -> None:
    """Remove channels of the lowest scores until at most so many of each group are kept."""
    cuts = []
    for decision, each, counts in zip(decisions, scores, kept, strict=True):
        ends = np.cumsum([group.n_channels for group in decision.groups])[:-1]
        for group, own, n in zip(decision.groups, np.split(each, ends), counts, strict=True):
            cuts.append((group, np.argsort(own, kind="stable")[: max(0, len(own) - n)]))
    LiveChannels(network).remove_all(cuts)


def _walk_of(network: nn.Module, image: Tensor, plan: PruningPlan) -> Sequence[Decision]:
    """Return the walk of a pruned network, which must be that of the unpruned one."""
    decisions = find_walk(network, image).decisions
    if [d.layer.name for d in decisions] != [d.layer.name for d in plan.decisions]:
        raise ValueError("the pruned network is decided at other layers than the unpruned one")
    return decisions
