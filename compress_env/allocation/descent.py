"""Pruning rates of the least total loss, where each decision's loss is known and costs are exact.

Shapes: T decisions, K rungs of a decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compress_env.allocation.ladder import ladder_of
from compress_env.allocation.market import Levels, Market, take_back
from compress_env.pruning.cost import Unit
from compress_env.pruning.plan import PruningPlan

__all__ = ["least_loss"]

N_BISECTIONS = 24
N_SWEEPS = 8
N_EXCHANGES = 500
"""Exchanges that are tried at most."""
SPAN = 1e6
"""Prices of the budget are looked for between this and its inverse, in the largest losses."""

Losses = Sequence[NDArray[np.float64]]


def least_loss(losses: Losses, plan: PruningPlan, budgets: Mapping[Unit, float]) -> list[float]:
    """Return the rates at which the losses of all decisions add up to the least that is found.

    What is removed by one decision changes what others save: costs are bilinear, and so exact ones
    are used throughout. With a price on the budget each decision in turn takes the rung of the
    least loss plus price, until none changes any more; the lowest price at which the budgets are
    met is found by bisection. Then channels are exchanged between two decisions as long as that
    loses less **(ours)**. What is left of the budgets is used as in `rank_channels`.

    Args:
        losses: (K_t,) for each decision: of every rung of its ladder, rising.
        plan: As in `rank_channels`.
        budgets: As in `rank_channels`.

    Returns:
        As `rank_channels`.

    Raises:
        ValueError: If the budgets cannot be met, or losses are not finite or of other rungs.
    """
    market = Market([ladder_of(plan, t) for t in range(len(plan.decisions))], plan, budgets)
    _check(losses, market)
    levels = _descend_by_price(losses, market)
    prices = [np.diff(each, prepend=0.0) for each in losses]
    take_back(levels, prices, market.meets)
    _exchange(levels, losses, prices, market)
    market.fill(levels, prices)
    return market.rates(levels)


def _check(losses: Losses, market: Market) -> None:
    sizes = [len(ladder.rates) for ladder in market.ladders]
    found = [len(each) for each in losses]
    if found != sizes:
        raise ValueError(f"expected losses at {sizes} rungs, got {found}")
    if not all(np.isfinite(each).all() for each in losses):
        raise ValueError("expected finite losses, got some that are not")


def _descend_by_price(losses: Losses, market: Market) -> Levels:
    """Return the rungs of the least loss among those that some price of the budget leads to."""
    start = market.uniform()
    best, least = start, _total(losses, start)
    scale = max((float(each[-1]) for each in losses), default=0.0) or 1.0
    low, high = np.log(scale / SPAN), np.log(scale * SPAN)
    for _ in range(N_BISECTIONS):
        price = (low + high) / 2
        levels = _descend(list(start), losses, float(np.exp(price)), market)
        if not market.meets(levels):
            low = price
            continue
        high = price
        if _total(losses, levels) < least:
            best, least = levels, _total(losses, levels)
    return list(best)


def _descend(levels: Levels, losses: Losses, price: float, market: Market) -> Levels:
    for _ in range(N_SWEEPS):
        before = list(levels)
        for t, lost in enumerate(losses):
            levels[t] = int((lost + price * _uses(t, levels, market)).argmin())
        if levels == before:
            break
    return levels


def _uses(t: int, levels: Levels, market: Market) -> NDArray[np.float64]:
    """Return how much of the budgets is used with decision `t` at each rung, (K,).

    With all others as they are this is a polynomial of degree 2 in the width, known from three
    rungs; where several groups or elements go, nearly so.
    """
    shares = market.ladders[t].shares
    some = sorted({0, len(shares) // 2, len(shares) - 1})
    known = [market.use([*levels[:t], k, *levels[t + 1 :]]) for k in some]
    curve = np.polyfit(shares[some], known, len(some) - 1)
    return np.asarray(np.polyval(curve, shares), np.float64)


def _exchange(levels: Levels, losses: Losses, prices: Losses, market: Market) -> None:
    """Keep more of one decision and less of another, in place, while that loses less."""
    for _ in range(N_EXCHANGES):
        found = _better(levels, losses, prices, market)
        if found is None:
            return
        levels[:] = found


def _better(levels: Levels, losses: Losses, prices: Losses, market: Market) -> Levels | None:
    """Return the rungs after the first exchange that loses less, if there is one."""
    gains = sorted(((prices[t][k], t) for t, k in enumerate(levels) if k), reverse=True)
    dear = sorted((prices[t][k + 1], t) for t, k in enumerate(levels) if k + 1 < len(losses[t]))
    for gain, t in gains:
        for loss, other in dear:
            if loss >= gain:
                break
            if other != t:
                found = _after(levels, losses, prices, (t, other), market)
                if _total(losses, found) < _total(losses, levels) * (1.0 - 1e-9):
                    return found
    return None


def _after(
    levels: Levels, losses: Losses, prices: Losses, pair: tuple[int, int], market: Market
) -> Levels:
    """Return the rungs with one more step of `pair[0]` kept, paid for by `pair[1]`, or as before.

    Whatever else then fits is kept, too.
    """
    more, less = pair
    trial = list(levels)
    trial[more] -= 1
    limit = losses[less][levels[less]] + prices[more][levels[more]]
    while trial[less] + 1 < len(losses[less]) and losses[less][trial[less] + 1] < limit:
        trial[less] += 1
        if market.meets(trial):
            take_back(trial, prices, market.meets, without=less)
            return trial
    return list(levels)


def _total(losses: Losses, levels: Levels) -> float:
    return float(sum(each[k] for each, k in zip(losses, levels, strict=True)))
