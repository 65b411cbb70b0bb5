"""Names that a caller gives, of which only some are valid."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["check_name", "nearest", "nearest_path"]


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``, did you mean 'y'?`` for the valid name nearest to a wrong one, or nothing.

    Args:
        name: What was given.
        valid: What could have been given.
    """
    # Capitals are no difference: somebody who writes MNIST means mnist.
    by_lower = {each.lower(): each for each in valid}
    near = difflib.get_close_matches(str(name).lower(), by_lower, 1)
    return f", did you mean {by_lower[near[0]]!r}?" if near else ""


def check_name(kind: str, name: str, valid: Iterable[str]) -> str:
    """Return a name if it is a valid one.

    Args:
        kind: What it is the name of, such as `model`.
        name: What was given.
        valid: The names there are, in the order in which an error lists them.

    Raises:
        ValueError: If it is none of them; the message says the nearest, and all of them.
    """
    names = list(valid)
    if name in names:
        return name
    hint = nearest(name, names) or ";"
    raise ValueError(f"unknown {kind} {name!r}{hint} valid: {', '.join(names)}")


def nearest_path(path: Path) -> str:
    """Return ``, did you mean 'y'?`` for the file or folder nearest to one that is not there.

    Args:
        path: What is not there; looked at are the names beside it, or beside the first of its
            parents that is not there either.
    """
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    folder = missing.parent
    there = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(missing.name, there, 1)
    return f", did you mean {str(folder / near[0])!r}?" if near else ""
