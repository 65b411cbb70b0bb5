"""Worker processes that read minibatches, and wait for the next ones."""

from __future__ import annotations

import multiprocessing
import weakref
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from compress_env.data.items import Item, ItemReader, Unreadable, stack_items

__all__ = ["Keys", "WarmLoader"]

Keys = list[tuple[int, int]]
"""The (index, seed) of each image of a minibatch."""
_N_WARM = 3
"""Loaders of a process whose workers wait at the same time: for calibration, fine-tuning and
scoring, which take turns in every step."""


class WarmLoader:
    """Reads minibatches in worker processes, which outlive a call where another may follow.

    So the 20 minibatches of a step do not pay for starting them. The workers end with the loader,
    or when three others have been read from since. A copy, or an unpickled one, has none yet.

    Args:
        reader: Reads the items; workers have a copy of it, made when they start.
        num_workers: Number of processes; 0 reads in this one, as do processes that may not have
            children, such as workers of a vectorized environment.
        pin_memory: Whether minibatches lie where a GPU can fetch them by itself.
    """

    def __init__(self, reader: ItemReader, num_workers: int, *, pin_memory: bool) -> None:
        """Start nothing yet."""
        self._reader, self._num_workers, self._pin_memory = reader, num_workers, pin_memory
        self._begin()

    def _begin(self) -> None:
        self._plan, self._is_busy = _Plan(), False
        self._held: list[DataLoader[Any]] = []  # one, once there are workers
        # Held from here, loaders are no part of a circle whose queues, collected before them, could
        # not tell the workers to end: each would be waited for in vain.
        weakref.finalize(self, self._held.clear)

    def read(
        self, batches: Iterable[Keys], n_batches: int
    ) -> Generator[Item | Unreadable, None, None]:
        """Yield one minibatch for each of `batches`, or what cannot be read.

        Args:
            batches: What to read; asked for when its turn comes.
            n_batches: How many they are.

        Raises:
            RuntimeError: If a worker dies.
        """
        may_start = not multiprocessing.current_process().daemon
        # Starting processes does not pay for a single minibatch.
        if self._num_workers == 0 or n_batches < 2 or not may_start:
            yield from self._make(batches, 0)
        elif self._is_busy:  # two calls take turns
            yield from self._make(batches, self._num_workers)
        else:
            yield from self._read_warm(batches)

    def _read_warm(self, batches: Iterable[Keys]) -> Iterator[Item | Unreadable]:
        if not self._held:
            self._held.append(self._make(self._plan, self._num_workers, persistent=True))
        _use(self)
        self._plan.batches, self._is_busy = batches, True
        try:
            yield from self._held[0]
        except Exception:
            self.end_workers()
            raise
        finally:
            self._plan.batches, self._is_busy = (), False

    def _make(self, batches: Any, num_workers: int, *, persistent: bool = False) -> DataLoader[Any]:
        return DataLoader(
            self._reader,
            batch_sampler=batches,
            collate_fn=stack_items,
            num_workers=num_workers,
            pin_memory=self._pin_memory,
            generator=torch.Generator(),
            persistent_workers=persistent,
        )

    @property
    def is_warm(self) -> bool:
        """Whether workers wait."""
        return bool(self._held)

    def end_workers(self) -> None:
        """End the workers; the next call starts others."""
        self._held.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the workers out."""
        own = ("_reader", "_num_workers", "_pin_memory")
        return {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin without workers."""
        vars(self).update(state)
        self._begin()


class _Plan:
    """What a loader that goes on reads next."""

    def __init__(self) -> None:
        """Read nothing."""
        self.batches: Iterable[Keys] = ()

    def __iter__(self) -> Iterator[Keys]:
        """Begin to read."""
        return iter(self.batches)


_used: list[weakref.ref[WarmLoader]] = []
"""Loaders of this process that have workers, the last used one last."""


def _use(loader: WarmLoader) -> None:
    """Note that a loader is used, and end the workers of those that have not been for long."""
    known = [each for each in (ref() for ref in _used) if each is not None and each is not loader]
    idle = [each for each in known if each.is_warm]
    for each in idle[: len(idle) + 1 - _N_WARM]:
        each.end_workers()
    _used[:] = [weakref.ref(each) for each in [*idle, loader] if each.is_warm]
