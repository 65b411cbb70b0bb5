"""What every experiment does when it is run from the command line."""

from __future__ import annotations

import io
import logging
import shlex
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TypeVar

from rich.console import Console

from experiments.common.cli.given import given_in, giving, to_be_named
from experiments.common.cli.parsing import UsageError, as_called, parse_command
from experiments.common.cli.say import printable, say
from experiments.common.cli.threads import settle_threads
from experiments.common.run_folder import RunFolder, resume_run, run_path

__all__ = [
    "Interrupted",
    "ending_in_one_line",
    "interruptible",
    "one_line",
    "preparing",
    "resume_hint",
    "run_command",
    "run_measurement",
]

C = TypeVar("C")
E = TypeVar("E")
R = TypeVar("R")
EXPECTED = (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError, ImportError)
HINT = "go on with: "
AGAIN_S = 0.1
"""Seconds after which a stop that somebody has caught comes again."""


class Interrupted(BaseException):
    """Somebody has asked the process to stop; not an error, so that nothing mistakes it for one."""

    def __init__(self, signal_number: int) -> None:
        """Keep the signal, which decides the exit status."""
        super().__init__(f"interrupted by {signal.Signals(signal_number).name}")
        self.exit_status = 128 + signal_number


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT and SIGTERM inside the block into `Interrupted`, the first of them only.

    Libraries catch whatever comes where they import what they can do without, and finalizers
    whatever they raise: an `Interrupted` that is gone while the block goes on comes again. While it
    is on its way somebody holds it, so that what cleans up meanwhile is left alone.
    """
    stop = _Stop()
    try:
        yield
    finally:
        stop.close()


class _Stop:
    """Raises `Interrupted` when the first signal comes, and again when that is gone."""

    def __init__(self) -> None:
        """Handle signals from now on."""
        self._number = 0
        self._alarms: list[weakref.finalize[..., Interrupted]] = []
        signals = signal.SIGINT, signal.SIGTERM
        self._before: dict[int, Any] = {x: signal.signal(x, self._interrupt) for x in signals}

    def _interrupt(self, number: int, frame: FrameType | None) -> NoReturn:
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)  # who asks twice is in a hurry
        self._number = number
        if hasattr(signal, "setitimer"):
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._again)
        raise self._interrupted()

    def _again(self, number: int, frame: FrameType | None) -> None:
        if self._number:
            raise self._interrupted()

    def _interrupted(self) -> Interrupted:
        """Return what is raised, to which no frame that it leaves may refer."""
        error = Interrupted(self._number)
        if hasattr(signal, "setitimer"):
            timer = signal.ITIMER_REAL
            self._alarms.append(weakref.finalize(error, signal.setitimer, timer, AGAIN_S))
        return error

    def close(self) -> None:
        """Handle signals as before."""
        self._number = 0
        for alarm in self._alarms:
            alarm.detach()
        if self._alarms:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)


def run_command(
    config_class: type[C],
    run: Callable[[C, Console], Any],
    description: str,
    *,
    computes: bool = True,
) -> None:
    """Parse the command line and run an experiment; whatever goes wrong ends it with one line.

    Exit status: 0, 1 for an error, 2 for a wrong command line, 130 for SIGINT, 143 for SIGTERM.

    Args:
        config_class: The experiment's dataclass.
        run: Runs it.
        description: What `--help` says.
        computes: Whether to say first on how many threads.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("compress_env").setLevel(logging.INFO)
    with ending_in_one_line(), giving(given_in(config_class, sys.argv[1:])):
        config, console = parse_command(config_class, sys.argv[1:], description), Console()
        if computes:
            console.print(settle_threads(getattr(config, "resume", None)), highlight=False)
        run(config, console)


@contextmanager
def ending_in_one_line() -> Iterator[None]:
    """End the process with one line for whatever goes wrong inside the block.

    What a terminal's encoding cannot show, such as the name of a folder on an ASCII terminal, is
    shown by its code.

    Raises:
        SystemExit: If something goes wrong: status 1 for an error, 2 for a wrong command line, 130
            for SIGINT, 143 for SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with interruptible():
            yield
    except Interrupted as stop:
        sys.stderr.write(f"{one_line(stop)}\n")
        sys.exit(stop.exit_status)
    except UsageError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        sys.exit(2)
    except EXPECTED as error:
        sys.exit(f"error: {one_line(error)}")


def run_measurement(
    name: str,
    config: Any,
    console: Console,
    prepare: Callable[[Any, RunFolder], E],
    measure: Callable[[E, Console], R],
) -> R:
    """Measure in a new run folder, or go on in that of a stopped measurement.

    Args:
        name: Name of the experiment.
        config: Its dataclass, with the fields `out` and `resume`.
        console: Where progress goes.
        prepare: Checks the settings and loads what is needed; see `preparing`.
        measure: Measures, and writes the folder's files.

    Returns:
        What `measure` returns.

    Raises:
        ValueError: If a setting is wrong, or there is nothing left to measure.
    """
    if config.resume is not None:
        config, folder = resume_run(config, config.resume)
        if folder.is_finished:
            folder.close()
            raise ValueError(f"{str(folder.path)!r} has nothing left to measure")
    else:
        folder = RunFolder(run_path(name, config.out), config)
    hint = resume_hint(f"experiments.{name}", folder.path, config)
    with preparing(folder, hint):
        prepared = prepare(config, folder)
    try:
        result = measure(prepared, console)
    except BaseException as stop:
        stop.add_note(hint)
        raise
    finally:
        folder.close()
    say(console, f"run folder: {folder.path}")
    return result


@contextmanager
def preparing(folder: RunFolder, hint: str) -> Iterator[None]:
    """Leave nothing, or something to go on from, whatever ends the preparation inside the block.

    A new folder without a state goes again, so that the same command works again. Any other stays.

    Args:
        folder: The run's folder.
        hint: Says how to go on in it.
    """
    try:
        yield
    except BaseException as stop:
        if folder.is_new and not folder.has_states:
            folder.discard()
        else:
            stop.add_note(hint)
            folder.close()
        raise


def resume_hint(module: str, folder: object, config: object = None) -> str:
    """Return the sentence that says how to go on; meant as a note of an exception.

    Args:
        module: Module of the experiment.
        folder: Its folder.
        config: The settings, of which those are named that the folder's word does not suffice for.
    """
    again = "".join(
        f" --{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name, value in to_be_named(config).items()
    )
    return f"{HINT}{as_called('python -m ' + module)}{again} --resume {shlex.quote(str(folder))}"


def one_line(error: BaseException) -> str:
    """Return an error's message and its notes as one line.

    Of a message with a traceback in it, as a `DataLoader`'s worker sends, the last line counts; of
    several notes that say how to go on, as of a run within another, that of the outermost.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    has_traceback = any(line.startswith("Traceback") for line in lines)
    message = (lines[-1] if has_traceback else " ".join(lines)) if lines else type(error).__name__
    notes = getattr(error, "__notes__", [])
    hints = [note for note in notes if note.startswith(HINT)]
    said = [message, *(note for note in notes if note not in hints), *hints[-1:]]
    return printable("; ".join(said))
