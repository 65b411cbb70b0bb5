"""What a pruned network may cost at most, in one unit or several at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from compress_env.counts import check_number
from compress_env.pruning.cost import Unit
from compress_env.pruning.plan import PruningPlan
from compress_env.task.layers import format_minimum

__all__ = ["Budgets", "budgets_of", "keyword_of"]

Budgets: TypeAlias = dict[Unit, float]
"""The most that is allowed, by unit; a network meets all of them."""

_UNITS: dict[str, Unit] = {
    "flops_budget": "macs",
    "params_budget": "params",
    "filters_budget": "filters",
}


def budgets_of(plan: PruningPlan, fractions: Mapping[str, Any]) -> Budgets:
    """Return budgets in their units.

    Whether several can be met at once needs no check: each of them is met at the highest rates.

    Args:
        plan: Of the network.
        fractions: `flops_budget`, `params_budget` and `filters_budget`, each a fraction of what
            the unpruned network has, or None; others do not count.

    Raises:
        TypeError: If a fraction is no real number.
        ValueError: If a fraction is above 1, or below what can be reached.
    """
    return {
        unit: _limit(plan, name, unit, given)
        for name, unit in _UNITS.items()
        if (given := fractions[name]) is not None
    }


def keyword_of(unit: Unit) -> str:
    """Return the argument that a budget in this unit is given by."""
    return next(name for name, each in _UNITS.items() if each == unit)


def _limit(plan: PruningPlan, name: str, unit: Unit, given: float) -> float:
    given = check_number(name, given)
    full, least = plan.full(unit), plan.highest((), unit)
    if not least / full <= given <= 1.0:
        rate, lowest = plan.max_pruning_rate, format_minimum(least / full)
        what = {"macs": "MACs", "params": "parameters", "filters": "filters"}[unit]
        kind = "" if unit == "filters" else f" ({'dense' if plan.counts_zeros else 'sparse'} ones)"
        raise ValueError(
            f"{name} must be in [{lowest}, 1]: pruning every layer at max_pruning_rate={rate} "
            f"reaches {least / full:.4f} of the unpruned {what}{kind}, got {given}"
        )
    return max(given * full, least)
