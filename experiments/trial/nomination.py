"""Which allocation a search stands by: the last fifth of its evaluations compares the best ones.

On a task that draws the order of the minibatches anew for each episode, the best of many episodes
is partly the one with a lucky order. So a search has four fifths of each budget, and the rest runs
its best episodes by validation accuracy, and what its policy does without exploration at that
moment, again under fresh orders. The best mean over these alone is the nominee. Of an agent that
has learnt a critic, the episodes may be those that it values most, instead of the luckiest ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from compress_env.envs.options import DRAWN
from experiments.search.episodes import Episode
from experiments.search.playing import format_actions

__all__ = [
    "BUDGETS",
    "Candidate",
    "Nomination",
    "Round",
    "budgets_of",
    "choose_candidates",
    "fresh_orders",
    "nominate",
    "schedule",
    "searched",
    "spent_by",
]

BUDGETS = (30, 100, 300)
"""Evaluations after which a search is asked what it stands by."""
POLICY = "policy"
"""Source of the candidate that is what the policy does without exploration."""


class Candidate(NamedTuple):
    """An allocation, and where it comes from."""

    source: str
    """`episode N` or `policy`."""
    actions: tuple[float, ...]
    """Actions that lead to it."""
    values: tuple[float, ...]
    """Executed pruning rates or bits."""

    @staticmethod
    def of(episode: Episode, source: str | None = None) -> Candidate:
        """Make a candidate of an episode."""
        return Candidate(source or f"episode {episode.index}", episode.actions, episode.values)


class Round(NamedTuple):
    """One round of successive halving."""

    n_candidates: int
    """Candidates that are still in it."""
    n_orders: int
    """Fresh orders that each of them is run under."""


class Nomination(NamedTuple):
    """What a search stands by."""

    nominee: Candidate
    """Best mean over its fresh runs."""
    runs: tuple[dict[str, Any], ...]
    """Rows, one for each fresh run: `round`, `source`, `noise_seed`, `validation`, `actions` and
    `seconds`."""


def budgets_of(evaluations: int) -> tuple[int, ...]:
    """Return the budgets that a search of so many evaluations serves, itself the last."""
    return (*(budget for budget in BUDGETS if budget < evaluations), evaluations)


def searched(budget: int) -> int:
    """Return how many evaluations of a budget the search has, the others being for nomination."""
    return budget - budget // 5


def spent_by(episodes: Sequence[Episode], budget: int) -> list[Episode]:
    """Return the episodes of a search until it has used its part of a budget."""
    ends = [e.index for e in episodes if e.n_evaluations >= searched(budget)]
    return list(episodes[: ends[0] + 1] if ends else episodes)


def schedule(n_runs: int, n_candidates: int) -> list[Round]:
    """Divide fresh runs among candidates by successive halving.

    With m rounds there are at most 2^m candidates, the largest number whose halving fits with one
    order a round: 2^m + ... + 4 + 2 <= `n_runs`. After each round the better half goes on, an odd
    one with it, until one is left. Runs that remain go one order at a time to the round that is the
    cheapest so far, of equals the later one, so that rounds cost about the same; no more than one
    run is left over with two finalists. 6 runs: 4 candidates under 1 order, 2 under 1 more. 20
    runs: 8 under 1, 4 under 1, 2 under 4. 60 runs: 16 under 1, 8 under 2, 4 under 3, 2 under 8.

    Args:
        n_runs: Runs that there may be, 0 or more.
        n_candidates: Candidates that there are, 1 or more.

    Returns:
        The rounds; none where there is nothing to choose.
    """
    n_left = min(n_candidates, 2 ** int(math.log2(n_runs / 2 + 1)))
    sizes = []
    while n_left > 1:
        sizes.append(n_left)
        n_left = math.ceil(n_left / 2)
    orders, spare = [1] * len(sizes), n_runs - sum(sizes)
    while fitting := [i for i, size in enumerate(sizes) if size <= spare]:
        cheapest = min(fitting, key=lambda i: (sizes[i] * orders[i], -i))
        orders[cheapest] += 1
        spare -= sizes[cheapest]
    return [Round(size, n) for size, n in zip(sizes, orders, strict=True)]


def choose_candidates(
    episodes: Sequence[Episode],
    policy: Candidate | None,
    n_candidates: int,
    values: Sequence[float] = (),
) -> list[Candidate]:
    """Return what is compared, each allocation once.

    Args:
        episodes: Of the search so far.
        policy: What its policy does without exploration; None for an agent that does not learn.
        n_candidates: How many there may be, 1 or more. With 2 or more the policy is one of them.
        values: What the agent's critic gives the first of the episodes, which then counts before
            all else; episodes that it has not been asked about come last.

    Returns:
        Those of the best episodes, by validation accuracy, then reward, lower cost, the first; the
        policy's last.

    Raises:
        RuntimeError: If every episode failed.
    """
    finished = [e for e in episodes if e.accuracy is not None]
    if not finished:
        reason = episodes[-1].error if episodes else "none was run"
        raise RuntimeError(f"no episode finished: {reason}")
    valued = dict(enumerate(values))
    ranked = sorted(
        finished,
        key=lambda e: (
            -valued.get(e.index, -math.inf),
            -(e.accuracy or 0.0),
            -e.reward,
            e.cost,
            e.index,
        ),
    )
    distinct: dict[tuple[float, ...], Candidate] = {}
    for episode in ranked:
        distinct.setdefault(episode.values, Candidate.of(episode))
    best = list(distinct.values())[:n_candidates]
    if policy is None or n_candidates < 2 or policy.values in {each.values for each in best}:
        return best
    return [*best[: n_candidates - 1], policy]


def fresh_orders(seed: int, n_orders: int) -> list[int]:
    """Return the noise seeds of a trial's fresh runs, the same for each of its budgets.

    The first k of n are those of k.

    Args:
        seed: The trial's seed.
        n_orders: How many.
    """
    generator = np.random.default_rng((seed, 1))
    return [int(generator.integers(DRAWN)) for _ in range(n_orders)]


def nominate(
    candidates: Sequence[Candidate],
    rounds: Sequence[Round],
    orders: Sequence[int],
    run: Callable[[Candidate, int], tuple[float, float]],
) -> Nomination:
    """Compare candidates under fresh orders, all of them under the same ones.

    Args:
        candidates: At least one, the first is the nominee where there are no rounds.
        rounds: From `schedule`, of at most as many candidates.
        orders: Noise seeds, as many as the rounds have orders.
        run: Returns the validation accuracy of a candidate under an order, and its seconds.
    """
    left, fresh, rows = list(candidates), iter(orders), []
    found: dict[Candidate, list[float]] = {candidate: [] for candidate in candidates}
    for number, (n_candidates, n_orders) in enumerate(rounds):
        left = left[:n_candidates]
        for order in [next(fresh) for _ in range(n_orders)]:
            for candidate in left:
                accuracy, seconds = run(candidate, order)
                found[candidate].append(accuracy)
                row = _row(number, candidate, order, accuracy)
                rows.append(row | {"seconds": seconds})
        left.sort(key=lambda candidate: -float(np.mean(found[candidate])))
        left = left[: math.ceil(n_candidates / 2)]
    return Nomination(left[0], tuple(rows))


def _row(number: int, candidate: Candidate, order: int, accuracy: float) -> dict[str, Any]:
    return {
        "round": number,
        "source": candidate.source,
        "noise_seed": order,
        "validation": accuracy,
        "actions": format_actions(candidate.actions),
    }
