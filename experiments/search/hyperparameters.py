"""Hyper-parameters of agents, as `hyperparameters.json` holds them, and what may replace them.

They are what `experiments.tune` has found on digits, or has started from, and are the same for
every task. Names are those of Stable-Baselines3, sb3-contrib and `agents`, with these exceptions,
as a search's length, in environment steps, is known only when it begins:

- `n_updates`: rollouts in a search; the steps of one are even, from 8 to `n_steps_max`.
- `learning_starts_fraction`: part of the search that is spent on random actions, at most
  `learning_starts_max` steps.
- `action_noise`: standard deviation of the Gaussian noise on actions, which are in [-1, 1].
- `log_std_init`: logarithm of the policy's standard deviation at the beginning.

`gamma` is 1 for all agents: an episode is short and its reward comes at the end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["FAMILIES", "HYPERPARAMETERS", "OWN", "check_settings", "stored_settings"]

HYPERPARAMETERS: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("hyperparameters.json").read_text(encoding="utf-8")
)
"""Settings by the agent that they were found for."""

FAMILIES = {name: name for name in HYPERPARAMETERS} | {
    "q_critic_ppo_q": "q_critic_ppo",
    "kl_ppo": "ppo",
    "cim_ppo": "ppo",
    "trpo": "ppo",
    "tqc": "sac",
    "crossq": "sac",
}
"""Whose settings an agent has. The others have none: they keep their published defaults."""

LACKS = {
    "trpo": ("n_epochs", "ent_coef"),  # one step of conjugate gradients, no entropy bonus
    # No target networks, and a higher learning rate is part of the method.
    "crossq": ("learning_rate", "tau"),
}
"""Settings of its family that an agent does not have."""

OWN = {
    # The coefficient of its penalty follows the divergence, as that of `kl_ppo` does: a fixed one
    # hardly lets the policy move (docs/control.md).
    "cim_ppo": {"kl_target": 0.01},
}
"""Settings of an agent that its family does not have, and were not searched for."""


def stored_settings(agent: str) -> dict[str, Any]:
    """Return the hyper-parameters of an agent by name; none for agents without a family."""
    if agent not in FAMILIES:
        return {}
    stored = HYPERPARAMETERS[FAMILIES[agent]] | OWN.get(agent, {})
    return {name: value for name, value in stored.items() if name not in LACKS.get(agent, ())}


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
        expected = _expected(stored[name], value)
        if expected is not None:
            raise ValueError(f"setting {name} of {agent} must be {expected}, got {value!r}")


def _expected(stored: Any, value: Any) -> str | None:
    """Return what a value should be, or None if it is of the kind of the stored one."""
    if isinstance(stored, str):
        return None if isinstance(value, str) else "a text"
    if isinstance(stored, int):
        is_right = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        return None if is_right else "a whole number, 1 or more"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if is_number and math.isfinite(value) else "a number"
