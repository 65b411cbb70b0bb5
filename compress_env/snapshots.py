"""Networks by the decisions that led to them, so that none of these is ever carried out twice."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from torch import nn

from compress_env.store import Executed, Prefix

__all__ = ["PrefixNetworks", "SnapshotCache"]

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

    At hand are the network asked for last, the snapshots, and the uncompressed network.
    """

    def __init__(
        self,
        fresh: Callable[[], N],
        advance: Callable[[N, int, int, Executed], None],
        n_layers: int,
        max_bytes: int,
    ) -> None:
        """Start without any network.

        Args:
            fresh: Makes a copy of the uncompressed network.
            advance: Carries out the decision of layer t in place: (network, seed, t, executed).
            n_layers: Length of the walk. A finished network is not kept: nothing follows from it.
            max_bytes: Bound of the snapshots.
        """
        self._fresh = fresh
        self._advance = advance
        self._n_layers = n_layers
        self.snapshots: SnapshotCache[N] = SnapshotCache(max_bytes)
        self._last: tuple[Key, N] | None = None

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
        for t in range(n_done, len(prefix)):
            self._advance(network, seed, t, prefix[t])
            if t + 1 < self._n_layers:
                self.snapshots.put((seed, prefix[: t + 1]), network)
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
        return 0, self._fresh()


def _count_bytes(model: nn.Module) -> int:
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
