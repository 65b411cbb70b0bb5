"""The rates that a decision can tell apart, from none removed to the most."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress_env.pruning.plan import PruningPlan
from compress_env.task.layers import round_channels, turning_rates

__all__ = ["Ladder", "ladder_of"]

N_RUNGS = 256
"""Rungs where single elements go, which are too many to be told apart one by one."""
_NARROW = 1e-6
"""Rates that are closer than this may be the same in float32."""


class Ladder(NamedTuple):
    """Rates of one decision, K of them; the first removes nothing, the last as much as can go."""

    rates: NDArray[np.float64]
    """(K,) rising. Of all rates that come to the same channels, the middle one."""
    shares: NDArray[np.float64]
    """(K,) fraction removed: of the decision's channels, or of the weights if elements go."""
    kept: Sequence[tuple[int, ...]] = ()
    """(K,) channels that each group keeps; empty where elements go."""


def ladder_of(plan: PruningPlan, t: int) -> Ladder:
    """Return the rungs of decision `t`.

    Where only channels go, there is one for each outcome: at the middle of its rates, so that what
    is executed does not depend on rounding. Several groups of one decision have one rate. Where
    elements go, rungs are `N_RUNGS` equal steps of the rate.
    """
    highest = plan.max_pruning_rate
    if plan.removes_elements:
        rates = np.linspace(0.0, highest, N_RUNGS)
        return Ladder(rates, rates)
    sizes = [group.n_channels for group in plan.decisions[t].groups]
    turns = turning_rates(sizes, highest, plan.channel_round)
    middles = [(a + b) / 2 for a, b in itertools.pairwise(turns) if b - a > _NARROW]
    first: dict[tuple[int, ...], float] = {}
    for rate in (0.0, *middles, highest):
        kept = tuple(round_channels(n, rate, plan.channel_round) for n in sizes)
        first.setdefault(kept, rate)
    left = np.array([sum(kept) for kept in first])
    return Ladder(np.array([*first.values()]), 1.0 - left / sum(sizes), list(first))
