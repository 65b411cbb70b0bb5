"""Which spaces of observations and actions an agent can work with."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from agents.common.arguments import in_a_line

__all__ = ["check_bounds", "check_observations", "check_spaces"]

_ARRAYS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Raise unless observations are arrays and a bounded mean can be mapped onto the actions.

    Args:
        observation_space: an array's, so no Dict.
        action_space: a Box of floats whose bounds are finite, low below high in every dimension.

    Raises:
        ValueError: if either space is something else.
    """
    check_observations(observation_space)
    if not isinstance(action_space, spaces.Box):
        raise ValueError(
            f"action_space must be a Box with finite bounds, got {in_a_line(action_space)}"
        )
    check_bounds(action_space)
    if not (action_space.low.astype(np.float32) < action_space.high.astype(np.float32)).all():
        raise ValueError(
            "action_space needs low < high in every dimension, as float32, got "
            f"{in_a_line(action_space)}"
        )


def check_observations(space: spaces.Space[Any], allows_dict: bool = False) -> None:
    """Raise unless observations are arrays, or, if allowed, dictionaries of arrays.

    Raises:
        ValueError: if they are something else.
    """
    if isinstance(space, spaces.Dict) and not allows_dict:
        raise ValueError(
            "Dict observations are not supported, flatten them with "
            f"gymnasium.wrappers.FlattenObservation; got {in_a_line(space)}"
        )
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    if not all(isinstance(part, _ARRAYS) for part in parts):
        raise ValueError(
            "observation_space must be a Box, Discrete, MultiDiscrete or MultiBinary, got "
            f"{in_a_line(space)}"
        )


def check_bounds(space: spaces.Box) -> None:
    """Raise unless a box of actions holds floats between bounds that are finite, as float32.

    Raises:
        ValueError: if it does not.
    """
    if not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"action_space must be a Box of floats, got {in_a_line(space)}")
    with np.errstate(over="ignore"):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        is_finite = np.isfinite([low, high, high - low]).all()
    if not is_finite:
        raise ValueError(f"the bounds of action_space must be finite, got {in_a_line(space)}")
