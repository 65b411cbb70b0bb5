"""Lines on a console that are text, whatever is in them."""

from __future__ import annotations

from rich.console import Console

__all__ = ["printable", "say"]


def say(console: Console, text: str) -> None:
    """Print lines as they are: not broken, not coloured, and no part of them taken for markup."""
    lines = "\n".join(map(printable, text.split("\n")))
    console.print(lines, soft_wrap=True, markup=False, highlight=False)


def printable(text: str) -> str:
    """Return a text with codes for what a terminal would obey, as in names of strangers' files."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
