"""Networks by the decisions that led to them, kept where a copy costs less than what it saves."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from time import perf_counter
from typing import Generic, Protocol, TypeVar

from torch import nn

from compress_env.store.store import Executed, Prefix

__all__ = ["COPYING_SHARE", "PrefixNetworks", "SnapshotCache"]

COPYING_SHARE = 0.02
"""Part of the time of decisions that copies nobody may ever ask for are allowed to take."""

Key = tuple[int, Prefix]


class Network(Protocol):
    """A network and whatever must be known of it to compress it further."""

    model: nn.Module


N = TypeVar("N", bound=Network)


class SnapshotCache(Generic[N]):
    """Copies of networks, the least recently used of which go when there are too many bytes."""

    def __init__(self, max_bytes: int) -> None:
        """Keep at most `max_bytes` of parameters and buffers; 0 keeps nothing."""
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._kept: OrderedDict[Key, tuple[N, int]] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of copies."""
        return len(self._kept)

    def __contains__(self, key: Key) -> bool:
        """Return whether there is a copy for a key."""
        return key in self._kept

    def put(self, key: Key, network: N) -> None:
        """Keep a copy of a network, unless it alone is too large."""
        if self.max_bytes == 0 or key in self._kept:
            return
        size = _count_bytes(network.model)
        if size > self.max_bytes:
            return
        self._kept[key] = (copy.deepcopy(network), size)
        self.n_bytes += size
        while self.n_bytes > self.max_bytes:
            _, (_, gone) = self._kept.popitem(last=False)
            self.n_bytes -= gone

    def clear(self) -> None:
        """Let go of every copy."""
        self._kept.clear()
        self.n_bytes = 0

    def copy_of(self, key: Key) -> N:
        """Return a copy of the copy, which counts as a use.

        Raises:
            KeyError: If there is none.
        """
        self._kept.move_to_end(key)
        return copy.deepcopy(self._kept[key][0])


class PrefixNetworks(Generic[N]):
    """The network that any sequence of decisions leads to, from the nearest one at hand.

    At hand are the network asked for last, the snapshots, and the uncompressed network. Two kinds
    of networks are kept as snapshots:

    - Where several decisions at once are missing, somebody has been at the network before the last
      one already, and has gone on another way. It is kept if making it took longer than a copy.
    - Any other may be of use too, or never. Copies of these take up to `COPYING_SHARE` of the time
      of decisions: all networks are kept where decisions take long, few where they are quick.
    """

    def __init__(
        self,
        fresh: Callable[[], N],
        advance: Callable[[N, int, int, Executed], None],
        n_layers: int,
        max_bytes: int,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """Start without any network.

        Args:
            fresh: Makes a copy of the uncompressed network.
            advance: Carries out the decision of layer t in place: (network, seed, t, executed).
            n_layers: Length of the walk. A finished network is not kept: nothing follows from it.
            max_bytes: Bound of the snapshots.
            clock: Tells the time in seconds.
        """
        self._fresh = fresh
        self._advance = advance
        self._n_layers = n_layers
        self._clock = clock
        self.snapshots: SnapshotCache[N] = SnapshotCache(max_bytes)
        self._last: tuple[Key, N] | None = None
        self.copying_share = COPYING_SHARE
        self._copy_s = 0.0  # what the last copy took
        self._copying_s = 0.0  # what copies have taken that nobody has asked for
        self._advancing_s = 0.0

    @property
    def last(self) -> tuple[Key, N] | None:
        """The decisions that led to the network asked for last, and the network itself."""
        return self._last

    @last.setter
    def last(self, last: tuple[Key, N] | None) -> None:
        self._last = last

    def forget_last(self) -> None:
        """Let go of the network asked for last, which the caller may have changed."""
        self._last = None

    def forget(self) -> None:
        """Let go of every network."""
        self._last = None
        self.snapshots.clear()

    def at(self, seed: int, prefix: Prefix) -> N:
        """Return the network after `prefix`, changing the one returned last.

        Args:
            seed: Seed of the transitions.
            prefix: The executed values.

        Raises:
            FloatingPointError: If a decision fails; likewise `torch.OutOfMemoryError`.
        """
        n_done, network = self._nearest(seed, prefix)
        self._last = None  # should a decision fail, the network is of no use
        since_nearest_s = 0.0
        for t in range(n_done, len(prefix)):
            since_nearest_s += self._take(network, seed, t, prefix[t])
            if t + 1 < self._n_layers:
                saves_s = since_nearest_s if t + 2 == len(prefix) else 0.0
                self._consider((seed, prefix[: t + 1]), network, saves_s)
        self._last = (seed, prefix), network
        return network

    def follow(self, seed: int, prefix: Prefix) -> N:
        """Go on from the network asked for last, whatever has been done to it, and keep no copy."""
        if self._last is None:
            return self.at(seed, prefix)
        (_, done), network = self._last
        for t in range(len(done), len(prefix)):
            self._advance(network, seed, t, prefix[t])
        self._last = (seed, prefix), network
        return network

    def _nearest(self, seed: int, prefix: Prefix) -> tuple[int, N]:
        """Return how many decisions are done already, and the network after them."""
        for n_done in range(len(prefix), 0, -1):
            key = (seed, prefix[:n_done])
            if self._last is not None and self._last[0] == key:
                return n_done, self._last[1]
            if key in self.snapshots:
                return n_done, self.snapshots.copy_of(key)
        start = self._clock()
        network = self._fresh()
        self._copy_s = self._clock() - start
        return 0, network

    def _take(self, network: N, seed: int, t: int, executed: Executed) -> float:
        """Carry out a decision, and return the seconds that it took."""
        start = self._clock()
        self._advance(network, seed, t, executed)
        seconds = self._clock() - start
        self._advancing_s += seconds
        return seconds

    def _consider(self, key: Key, network: N, saves_s: float) -> None:
        """Keep a copy of a network, if that is worth its time.

        Args:
            key: The network's key.
            network: The network.
            saves_s: Seconds that the copy will save whoever comes here again; 0 if nobody has come
                twice.
        """
        is_wanted = saves_s > self._copy_s
        allowed_s = self.copying_share * self._advancing_s
        if not is_wanted and self._copying_s + self._copy_s > allowed_s:
            return
        start = self._clock()
        self.snapshots.put(key, network)
        if not is_wanted:
            self._copying_s += self._clock() - start


def _count_bytes(model: nn.Module) -> int:
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
