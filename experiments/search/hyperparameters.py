"""Hyper-parameters of agents, as `hyperparameters.json` holds them, and what may replace them.

They are what `experiments.tune` has found on digits, or has started from, and are the same for
every task. Names are those of Stable-Baselines3, sb3-contrib and `agents`, with these exceptions,
as a search's length, in environment steps, is known only when it begins:

- `n_updates`: rollouts in a search; the steps of one are even, from 8 to `n_steps_max`.
- `learning_starts_fraction`: part of the search that is spent on random actions, at most
  `learning_starts_max` steps.
- `action_noise`: standard deviation of the Gaussian noise on actions, which are in [-1, 1].
- `log_std_init`: logarithm of the policy's standard deviation at the beginning.

Informed agents (`AGENT+RULE`) have what `informed.json` says of their family instead, or of them
where they have none: `spread` and `sigma0` are standard deviations of actions around the prior's.

`gamma` is 1 for all agents: an episode is short and its reward comes at the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common.stored import typed
from experiments.search.entrants import ENTRANTS, agent_of, rule_of

__all__ = ["HYPERPARAMETERS", "INFORMED", "check_settings", "stored_settings"]


def _read(file: str) -> dict[str, dict[str, Any]]:
    path = Path(__file__).with_name(file)
    content: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return content


HYPERPARAMETERS = _read("hyperparameters.json")
"""Settings by the agent that they were found for."""
INFORMED = _read("informed.json")
"""What informed agents have instead, and besides."""


def stored_settings(agent: str) -> dict[str, Any]:
    """Return the hyper-parameters of an agent by name; those without a family have few or none."""
    name = agent_of(agent)
    entrant = ENTRANTS.get(name)
    if entrant is None:
        return {}
    stored = HYPERPARAMETERS.get(entrant.family or "", {}) | dict(entrant.own)
    if rule_of(agent) is not None:
        stored |= INFORMED.get(entrant.family or name, {})
    return {name: value for name, value in stored.items() if name not in entrant.lacks}


def check_settings(agent: str, settings: Mapping[str, Any]) -> None:
    """Check hyper-parameters that are to replace stored ones.

    Raises:
        ValueError: If the agent does not have one, or a value is of another kind.
    """
    stored = stored_settings(agent)
    for name, value in settings.items():
        if name not in stored:
            valid = ", ".join(stored) or "none"
            raise ValueError(f"unknown setting {name!r} of {agent}; valid: {valid}")
        try:
            typed(type(stored[name]), value)
        except TypeError as error:
            raise ValueError(f"setting {name} of {agent} must be {error}") from None
        if type(stored[name]) is int and value < 1:
            raise ValueError(f"setting {name} of {agent} must be 1 or more, got {value}")
