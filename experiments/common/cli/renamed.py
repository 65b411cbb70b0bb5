"""Settings that had another name before, which run folders and command lines may still hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["RENAMED", "current_names"]

RENAMED = {
    "n_evaluations": "evaluations",
    "n_episodes": "episodes",
    "tasks": "task",
    "agent": "algo",
    "agents": "algo",
    "algos": "algo",
    "algorithms": "algo",
    "models": "model",
    "dataset": "data",
    "datasets": "data",
    "checkpoint": "weights",
    "methods": "method",
    "flops_budget": "macs",
    "flops_budgets": "macs",
    "size_budget": "size",
    "size_budgets": "size",
    "searches": "task",
    "baselines": "compare",
}
"""Names now, by those before."""


def current_names(settings: Mapping[str, Any], valid: Collection[str]) -> dict[str, Any]:
    """Return settings by the names that they have now.

    Args:
        settings: Values by name, as they were stored or given.
        valid: Names of all settings there are now. A name among them is left alone, and so is one
            whose present name is not among them, or is in `settings` too.
    """

    def now(name: str) -> str:
        new = RENAMED.get(name, name)
        return new if name not in valid and new in valid and new not in settings else name

    return {now(name): value for name, value in settings.items()}
