"""Pruning rates by what a channel is worth for what it costs, at the present widths."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compress_env.allocation.ladder import Ladder, ladder_of
from compress_env.allocation.market import UNREACHABLE, Market
from compress_env.allocation.ranking import Scores, checked_scores
from compress_env.pruning.cost import Unit
from compress_env.pruning.plan import PruningPlan

__all__ = ["rank_per_cost"]


def rank_per_cost(scores: Scores, plan: PruningPlan, budgets: Mapping[Unit, float]) -> list[float]:
    """Return the rates at which channels go in the order of score by saved cost, until it is met.

    The next step of each decision takes away its channels of the lowest scores. What that saves is
    counted on the network as it is by then: a channel saves the less, the fewer channels its
    neighbours have left. The cost is the sum over the budgets of what each part of it is used
    **(ours)**. What is left of the budgets at the end is used as in `rank_channels`.

    Args:
        scores: As in `rank_channels`: of one scale, such as estimates of the loss.
        plan: As in `rank_channels`.
        budgets: As in `rank_channels`.

    Returns:
        As `rank_channels`.

    Raises:
        ValueError: As `rank_channels`.
    """
    ordered = checked_scores(scores, plan)
    ladders = [ladder_of(plan, t) for t in range(len(plan.decisions))]
    losses = [_losses(each, ladder) for each, ladder in zip(ordered, ladders, strict=True)]

    market = Market(ladders, plan, budgets)
    levels = [0] * len(ladders)
    queue = [(0.0, t) for t, ladder in enumerate(ladders) if len(ladder.rates) > 1]
    while not market.meets(levels):
        if not queue:
            raise ValueError(UNREACHABLE)
        _, t = heapq.heappop(queue)
        price = _price(t, levels, losses, market.use)
        # What was in the queue is from before, when a step saved at least as much.
        if queue and price > queue[0][0]:
            heapq.heappush(queue, (price, t))
            continue
        levels[t] += 1
        if levels[t] + 1 < len(losses[t]):
            heapq.heappush(queue, (_price(t, levels, losses, market.use), t))
    prices = [np.diff(each, prepend=0.0) for each in losses]
    market.fill(levels, prices)
    return market.rates(levels)


def _price(
    t: int,
    levels: Sequence[int],
    losses: Sequence[NDArray[np.float64]],
    cost: Callable[[Sequence[int]], float],
) -> float:
    """Return what decision `t` loses at its next rung for what that saves."""
    after = [*levels[:t], levels[t] + 1, *levels[t + 1 :]]
    saved = cost(levels) - cost(after)
    loss = float(losses[t][levels[t] + 1] - losses[t][levels[t]])
    return loss / saved if saved > 0 else math.inf


def _losses(ordered: NDArray[np.float64], ladder: Ladder) -> NDArray[np.float64]:
    """Return the scores that are lost at each rung together, (K,)."""
    lost = np.concatenate([[0.0], np.cumsum(ordered)])
    losses: NDArray[np.float64] = np.interp(
        ladder.shares * len(ordered), np.arange(len(lost)), lost
    )
    return losses
