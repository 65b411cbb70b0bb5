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

from agents.common.arguments import PPO_RANGES, Range, checked
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
RANGES: Mapping[str, Range] = {
    **PPO_RANGES,
    "action_noise": Range(0),
    "delta_std": Range(0, is_open=True),
    "learning_starts_fraction": Range(0, 1),
    "log_std_init": Range(-20, 2),
    "spread": Range(0),
    "tau": Range(0, 1, is_open=True),
    "target_policy_noise": Range(0),
}
"""What numbers may be where an agent's class does not say; logarithms of standard deviations as
those of SAC's policies."""


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
        ValueError: If the agent does not have one, or a value is of another kind or out of range.
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
        if setting_range := _range_of(agent, name, type(stored[name])):
            checked(f"setting {name} of {agent}", value, setting_range)
        if name == "ent_coef" and isinstance(value, str):
            _check_ent_coef(agent, value)


def _range_of(agent: str, setting: str, kind: type) -> Range | None:
    """Return what a setting may be, None if it is no number or may be any."""
    if kind not in (int, float):
        return None
    entrant = ENTRANTS[agent_of(agent)]
    if setting == "spread" and entrant.family == "sac":  # whose policy takes its logarithm
        return Range(0, is_open=True)
    own: Mapping[str, Range] = getattr(entrant.learner, "ranges", {})
    return own.get(setting, RANGES.get(setting))


def _check_ent_coef(agent: str, text: str) -> None:
    """Check a coefficient of the entropy that may follow it.

    Raises:
        ValueError: If it is neither a number nor one to begin with.
    """
    is_auto, number = text.startswith("auto"), text.removeprefix("auto_")
    try:
        checked("", float("1" if text == "auto" else number), Range(0, is_open=is_auto))
    except ValueError:
        raise ValueError(
            f"setting ent_coef of {agent} must be 'auto', 'auto_X' with X above 0, or a number at "
            f"least 0 as a text, got {text!r}"
        ) from None
