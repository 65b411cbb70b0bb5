"""What Sphinx does with the texts of pages and docstrings before it reads them."""

from __future__ import annotations

import re
from typing import Any

from docs.reference_pages import SPECIFICATIONS

__all__ = ["link_modules", "prepare_docstring", "skip_aliases"]

LINK = re.compile(r"\[`?([^\]`]+)`?\]\(\.\./((?:compress_env|agents)/[\w/]+)\.py\)")
ROOM = re.compile(r"\[(`[\w/]+/`)\]\(\.\./experiments/[\w/]+\.py\)")


def link_modules(app: Any, page: str, source: list[str]) -> None:
    """Let links to the files of modules lead to their entries in the reference.

    Experiments have none: what they ask and find is on pages of their own.
    """

    def role(match: re.Match[str]) -> str:
        module = match[2].replace("/", ".").removesuffix(".__init__")
        return f"{{py:mod}}`{match[1]} <{module}>`"

    source[0] = ROOM.sub(r"\1", LINK.sub(role, source[0]))


def prepare_docstring(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Change the lines of a docstring, Google's and Markdown, in place to what napoleon takes."""
    if name.rpartition(".")[2] in SPECIFICATIONS and what == "class":
        first = next(i for i, line in enumerate(lines) if line.startswith("## "))
        lines[first:] = ["The full specification is on the page :doc:`/environments`."]
    lines[:] = [escape(re.sub(r":(?:class|func|meth|mod):(?=`)", "", line)) for line in lines]
    if what in ("attribute", "data", "property"):
        lines.insert(0, "\\")  # nothing, or napoleon takes what precedes a colon for a type


def escape(line: str) -> str:
    """Keep asterisks and bars outside of code and bold text from being read as markup."""
    parts = re.split(r"(``.*?``|`.*?`|\*\*[^*\s][^*]*\*\*)", line)
    parts[::2] = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def skip_aliases(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out a named tuple's fields, which its docstring describes."""
    alias = str(getattr(obj, "__doc__", "")).startswith("Alias for field number")
    return True if alias else None
