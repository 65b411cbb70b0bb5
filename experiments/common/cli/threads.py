"""On how many threads a command computes."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from experiments.common.stored import read_object

__all__ = ["settle_threads"]

MOST = 1024


def settle_threads(resume: Path | None = None) -> str:
    """Let PyTorch compute on one thread, or on as many as a run was begun with.

    Networks this small gain nothing from a second thread, and lose much where other work shares
    the cores. Sums in another order have other last digits: a run keeps its number. Whoever sets
    `OMP_NUM_THREADS` is obeyed.

    Args:
        resume: Folder of a run to go on with.

    Returns:
        A line that says how many there are, and why.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return _line(torch.get_num_threads(), "OMP_NUM_THREADS")
    begun = None if resume is None else _threads_of(resume)
    threadpool_limits(begun or 1)  # those of the algebra beneath NumPy and SciPy
    torch.set_num_threads(begun or 1)
    return _line(begun or 1, "as the run was begun with" if begun else "OMP_NUM_THREADS not set")


def _threads_of(folder: Path) -> int | None:
    """Return the threads that a run was begun with, or None where its folder does not tell."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        n_threads = read_object(folder / "config.json")["hardware"]["torch_threads"]
        return n_threads if type(n_threads) is int and 1 <= n_threads <= MOST else None
    return None


def _line(n_threads: int, reason: str) -> str:
    return f"{n_threads} thread{'' if n_threads == 1 else 's'} ({reason})"
