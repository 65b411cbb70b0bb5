"""What an error that foreign code has raised says, in a few words."""

from __future__ import annotations

__all__ = ["reason_of"]

_BARE = (AssertionError, AttributeError, LookupError, NameError)
"""Messages of these may be a name alone, which says nothing without the kind of error."""


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, with the kind of error where it takes both."""
    line = next(iter(str(error).splitlines()), "")
    kind = type(error).__name__
    if not line:
        return kind
    return f"{kind}: {line}" if isinstance(error, _BARE) else line
