"""Anybody's agents, as `my_module:MyAgent`."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["blaming", "find", "source_of"]


def find(name: str) -> Any:
    """Return what `module:attribute` names; the current directory is searched too.

    Raises:
        ValueError: If there is none, or it is not called as an agent is.
        ImportError: If the module cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module_name), attribute, None)
    except Exception as error:  # whatever a module does when it is imported
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise ImportError(f"cannot import agent {name!r}: {kind}{error}") from None
    if found is None:
        raise ValueError(f"module {module_name!r} has no {attribute!r}")
    if not callable(getattr(found, "predict", None)):
        raise ValueError(f"agent {name!r} must have a method predict, got {found!r}")
    if isinstance(found, type):
        _check_takes(found, "seed", name, "__init__")
    _check_takes(found.predict, "deterministic", name, "predict")
    return found


def _check_takes(function: Any, argument: str, name: str, method: str) -> None:
    parameters = inspect.signature(function).parameters.values()
    if not any(p.name == argument or p.kind is p.VAR_KEYWORD for p in parameters):
        given = [p.name for p in parameters if p.name != "self"]
        raise ValueError(
            f"agent {name!r}: {method} must take {argument}=..., got ({', '.join(given)})"
        )


def source_of(name: str) -> Path | None:
    """Return the file of an agent's module, which `find` has imported; None for others."""
    module = sys.modules.get(name.partition(":")[0]) if ":" in name else None
    file = getattr(module, "__file__", None)
    return None if file is None else Path(file)


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """Turn whatever goes wrong in somebody's agent into one line with the place in its file.

    Raises:
        RuntimeError: If anything is raised inside the block.
    """
    try:
        yield
    except Exception as error:
        file = source_of(name)
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        place = f" ({file}, line {lines[-1]})" if lines else ""
        message = f"agent {name!r} failed: {type(error).__name__}: {error}{place}"
        raise RuntimeError(message) from error
