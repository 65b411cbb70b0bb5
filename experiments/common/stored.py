"""Reads what is in the folder of a run, and believes none of it: anybody may have made the folder.

A file is read up to a size, as text in UTF-8, and whatever is wrong with it is a `ValueError` of
one line with its name. Where only `NAME.gz` is there, it is read in place of NAME. A name from a
file becomes a path only if `check_name` accepts it, and `check_tree` refuses a folder with links
out of it, so that nothing outside is written or deleted.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import math
import os
import re
import stat
import types
import typing
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import pandas as pd

__all__ = [
    "check_columns",
    "check_name",
    "check_tree",
    "find_stored",
    "own_name",
    "parse",
    "read_object",
    "read_objects",
    "read_table",
    "restore",
    "typed",
]

T = TypeVar("T")
MAX_BYTES = 256 * 1024**2
"""No file of a run that is text is larger."""
MAX_VALUES = 2_000_000
"""No file of a run has more cells of a table, or values of JSON: each takes a hundred bytes."""
MAX_NAME = 200
MAX_SHOWN = 60
"""Characters of a wrong value in an error."""
_LARGEST = 2**63
_BETWEEN_VALUES = (b",", b"\n", b"\r", b"[", b"{")
_NAME = re.compile(r"[\w+-][\w.+-]*")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def check_name(name: object) -> str:
    """Return a name if it can be that of a file or a folder, and nothing but that.

    Raises:
        ValueError: If it holds anything but letters, digits and `_.+-`, begins with a dot, or is
            longer than 200 characters.
    """
    if isinstance(name, str) and len(name) <= MAX_NAME and _NAME.fullmatch(name):
        return name
    raise ValueError(
        f"{_short(name)} is not a name for a cell: expected letters, digits, '_', '.', '+' "
        "and '-', no dot at the beginning"
    )


def own_name(path: object) -> str:
    """Return the name of the cell whose folder `cells/NAME` is.

    Raises:
        ValueError: If it is not such a path.
    """
    if not isinstance(path, str) or not path.startswith("cells/"):
        raise ValueError(f"expected cells/NAME, got {_short(path)}")
    return check_name(path.removeprefix("cells/"))


def check_tree(folder: Path) -> None:
    """Check that a folder holds files and folders alone, and no link that leads out of it.

    The folder itself may be a link. One that is not there is no error.

    Raises:
        ValueError: If there is anything else.
    """
    root = folder.resolve()
    for where, folders, files in os.walk(root):  # which follows no links
        for name in (*folders, *files):
            path = Path(where, name)
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # by now
                continue
            if stat.S_ISLNK(mode) and not _stays_inside(path, root):
                raise ValueError(f"{str(path)!r} is a link that leads out of {str(folder)!r}")
            if not (stat.S_ISLNK(mode) or stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise ValueError(f"{str(path)!r} is neither a file nor a folder")


def _stays_inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a link to itself
        return False


def find_stored(path: Path) -> Path | None:
    """Return a file, or the compressed one, `NAME.gz`, or None where neither is there."""
    both = (path, path.with_name(f"{path.name}.gz"))
    return next((each for each in both if each.is_file()), None)


def _read_text(path: Path) -> str:
    found = find_stored(path)
    if found is None:  # or a pipe, reading which would not come to an end
        raise FileNotFoundError(f"No such file: {str(path)!r}")
    try:
        with found.open("rb") if found == path else gzip.open(found) as file:
            content = file.read(MAX_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{str(found)!r} cannot be decompressed: {error}") from None
    if len(content) > MAX_BYTES:
        raise ValueError(f"{str(path)!r} is larger than {MAX_BYTES // 1024**2} MiB")
    if sum(map(content.count, _BETWEEN_VALUES)) > MAX_VALUES:
        raise ValueError(f"{str(path)!r} has more than {MAX_VALUES:,} values")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not in UTF-8: byte {error.start}") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        ValueError: If it holds something else.
        FileNotFoundError: If there is no such file.
    """
    return _loads(_read_text(path), repr(str(path)))


def read_objects(path: Path) -> list[dict[str, Any]]:
    """Read a file with a JSON object on every line.

    Raises:
        ValueError: If a line holds something else.
        FileNotFoundError: If there is no such file.
    """
    lines = _read_text(path).splitlines()
    return [_loads(line, f"{str(path)!r}, line {n}") for n, line in enumerate(lines, 1)]


def _loads(text: str, place: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"{place} is no JSON that can be read: nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{place} is no JSON that can be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{place} must hold a JSON object, got {_short(content)}")
    return content


