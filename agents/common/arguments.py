"""What an argument may be, and one line that says so where it is something else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from textwrap import shorten
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray

__all__ = [
    "PPO_RANGES",
    "SEED",
    "Range",
    "check_device",
    "checked",
    "checked_all",
    "in_a_line",
    "of_length",
]


@dataclass(frozen=True)
class Range:
    """Which values a number may have; NaN is never one of them."""

    low: float = -math.inf
    """The smallest."""
    high: float = math.inf
    """The largest; without one the number must be finite."""
    is_open: bool = False
    """Leave `low` itself out."""
    is_whole: bool = False
    """Take integers alone, also those of NumPy."""
    may_be_infinite: bool = False
    """Take infinity where there is no `high`."""
    may_be_none: bool = False
    """Take None too."""
    may_be_schedule: bool = False
    """Take functions of the remaining progress too, whose value at the start may be `low`."""

    def __str__(self) -> str:
        """Say it after "must be"."""
        if self.high < math.inf:
            return f"in {'(' if self.is_open else '['}{self.low:g}, {self.high:.10g}]"
        lowest = f"{'above' if self.is_open else 'at least'} {self.low:g}"
        return lowest if self.is_whole or self.may_be_infinite else f"{lowest} and finite"

    def __contains__(self, value: float) -> bool:
        """Return whether a number is one of them."""
        is_high_enough = value > self.low if self.is_open else value >= self.low
        is_finite = self.may_be_infinite or math.isfinite(value)
        return bool(is_high_enough and value <= self.high and is_finite)


SEED = Range(0, 2**32 - 1, is_whole=True, may_be_none=True)
"""Of every pseudo-random generator; NumPy's old global one takes 32 bits."""

PPO_RANGES: Mapping[str, Range] = {
    "learning_rate": Range(0, may_be_schedule=True),
    "n_steps": Range(1, is_whole=True),
    "batch_size": Range(1, is_whole=True),
    "n_epochs": Range(1, is_whole=True),
    "gamma": Range(0, 1),
    "gae_lambda": Range(0, 1),
    "clip_range": Range(0, is_open=True, may_be_infinite=True, may_be_schedule=True),
    "clip_range_vf": Range(
        0, is_open=True, may_be_infinite=True, may_be_none=True, may_be_schedule=True
    ),
    "ent_coef": Range(0),
    "vf_coef": Range(0),
    "max_grad_norm": Range(0, is_open=True, may_be_infinite=True),
    "target_kl": Range(0, is_open=True, may_be_infinite=True, may_be_none=True),
    "stats_window_size": Range(1, is_whole=True),
    "seed": SEED,
}
"""What the numbers among PPO's arguments may be, by their names."""


def checked(name: str, value: Any, allowed: Range) -> Any:
    """Return a number as Python's own, or whatever else may stand in its place.

    Args:
        name: of the argument, for the error.
        value: of the argument.
        allowed: what it may be.

    Raises:
        ValueError: if it is something else.
    """
    if value is None and allowed.may_be_none:
        return None
    if callable(value) and allowed.may_be_schedule:
        checked(f"{name} at the start", value(1.0), replace(allowed, is_open=False))
        return value
    kind: type = Integral if allowed.is_whole else Real
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if not is_number:
        number = "a whole number" if allowed.is_whole else "a number"
        raise ValueError(f"{name} must be {number} {allowed}, got {in_a_line(repr(value))}")
    if value not in allowed:
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return value.item() if isinstance(value, np.generic) else value


def checked_all(values: Mapping[str, Any], ranges: Mapping[str, Range]) -> dict[str, Any]:
    """Return those of the values that have a range, each `checked`.

    Raises:
        ValueError: if one of them is out of its range.
    """
    return {
        name: checked(name, values[name], allowed)
        for name, allowed in ranges.items()
        if name in values
    }


def check_device(device: Any) -> None:
    """Raise unless PyTorch, or Stable-Baselines3 with ``"auto"``, knows the device.

    Raises:
        ValueError: if it does not.
    """
    try:
        th.device("cpu" if device == "auto" else device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"device must be 'auto' or one of PyTorch's ('cpu', 'cuda', 'cuda:1'), got {device!r}"
        ) from None


def in_a_line(value: object) -> str:
    """Return what a value looks like on one line, shortened if it is long."""
    return shorten(str(value), 200, placeholder=" ...")


def of_length(n: int, name: str, values: Any) -> NDArray[Any]:
    """Return a copy of (n,) values.

    Raises:
        ValueError: if they have another shape.
    """
    array = np.array(values)
    if array.shape != (n,):
        raise ValueError(f"expected {name} of shape ({n},), got {array.shape}")
    return array
