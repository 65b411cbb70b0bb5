"""What an error that foreign code has raised says, in a few words."""

from __future__ import annotations

__all__ = ["reason_of"]

_TELLING = (ArithmeticError, EOFError, OSError, RuntimeError, SyntaxError, TypeError, ValueError)
"""Messages of these are sentences as a rule; those of others may be a name alone."""


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, with the kind of error where it takes both."""
    line = next(iter(str(error).splitlines()), "")
    kind = type(error).__name__
    if not line:
        return kind
    return line if isinstance(error, _TELLING) else f"{kind}: {line}"
