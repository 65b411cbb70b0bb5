"""`compress-env NAME ...`, or `python -m experiments NAME ...`: every command, and its question."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

import experiments
from compress_env.names import nearest

__all__ = ["GROUPS", "commands", "main"]

GROUPS = {
    "the job": ("compress", "train", "tables", "smallest", "throughput"),
    "the job, beside other ways to do it": ("rivals", "rival"),
    "agents that compress": ("trial", "benchmark", "budgets", "suite", "tune", "volatility"),
    "agents on Gymnasium's tasks": ("control", "ppo_penalties"),
    "what papers say of layers": (
        "importance_stability",
        "importance_benefit",
        "single_layer",
        "information_dropout",
    ),
    "many runs at once": ("sweep",),
}
"""Commands by what they are about, in the order in which `--help` shows them."""


def commands() -> dict[str, str]:
    """Return the question of every command by its name, in alphabetical order."""
    rooms = [room.name for room in pkgutil.iter_modules(experiments.__path__) if room.ispkg]
    names = [name for name in rooms if importlib.util.find_spec(f"experiments.{name}.__main__")]
    docs = {name: importlib.import_module(f"experiments.{name}").__doc__ or "" for name in names}
    return {name: doc.partition("\n")[0] for name, doc in docs.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, list all of them, or tell the version.

    Args:
        arguments: Those of the command line when None.

    Raises:
        SystemExit: If there is no such command: status 2.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    known = commands()
    if name in ("-h", "--help"):
        sys.stdout.write(_overview(known))
    elif name == "--version":
        sys.stdout.write(f"compress-env {importlib.import_module('compress_env').__version__}\n")
    elif name.replace("-", "_") in known:
        name = name.replace("-", "_")
        is_module = Path(sys.argv[0]).name == "__main__.py"
        called = f"python -m experiments.{name}" if is_module else f"compress-env {name}"
        sys.argv = [called, *rest]
        importlib.import_module(f"experiments.{name}.{name}").main()
    else:
        hint = nearest(name.replace("-", "_"), known)
        sys.stderr.write(f"error: no command {name!r}{hint} (compress-env --help lists them)\n")
        sys.exit(2)


def _overview(known: dict[str, str]) -> str:
    groups = "\n".join(
        f"{about}:\n" + "".join(f"  {name:<22}{known[name]}\n" for name in names)
        for about, names in GROUPS.items()
    )
    return (
        "usage: compress-env NAME [options] | --help | --version\n\n"
        f"{groups}\n`compress-env NAME --help` tells the options of a command, which "
        "`python -m experiments.NAME` runs too.\n"
    )


if __name__ == "__main__":
    main()
