"""What rungs of all decisions come to, and how what is left of the budgets is used."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress_env.allocation.ladder import Ladder
from compress_env.pruning.cost import Unit
from compress_env.pruning.plan import PruningPlan

__all__ = ["UNREACHABLE", "Levels", "Market", "Prices", "take_back"]

Prices = Sequence[NDArray[np.float64]]
"""What each step to a rung costs, by decision."""
Levels = list[int]
"""The rung of each decision."""
WELL_USED = 0.99
"""Share of a budget from which on no more use of it is looked for."""
MORE = 1e-9
"""By how much more a budget must be used for it to count."""
UNREACHABLE = "the budgets cannot be met, even at the highest rate everywhere"
"""What is said where they cannot."""


class Market(NamedTuple):
    """What rungs come to: their rates, and how much of the budgets they use."""

    ladders: Sequence[Ladder]
    plan: PruningPlan
    budgets: Mapping[Unit, float]

    def rates(self, levels: Sequence[int]) -> list[float]:
        """Return the rate of each decision."""
        pairs = zip(self.ladders, levels, strict=True)
        return [float(ladder.rates[level]) for ladder, level in pairs]

    def meets(self, levels: Sequence[int]) -> bool:
        """Return whether the budgets are met."""
        costs = self._costs(levels)
        return all(cost <= most for cost, most in zip(costs, self.budgets.values(), strict=True))

    def use(self, levels: Sequence[int]) -> float:
        """Return the sum over the budgets of what share of each is used."""
        return sum(self._shares(levels))

    def uniform(self) -> Levels:
        """Return the lowest rungs, of about one rate, that meet the budgets.

        Raises:
            ValueError: If not even the highest rungs do.
        """

        def at(rate: float) -> Levels:
            return [min(int((x.rates < rate).sum()), len(x.rates) - 1) for x in self.ladders]

        rates = np.unique(np.concatenate([ladder.rates for ladder in self.ladders])).tolist()
        if not self.meets(at(rates[-1])):
            raise ValueError(UNREACHABLE)
        return at(rates[bisect.bisect_left(rates, True, key=lambda rate: self.meets(at(rate)))])

    def fill(self, levels: Levels, prices: Prices) -> None:
        """Use what is left of the budgets, in place.

        Whatever fits is taken back. If less than 99 % of the tightest budget is used then, one step
        of the lowest price for which more of it comes back is given up, as often as there is one.
        """
        take_back(levels, prices, self.meets)
        while (used := self._worst(levels)) < WELL_USED:
            found = self._exchange(levels, prices, used)
            if found is None:
                return
            levels[:] = found

    def _exchange(self, levels: Levels, prices: Prices, used: float) -> Levels | None:
        """Return rungs that use more of the budgets, with one step of some decision given up."""
        steps = [(prices[t][k + 1], t) for t, k in enumerate(levels) if k + 1 < len(prices[t])]
        for _, t in sorted(steps):
            trial = [k + (t == i) for i, k in enumerate(levels)]
            take_back(trial, prices, self.meets, without=t)
            if self._worst(trial) > used + MORE:
                return trial
        return None

    def _worst(self, levels: Levels) -> float:
        """Return how much of the tightest budget is used; all of it if there is nothing to keep."""
        if not any(levels):
            return 1.0
        return max(self._shares(levels), default=0.0)

    def _shares(self, levels: Sequence[int]) -> list[float]:
        pairs = zip(self._costs(levels), self.budgets.values(), strict=True)
        return [cost / most for cost, most in pairs]

    def _costs(self, levels: Sequence[int]) -> list[int]:
        """Return the cost in the unit of each budget."""
        if self.plan.removes_elements:
            rates = self.rates(levels)
            return [self.plan.count(rates, unit) for unit in self.budgets]
        # What a rate comes to is known, and need not be worked out each time.
        whole = tuple(x.kept[level] for x, level in zip(self.ladders, levels, strict=True))
        return [self.plan.highest(whole, unit) for unit in self.budgets]


def take_back(
    levels: Levels,
    prices: Prices,
    meets: Callable[[Sequence[int]], bool],
    *,
    without: int | None = None,
) -> None:
    """Lower the rungs, in place, by single steps that fit, the one of the highest price first.

    A step that does not fit will not fit later either, when even more is kept.

    Args:
        levels: (T,) rungs, which meet the budgets.
        prices: (K,) for each decision, of the step to each rung.
        meets: Whether rungs meet the budgets.
        without: A decision that is left as it is.
    """
    queue = [(-prices[t][level], t) for t, level in enumerate(levels) if level and t != without]
    heapq.heapify(queue)
    while queue:
        _, t = heapq.heappop(queue)
        levels[t] -= 1
        if not meets(levels):
            levels[t] += 1
        elif levels[t]:
            heapq.heappush(queue, (-prices[t][levels[t]], t))
