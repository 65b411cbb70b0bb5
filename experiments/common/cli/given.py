"""What the command line of this call has given, which is more to be believed than a file.

A setting that is given counts even where it is the default. Code of other modules is imported, and
files outside a run are written, only if this call names them: what a run's files say of them may be
anybody's word.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["HANDED_OVER", "WITH_CODE", "given_in", "giving", "is_given", "to_be_named", "trusted"]

C = TypeVar("C")
_GIVEN: ContextVar[frozenset[str] | None] = ContextVar("given", default=None)
WITH_CODE = ("agent", "algo", "task", "model", "data")
"""Settings that may name a module, before a colon."""
HANDED_OVER = "object:"
"""Begins the name of what a program hands over itself, so that nothing is imported for it."""
WRITING = {"store": None, "download": False}
"""Settings by which files outside a run are written, and their values without."""
PLACES = ("weights", "checkpoint", "policy", "data", "data_root")
"""Settings that tell a run where its network, policy and images are now."""
_logger = logging.getLogger("compress_env.experiments")


def given_in(config_class: type[Any], arguments: Sequence[str]) -> frozenset[str]:
    """Return the names of the settings that a command line has given.

    Args:
        config_class: The dataclass that it is for.
        arguments: The command line, which must be right.
    """
    names = {field.name for field in dataclasses.fields(config_class)}
    words = {
        word[2:].partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")
    }
    positive = {word.removeprefix("no_") for word in words}
    return frozenset(names & (words | positive))


@contextmanager
def giving(names: Collection[str]) -> Iterator[None]:
    """Let these settings, and no others, count as given inside the block."""
    token = _GIVEN.set(frozenset(names))
    try:
        yield
    finally:
        _GIVEN.reset(token)


def is_given(config: Any, name: str) -> bool:
    """Tell whether a setting was given; outside of `giving`, whether it is not the default."""
    names = _GIVEN.get()
    if names is not None:
        return name in names
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return bool(getattr(config, name) != defaults[name])


def trusted(settings: C, given: Collection[str], inside: Path) -> C:
    """Return settings from a file without those that only a command line may bring.

    Args:
        settings: A dataclass, as it was read.
        given: Names of the settings that this call has given itself.
        inside: The folder that the file is in, where anything may be written.

    Raises:
        ValueError: If they name a module, or tell an environment to write files.
    """
    found = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    told = {name: value for name, value in found.items() if name not in given}
    for name in WITH_CODE:
        if _would_import(str(told.get(name, ""))):
            raise ValueError(
                f"the code of {told[name]!r} is run only if the command line names it; add "
                f"--{name} {told[name]}"
            )
    if _writes(told.get("env_kwargs", "{}")):
        raise ValueError(
            "env_kwargs with store or download are taken from the command line alone; add "
            f"--env-kwargs {told['env_kwargs']!r}"
        )
    changes = {
        name: without
        for name, without in WRITING.items()
        if told.get(name, without) != without and not _is_inside(told[name], inside)
    }
    for name in changes:
        _logger.warning(
            "going on without %s=%s: only a command line may say so, not a file in %s",
            name, told[name], inside,
        )  # fmt: skip
    return dataclasses.replace(settings, **changes)  # type: ignore[type-var]


def _would_import(name: str) -> bool:
    """Tell whether a name is of code that this call has not brought: a program may have its own."""
    is_there = _GIVEN.get() is None and name.partition(":")[0] in sys.modules
    return ":" in name and not name.startswith(HANDED_OVER) and not is_there


def to_be_named(config: object) -> dict[str, Any]:
    """Return the settings that a command line must name again for a run to go on as it was."""
    told = _GIVEN.get() or frozenset()
    moved = [name for name in PLACES if name in told] if getattr(config, "resume", None) else []
    code = [name for name in WITH_CODE if _is_code(str(getattr(config, name, None)))]
    names = dict.fromkeys((*code, "store", *moved))
    found = {name: getattr(config, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _is_code(name: str) -> bool:
    return ":" in name and not name.startswith(HANDED_OVER)


def _writes(text: str) -> bool:
    """Tell whether keyword arguments of an environment, JSON, make it write files."""
    try:
        return bool(WRITING.keys() & json.loads(text).keys())
    except (ValueError, AttributeError, RecursionError):  # which the experiment's checks refuse
        return False


def _is_inside(value: Any, folder: Path) -> bool:
    return isinstance(value, Path) and value.resolve().is_relative_to(folder.resolve())