def read_table(path: Path, columns: Iterable[str] = ()) -> pd.DataFrame:
    """Read a CSV file as text, cell by cell as it was written.

    Args:
        path: The file.
        columns: Columns that must be there.

    Raises:
        ValueError: If it is no table, or lacks a column.
        FileNotFoundError: If there is no such file.
    """
    csv.field_size_limit(MAX_BYTES)
    try:
        rows = list(csv.reader(io.StringIO(_read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"{str(path)!r} is no table: {error}") from None
    rows = [row for row in rows if row]
    heads = rows[0] if rows else []
    if not heads or len(set(heads)) < len(heads):
        raise ValueError(f"{str(path)!r} is no table: expected columns of different names")
    for number, row in enumerate(rows[1:], 1):
        if len(row) != len(heads):
            raise ValueError(
                f"{str(path)!r}, row {number}: expected {len(heads)} cells, got {len(row)}"
            )
    table = pd.DataFrame(rows[1:], columns=heads, dtype=object)
    check_columns(path, table, columns)
    return table


def check_columns(path: Path, table: pd.DataFrame, columns: Iterable[str]) -> None:
    """Check that a table has some columns.

    Raises:
        ValueError: If it lacks one.
    """
    missing = ", ".join(name for name in columns if name not in table)
    if missing:
        raise ValueError(f"{str(path)!r} has no column {missing}")


def parse(path: Path, table: pd.DataFrame, kinds: Mapping[str, Any]) -> pd.DataFrame:
    """Turn the columns of a table that are named in `kinds`, as far as they are there, into values.

    Args:
        path: The table's file, for errors.
        table: From `read_table`.
        kinds: Type by column: str, int, float, bool, or one of these or None, an empty cell.

    Raises:
        ValueError: If a cell holds something else.
    """
    known = [name for name in kinds if name in table]
    values = {
        name: [_parsed(path, n, name, kinds[name], x) for n, x in enumerate(table[name], 1)]
        for name in known
    }
    return table.assign(**values)


def _parsed(path: Path, row: int, name: str, kind: Any, text: str) -> Any:
    try:
        return _from_text(kind, text)
    except (ValueError, TypeError, OverflowError, KeyError):
        expected = _describe(kind)
        raise ValueError(
            f"{str(path)!r}, row {row}: {name} must be {expected}, got {_short(text)}"
        ) from None


def _from_text(kind: Any, text: str) -> Any:
    options = get_args(kind)
    if options:
        (one,) = (option for option in options if option is not types.NoneType)
        return _from_text(one, text) if text else None
    if kind is int and float(text) == int(float(text)):  # an empty cell beside makes it 8.0
        return typed(int, int(float(text)))
    readers: dict[Any, Callable[[str], Any]] = {
        str: str,
        int: int,
        float: _finite,
        bool: _BOOLEANS.__getitem__,
    }
    return readers[kind](text)


def _finite(text: str) -> float:
    number: float = typed(float, float(text))
    return number


_BOOLEANS = {"True": True, "False": False}


def restore(kind: type[T], stored: Mapping[str, Any]) -> T:
    """Make a dataclass again from what JSON has kept of it; other entries are left alone.

    Raises:
        ValueError: If a field is missing, or holds something else than it should.
    """
    hints = typing.get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name not in stored:
            raise ValueError(f"no {field.name!r} in it")
        try:
            values[field.name] = typed(hints[field.name], stored[field.name])
        except TypeError as error:
            raise ValueError(f"{field.name} must be {error}") from None
    return kind(**values)


def typed(kind: Any, value: Any) -> Any:
    """Turn what JSON has made of a value into what it was: lists are tuples, texts may be paths.

    Raises:
        TypeError: If it is not of that kind; the message says what was expected and what came.
    """
    origin, options = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _first_of(options, kind, value)
    if origin is tuple and isinstance(value, list | tuple):
        return _tuple_of(options, kind, value)
    if kind is Path and isinstance(value, str) and "\0" not in value:
        return Path(value)
    accepts = _ACCEPTS.get(kind)
    if origin is Literal:
        fits = any(value == option and type(value) is type(option) for option in options)
    else:
        fits = accepts is not None and accepts(value)
    if not fits:
        raise TypeError(f"{_describe(kind)}, got {_short(value)}")
    return float(value) if kind is float else value


_ACCEPTS: dict[Any, Callable[[Any], bool]] = {
    types.NoneType: lambda x: x is None,
    bool: lambda x: isinstance(x, bool),
    int: lambda x: type(x) is int and abs(x) < _LARGEST,
    float: lambda x: type(x) in (int, float) and abs(x) < _LARGEST and math.isfinite(x),
    str: lambda x: isinstance(x, str),
}


def _first_of(options: tuple[Any, ...], kind: Any, value: Any) -> Any:
    for option in options:
        try:
            return typed(option, value)
        except TypeError:
            continue
    raise TypeError(f"{_describe(kind)}, got {_short(value)}")


def _tuple_of(options: tuple[Any, ...], kind: Any, value: Sequence[Any]) -> tuple[Any, ...]:
    if options[1:] == (...,):
        return tuple(typed(options[0], each) for each in value)
    if len(value) != len(options):
        raise TypeError(f"{_describe(kind)}, got {_short(value)}")
    return tuple(typed(option, each) for option, each in zip(options, value, strict=True))


_NAMES = {
    types.NoneType: "none",
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    Path: "a path",
}


def _describe(kind: Any) -> str:
    origin, options = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(repr(option) for option in options)
    if origin is tuple:
        return "a list of " + ", ".join(_describe(x) for x in options if x is not ...)
    if options:
        return " or ".join(_describe(option) for option in options)
    return _NAMES.get(kind, str(kind))
