"""Whole and real numbers that a caller gives."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any

__all__ = ["check_count", "check_number"]


def check_count(name: str, value: Any, lowest: int | None = 0) -> int:
    """Return a count as an int: integers of NumPy are counts, booleans are none.

    Args:
        name: What it is called.
        value: What was given.
        lowest: The smallest count allowed; None for any.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is too small.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {value!r}")
    try:
        count = operator.index(value)
    except TypeError:  # an array of several numbers, or of one that is no integer
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if lowest is not None and count < lowest:
        bound = "0 or more" if lowest == 0 else f"at least {lowest}"
        raise ValueError(f"{name} must be {bound}, got {count}")
    return count


def check_number(name: str, value: Any) -> float:
    """Return a real number as a float: numbers of NumPy are such, booleans are none.

    Args:
        name: What it is called.
        value: What was given.

    Raises:
        TypeError: If it is no real number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        got = " ".join(repr(value).split())
        raise TypeError(f"{name} must be a real number, got {got:.80}")
    return float(value)
