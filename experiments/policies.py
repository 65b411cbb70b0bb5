"""Policies in files: what an earlier run has found, to be applied again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Script", "StagePolicy", "read_policy"]


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
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if name not in content and len(content) != 1:
            raise ValueError(f"it holds {', '.join(content)}, not {name}; choose with --algo")
        stages = content.get(name) or next(iter(content.values()))
        return {
            stage: StagePolicy(
                tuple(entry["layers"]),
                tuple(entry["pruning_rate" if stage == "pruning" else "bits"]),
                tuple(float(action) for action in entry["actions"]),
            )
            for stage, entry in stages.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"cannot use the policy {str(path)!r}: {reason}") from None


class Script:
    """Takes given actions one after the other, behind Stable-Baselines3's ``predict``."""

    def __init__(self, policy: StagePolicy) -> None:
        """Begin with the first action."""
        self._actions = iter(policy.actions)

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], tuple[NDArray[Any], ...] | None]:
        """Return the next action for a batch of one, (1, 1)."""
        return np.array([[next(self._actions)]], np.float32), state
