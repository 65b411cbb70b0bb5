"""A command line becomes settings, or one line that says what is wrong with it."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import tyro

from compress_env.names import nearest, nearest_path
from experiments.common.cli.renamed import RENAMED
from experiments.common.provenance import program

__all__ = ["UsageError", "as_called", "parse_command"]

C = TypeVar("C")
INPUTS = ("best_known", "checkpoint", "policy", "resume", "run", "runs", "sweeps", "weights")
"""Settings that name files or folders which must be there."""
SEEDS = ("seed", "seeds", "replay_seeds")
OTHERS = {"episodes": "evaluations", "n_episodes": "evaluations", "no_baselines": "compare"}
"""What is counted, or said, otherwise now by commands that have the new name alone."""
BY_TYRO = ("-h", "--help", "--tyro-print-completion", "--tyro-write-completion")
"""Options that print something and end the program."""


class UsageError(ValueError):
    """A command line that says nothing: a process ends with status 2 for it."""


def parse_command(
    config_class: type[C],
    arguments: Sequence[str],
    description: str | None = None,
    command: str = "",
) -> C:
    """Make settings of a command line; `--help` prints them and ends the program.

    Args:
        config_class: The command's dataclass.
        arguments: The command line, without the program.
        description: What `--help` says; the class's docstring when None.
        command: A word between the program and the arguments, such as `verify`.

    Raises:
        UsageError: If an option is unknown, has another name now, or has a value that it cannot
            have. The message is one line, with the nearest valid name.
        FileNotFoundError: If a file to be read is not there; likewise.
        SystemExit: If help was asked for.
    """
    given = list(arguments)
    prog = f"{program()} {command}".strip()
    # The examples in a description are called as this command was.
    told = as_called(description or config_class.__doc__ or "")
    if any(word.partition("=")[0] in BY_TYRO for word in given):
        return tyro.cli(config_class, args=given, prog=prog, description=told)
    _check_options(config_class, given)
    printed = StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            config = tyro.cli(config_class, args=given, prog=prog, description=told)
    except SystemExit:
        raise UsageError(_reason(config_class, printed.getvalue())) from None
    _check_inputs(config)
    _check_seeds(config)
    return config


def as_called(text: str) -> str:
    """Return a text whose commands are called as this one was: by the console script, or Python."""
    mine = "compress-env " if program().startswith("compress-env") else "python -m experiments."
    return re.sub(r"(compress-env |python -m experiments\.)(?=[a-z])", mine, text)


def _options(config_class: type[Any]) -> Iterator[str]:
    """Yield the options of a dataclass, without their dashes."""
    for field in dataclasses.fields(config_class):
        if not re.search("Positional|Suppress", str(field.type)):
            yield field.name
            if field.type in (bool, "bool"):
                yield f"no_{field.name}"


def _check_options(config_class: type[Any], arguments: Sequence[str]) -> None:
    """Check that all options are known; an unknown one is told its present or nearest name."""
    valid = list(_options(config_class))
    for option in arguments:
        name = option.partition("=")[0].removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name in valid:
            continue
        now = next((new for new in (RENAMED.get(name), OTHERS.get(name)) if new in valid), None)
        if now is not None:
            raise UsageError(f"{_option(name)} is called {_option(now)} now")
        hint = nearest(_option(name), map(_option, valid))
        raise UsageError(f"there is no option {_option(name)}{hint or '; --help lists them'}")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _reason(config_class: type[Any], printed: str) -> str:
    """Find the message in the box that tyro prints: heading, rule, message, rule."""
    lines = [line.strip(" │╭╮╰╯") for line in printed.splitlines()]
    parts = re.split(r"[-─]{8,}", " ".join(lines))
    text = " ".join(parts[1].split()) if len(parts) > 2 else "the command line cannot be read"
    missing = re.match(r"Missing from .*?: (\S+)", text)
    if missing is not None:
        return f"{missing[1]} is missing; --help tells more"
    choice = re.match(r"invalid choice '(.*)' for argument '--(?:\S*/--)?([\w-]+)'", text)
    if choice is not None:
        valid = _choices(config_class, choice[2].replace("-", "_"))
        hint = nearest(choice[1], valid) or ";"
        return f"--{choice[2]} cannot be {choice[1]!r}{hint} valid: {', '.join(valid)}"
    return text.removeprefix("Error parsing ")


def _choices(config_class: type[Any], name: str) -> list[str]:
    """Return the values that a setting may have, of which there are only some."""
    waiting, found = [typing.get_type_hints(config_class).get(name)], list[str]()
    while waiting:
        kind = waiting.pop()
        if get_origin(kind) is Literal:
            found += map(str, get_args(kind))
        else:
            waiting += get_args(kind)
    return found


def _check_seeds(config: Any) -> None:
    """Check that everything that draws takes the seeds.

    Raises:
        UsageError: If one is out of range.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name) if field.name in SEEDS else 0
        for seed in value if isinstance(value, tuple) else (value,):
            if seed is not None and not 0 <= seed < 2**32:
                raise UsageError(f"{_option(field.name)} must be in [0, 2**32 - 1], got {seed}")


def _check_inputs(config: Any) -> None:
    """Check that files and folders that are read are there.

    Raises:
        FileNotFoundError: If one is not.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name) if field.name in INPUTS else None
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path) and not path.exists():
                hint = nearest_path(path)
                raise FileNotFoundError(f"there is no {str(path)!r}{hint}")
