"""Lines on a console that are text, whatever is in them."""

from __future__ import annotations

from rich.console import Console

__all__ = ["say"]


def say(console: Console, text: str) -> None:
    """Print a line as it is: not broken, not coloured, and no part of it taken for markup."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)
