"""Policies in files: what an earlier run has found, to be applied again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.common.stored import read_object, typed

__all__ = ["Script", "StagePolicy", "read_policy"]


VALUES = {"pruning": "pruning_rate", "quantization": "bits"}
"""What the executed values are called, by stage."""
Actions = tuple[float, ...]


class StagePolicy(NamedTuple):
    """The decisions of one episode."""

    layers: tuple[str, ...]
    """Decided layers, in order."""
    values: tuple[float, ...]
    """Pruning rates or bits that were executed."""
    actions: tuple[float, ...]
    """Actions that led to them."""


def read_policy(path: Path, name: str) -> dict[str, StagePolicy]:
    """Read the policy of one contender, stage by stage.

    Args:
        path: A `policy.json`, or a file of a run's `pareto/`.
        name: The contender; where the file holds a single one, that is taken.

    Raises:
        ValueError: If the file is no policy, or holds several and none of that name.
    """
    try:
        content = read_object(path)
        if name not in content and len(content) != 1:
            raise ValueError(
                f"it holds {', '.join(content) or 'none'}, not {name}; choose with --algo"
            )
        stages = content[name] if name in content else next(iter(content.values()))
        if not isinstance(stages, dict) or not stages:
            raise ValueError("expected decisions by stage")
        return {stage: _read_stage(stage, entry) for stage, entry in stages.items()}
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot use the policy {str(path)!r}: {error}") from None


def _read_stage(stage: str, entry: Any) -> StagePolicy:
    if stage not in VALUES:
        raise ValueError(f"unknown stage {stage!r}; valid: {', '.join(VALUES)}")
    if not isinstance(entry, dict):
        raise ValueError(f"{stage} must hold layers, {VALUES[stage]} and actions")
    kinds = {"layers": tuple[str, ...], VALUES[stage]: tuple[float, ...], "actions": Actions}
    found = []
    for name, kind in kinds.items():
        if name not in entry:
            raise ValueError(f"no {name!r} in {stage}")
        try:
            found.append(typed(kind, entry[name]))
        except TypeError as error:
            raise ValueError(f"{name} of {stage} must be {error}") from None
    if len({len(values) for values in found}) > 1 or not found[0]:
        raise ValueError(f"{stage} must have as many {', '.join(kinds)}, at least one")
    if any(abs(action) > 1.0 for action in found[-1]):
        raise ValueError(f"actions of {stage} must be in [-1, 1]")
    return StagePolicy(*found)


class Script:
    """Takes given actions one after the other, behind Stable-Baselines3's ``predict``."""

    def __init__(self, actions: Sequence[float]) -> None:
        """Begin with the first action."""
        self._actions = iter(actions)

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], tuple[NDArray[Any], ...] | None]:
        """Return the next action for a batch of one, (1, 1)."""
        return np.array([[next(self._actions)]], np.float32), state
