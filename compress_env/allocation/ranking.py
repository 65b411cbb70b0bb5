"""Pruning rates by one threshold over the channels of all groups, solved on the exact cost."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compress_env.allocation.ladder import Ladder, ladder_of
from compress_env.allocation.market import UNREACHABLE, Levels, Market, Prices
from compress_env.pruning.cost import Unit
from compress_env.pruning.plan import PruningPlan

__all__ = ["Scores", "checked_scores", "rank_channels"]

Scores = Sequence[NDArray[np.float64]]
"""Scores of all channels, by decision."""


def rank_channels(scores: Scores, plan: PruningPlan, budgets: Mapping[Unit, float]) -> list[float]:
    """Return the rates at which the channels of the lowest scores go, as few as meet the budgets.

    One threshold holds for all decisions. A decision has one rate, and a rate removes so many
    channels: those with its lowest scores, of whichever group, are what they are held to be
    **(ours)**. So a step of several channels at once (several groups, `channel_round`) waits until
    all of them are below the threshold. What is left of the budgets then, less than one step, is
    used by taking back whatever fits, the highest score first. Where steps are so large that less
    than 99 % is used, channels of the lowest scores make room for others that fit **(ours)**.

    Where elements go, the fraction of a decision's channels below the threshold is the fraction of
    the layer's weights that goes **(ours)**; the cost is then the plan's, a bound.

    Args:
        scores: (n_t,) for each decision: of all channels of its groups, in any order.
        plan: Of the network's pruning environment, `PruningEnv.plan`.
        budgets: The most that is allowed, by unit, `PruningEnv.budgets`.

    Returns:
        (T,) rates in [0, `plan.max_pruning_rate`], at the middle of those that come to the same
        channels.

    Raises:
        ValueError: If the budgets cannot be met, or scores are not finite or of other channels.
    """
    ordered = checked_scores(scores, plan)
    ladders = [ladder_of(plan, t) for t in range(len(plan.decisions))]
    prices = [_prices(each, ladder) for each, ladder in zip(ordered, ladders, strict=True)]

    market = Market(ladders, plan, budgets)
    levels = _threshold(ladders, prices, market.meets)
    market.fill(levels, prices)
    return market.rates(levels)


def checked_scores(scores: Scores, plan: PruningPlan) -> list[NDArray[np.float64]]:
    """Return the scores of each decision, rising.

    Args:
        scores: (n_t,) for each decision.
        plan: What they are for.

    Raises:
        ValueError: If they are not finite, or of other channels.
    """
    sizes = [decision.n_channels for decision in plan.decisions]
    found = [len(each) for each in scores]
    if found != sizes:
        raise ValueError(f"expected scores of {sizes} channels, got {found}")
    ordered = [np.sort(np.asarray(each, np.float64)) for each in scores]
    if not all(np.isfinite(each).all() for each in ordered):
        raise ValueError("expected finite scores, got some that are not")
    return ordered


def _prices(ordered: NDArray[np.float64], ladder: Ladder) -> NDArray[np.float64]:
    """Return the highest score that each rung costs, (K,), the first of which costs nothing."""
    n_gone = np.ceil(ladder.shares * len(ordered) - 1e-9).astype(np.int64)
    prices: NDArray[np.float64] = np.concatenate([[-np.inf], ordered])[n_gone]
    return prices


def _threshold(
    ladders: Sequence[Ladder],
    prices: Prices,
    meets: Callable[[Sequence[int]], bool],
) -> Levels:
    """Return the rung of each decision below the lowest threshold that meets the budgets.

    Steps of equal price are taken in the order of the fraction that is then removed.
    """
    price = np.concatenate([each[1:] for each in prices])
    share = np.concatenate([ladder.shares[1:] for ladder in ladders])
    decision = np.repeat(np.arange(len(ladders)), [len(each) - 1 for each in prices])
    decision = decision[np.lexsort((decision, share, price))]

    def levels(n_steps: int) -> Levels:
        return [int(n) for n in np.bincount(decision[:n_steps], minlength=len(ladders))]

    if not meets(levels(len(decision))):
        raise ValueError(UNREACHABLE)
    steps = range(len(decision) + 1)
    return levels(bisect.bisect_left(steps, True, key=lambda n: meets(levels(n))))
