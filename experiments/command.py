"""What every experiment does when it is run from the command line."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TypeVar

import tyro
from rich.console import Console

__all__ = ["Interrupted", "interruptible", "one_line", "resume_hint", "run_command"]

C = TypeVar("C")
EXPECTED = (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError, ImportError)


class Interrupted(BaseException):
    """Somebody has asked the process to stop; not an error, so that nothing mistakes it for one."""

    def __init__(self, signal_number: int) -> None:
        """Keep the signal, which decides the exit status."""
        super().__init__(f"interrupted by {signal.Signals(signal_number).name}")
        self.exit_status = 128 + signal_number


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT and SIGTERM inside the block into `Interrupted`, the first of them only."""

    def stop(signal_number: int, frame: FrameType | None) -> NoReturn:
        for each in handled:
            signal.signal(each, signal.SIG_DFL)  # who asks twice is in a hurry
        raise Interrupted(signal_number)

    handled = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, before in handled.items():
            signal.signal(each, before)


def run_command(config_class: type[C], run: Callable[[C, Console], Any], description: str) -> None:
    """Parse the command line and run an experiment; whatever goes wrong ends it with one line.

    Exit status: 0, 1 for an error, 130 for SIGINT, 143 for SIGTERM.

    Args:
        config_class: The experiment's dataclass.
        run: Runs it.
        description: What `--help` says.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("matplotlib", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)
    config = tyro.cli(config_class, description=description)
    try:
        with interruptible():
            run(config, Console())
    except Interrupted as stop:
        sys.stderr.write(f"{one_line(stop)}\n")
        sys.exit(stop.exit_status)
    except EXPECTED as error:
        sys.exit(f"error: {one_line(error)}")


def resume_hint(module: str, folder: object) -> str:
    """Return the sentence that says how to go on; meant as a note of an exception."""
    return f"go on with: python -m {module} --resume {shlex.quote(str(folder))}"


def one_line(error: BaseException) -> str:
    """Return an error's message and its notes as one line.

    Of a message with a traceback in it, as a `DataLoader`'s worker sends, the last line counts.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    has_traceback = any(line.startswith("Traceback") for line in lines)
    message = (lines[-1] if has_traceback else " ".join(lines)) if lines else type(error).__name__
    return "; ".join([message, *getattr(error, "__notes__", [])])
