"""What of a search is of one budget, where one policy was for several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from experiments.search.playing import Episode

__all__ = ["Part", "parts_of"]


class Part(NamedTuple):
    """All of a search, or what is of one of its budgets."""

    budget: float | None
    """A fraction; None for all of a search."""
    episodes: Sequence[Episode]
    """Those that had it."""
    outcome: Mapping[str, Any]
    """What the agent does there without exploration, `experiments.trial.table.checked_outcome`."""

    @property
    def label(self) -> dict[str, Any]:
        """What tells its rows from those of others."""
        return {} if self.budget is None else {"cost_budget": self.budget}


def parts_of(
    episodes: Sequence[Episode], outcome: Mapping[str, Any], budgets: Sequence[float]
) -> list[Part]:
    """Return the parts of a search, budget by budget; all of it where there are none.

    In a part, evaluations are counted that its own episodes have added.
    """
    if not budgets:
        return [Part(None, episodes, outcome)]
    counted: dict[float | None, list[Episode]] = {budget: [] for budget in budgets}
    before = 0
    for episode in episodes:
        mine = counted[episode.cost_budget]
        n_spent = (mine[-1].n_evaluations if mine else 0) + episode.n_evaluations - before
        mine.append(replace(episode, n_evaluations=n_spent))
        before = episode.n_evaluations
    pairs = zip(budgets, outcome["by_budget"], strict=True)
    return [Part(budget, counted[budget], played) for budget, played in pairs]
