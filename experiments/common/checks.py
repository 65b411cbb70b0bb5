"""Checks that the settings of several experiments share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["check_choices", "check_lowest", "read_object", "with_asked"]


_TOO_LARGE = 2**63


def check_choices(config: Any, *names: str) -> None:
    """Check that each of these settings holds values that differ, at least one.

    Raises:
        ValueError: If one does not.
    """
    for name in names:
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"expected {name} that differ, at least one, got {values}")


def check_lowest(config: Any, lowest: int, *names: str) -> None:
    """Check that each of these settings, or all its values, are so much or more, or not given.

    Raises:
        ValueError: If one is below, or beyond what a file of settings keeps.
    """
    for name in names:
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        if value is None:
            continue
        if not min(values) >= lowest:  # NaN is neither
            raise ValueError(f"{name} must be {lowest} or more, got {value}")
        if max(values) >= _TOO_LARGE:
            raise ValueError(f"{name} must be below 2**63, got {value}")


def read_object(config: Any, name: str) -> dict[str, Any]:
    """Read a setting that is a JSON object.

    Raises:
        ValueError: If it is something else.
    """
    text = getattr(config, name)
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{name} must be a JSON object, got {text!r}")
    return content


def with_asked(
    given: Mapping[str, Any], asked: Mapping[str, Any], asker: str = "another setting"
) -> dict[str, Any]:
    """Return keyword arguments of an environment, and those that something else asks for.

    Args:
        given: What somebody has given as `env_kwargs`.
        asked: What else is asked for; None asks for nothing.
        asker: Who asks.

    Raises:
        ValueError: If the two disagree.
    """
    found = {key: value for key, value in asked.items() if value is not None}
    for key, value in found.items():
        if key in given and given[key] != value and str(given[key]) != str(value):
            mine = value if isinstance(value, int | float) else str(value)
            raise ValueError(
                f"{asker} asks for the {key} {mine!r}, env_kwargs for {given[key]!r}: leave one out"
            )
    return {**given, **found}
