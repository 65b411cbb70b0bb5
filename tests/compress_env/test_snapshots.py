"""Which networks are kept, and that none is computed twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress_env.snapshots import PrefixNetworks, SnapshotCache
from compress_env.store import Executed, Prefix

N_LAYERS = 4
Key = tuple[int, Prefix]


class Numbers:
    """A network of `n` float32 weights, 4n bytes, and what was done to it."""

    def __init__(self, n: int = 1) -> None:
        self.model: nn.Module = nn.Linear(n, 1, bias=False)
        nn.init.zeros_(self.weight)
        self.done: list[tuple[int, int, Executed]] = []

    @property
    def weight(self) -> torch.Tensor:
        return self.model.get_parameter("weight").data


class Recorder:
    """Makes and advances networks, and counts what it does."""

    def __init__(self) -> None:
        self.n_fresh = 0
        self.advanced: list[int] = []
        self.fail_at: int | None = None

    def fresh(self) -> Numbers:
        self.n_fresh += 1
        return Numbers()

    def advance(self, network: Numbers, seed: int, t: int, executed: Executed) -> None:
        self.advanced.append(t)
        assert isinstance(executed, int)
        network.weight.mul_(10).add_(executed + 1000 * seed)
        if t == self.fail_at:
            raise FloatingPointError("weights are not finite")
        network.done.append((seed, t, executed))


def networks(max_bytes: int = 100) -> tuple[PrefixNetworks[Numbers], Recorder]:
    recorder = Recorder()
    return PrefixNetworks(recorder.fresh, recorder.advance, N_LAYERS, max_bytes), recorder


def key(number: int) -> Key:
    return (0, (number,))


def filled(max_bytes: int, n: int) -> SnapshotCache[Numbers]:
    cache: SnapshotCache[Numbers] = SnapshotCache(max_bytes)
    for number in range(n):
        cache.put(key(number), Numbers())
    return cache


def kept(cache: SnapshotCache[Any]) -> list[int]:
    return [number for number in range(20) if key(number) in cache]


class TestSnapshotCache:
    def test_the_least_recently_used_goes_first(self) -> None:
        cache = filled(max_bytes=12, n=3)
        cache.copy_of(key(0))
        cache.put(key(3), Numbers())
        assert kept(cache) == [0, 2, 3]
        cache.put(key(4), Numbers())
        assert kept(cache) == [0, 3, 4]

    def test_as_many_go_as_are_in_the_way(self) -> None:
        cache = filled(max_bytes=16, n=4)
        cache.put(key(4), Numbers(3))
        assert kept(cache) == [3, 4]
        assert cache.n_bytes == 16

    def test_one_that_is_too_large_is_not_kept_and_drives_none_out(self) -> None:
        cache = filled(max_bytes=12, n=3)
        cache.put(key(3), Numbers(4))
        assert kept(cache) == [0, 1, 2]
        assert cache.n_bytes == 12

    def test_buffers_count(self) -> None:
        cache: SnapshotCache[Numbers] = SnapshotCache(100)
        network = Numbers(2)
        network.model.register_buffer("steps", torch.zeros(3, dtype=torch.int64))
        cache.put(key(0), network)
        assert cache.n_bytes == 2 * 4 + 3 * 8

    def test_bytes_are_counted_once(self) -> None:
        cache = filled(max_bytes=12, n=2)
        cache.put(key(0), Numbers())
        assert (len(cache), cache.n_bytes) == (2, 8)
        cache.clear()
        assert (len(cache), cache.n_bytes, kept(cache)) == (0, 0, [])

    def test_no_bytes_keep_nothing(self) -> None:
        assert kept(filled(max_bytes=0, n=3)) == []

    def test_what_is_kept_is_a_copy_and_so_is_what_comes_back(self) -> None:
        cache: SnapshotCache[Numbers] = SnapshotCache(100)
        original = Numbers()
        cache.put(key(0), original)
        original.weight.fill_(1.0)
        original.done.append((0, 0, 0))
        copy = cache.copy_of(key(0))
        assert (float(copy.weight), copy.done) == (0.0, [])
        copy.weight.fill_(2.0)
        assert float(cache.copy_of(key(0)).weight) == 0.0

    def test_there_is_no_copy_of_what_is_not_kept(self) -> None:
        with pytest.raises(KeyError):
            filled(max_bytes=12, n=1).copy_of(key(5))


PREFIXES = st.lists(st.integers(0, 2), max_size=N_LAYERS).map(tuple)


@settings(max_examples=60)
@given(
    max_bytes=st.sampled_from([0, 4, 8, 20, 1000]),
    asked=st.lists(st.tuples(st.integers(0, 1), PREFIXES), max_size=15),
)
def test_only_what_is_not_at_hand_is_computed(
    max_bytes: int, asked: list[tuple[int, Prefix]]
) -> None:
    """Each network is the one computed from scratch; the cost is that of its missing layers."""
    cached, recorder = networks(max_bytes)
    last: Key | None = None
    for seed, prefix in asked:
        at_hand = [
            n
            for n in range(1, len(prefix) + 1)
            if (seed, prefix[:n]) in cached.snapshots or (seed, prefix[:n]) == last
        ]
        recorder.advanced.clear()
        network = cached.at(seed, prefix)
        assert recorder.advanced == list(range(max(at_hand, default=0), len(prefix)))
        assert network.done == [(seed, t, executed) for t, executed in enumerate(prefix)]
        assert torch.equal(network.weight, networks(0)[0].at(seed, prefix).weight)
        assert cached.snapshots.n_bytes <= max_bytes
        last = (seed, prefix)


def test_episodes_that_share_their_first_layers_compute_these_once() -> None:
    cached, recorder = networks()
    for last_value in (1, 2, 3):
        for n in range(1, N_LAYERS + 1):
            cached.at(0, (7, 8, 9, last_value)[:n])
    assert recorder.advanced == [0, 1, 2, 3, 3, 3]
    assert recorder.n_fresh == 1


def test_a_finished_network_is_not_kept() -> None:
    cached, _ = networks()
    cached.at(0, (1, 2, 3, 4))
    assert (0, (1, 2, 3)) in cached.snapshots
    assert (0, (1, 2, 3, 4)) not in cached.snapshots


def test_what_the_caller_does_to_a_network_stays_out_of_the_snapshots() -> None:
    cached, _ = networks()
    expected = networks()[0].at(0, (1, 2)).weight.clone()
    cached.at(0, (1, 2)).weight.fill_(99.0)
    cached.forget_last()
    assert torch.equal(cached.at(0, (1, 2)).weight, expected)


def test_a_lent_network_is_followed_as_the_caller_left_it_and_not_kept() -> None:
    cached, recorder = networks()
    cached.at(0, (1,)).weight.fill_(5.0)
    assert float(cached.follow(0, (1, 2)).weight) == 52.0
    assert float(cached.follow(0, (1, 2, 3)).weight) == 523.0
    assert recorder.advanced == [0, 1, 2]
    assert len(cached.snapshots) == 1
    cached.forget_last()
    assert float(cached.at(0, (1, 2)).weight) == 12.0


def test_without_a_network_to_follow_there_is_the_known_one() -> None:
    cached, recorder = networks()
    assert float(cached.follow(0, (1, 2)).weight) == 12.0
    assert recorder.n_fresh == 1


@pytest.mark.parametrize("max_bytes", [0, 100])
def test_a_decision_that_fails_leaves_nothing_half_done(max_bytes: int) -> None:
    cached, recorder = networks(max_bytes)
    cached.at(0, (1,))
    recorder.fail_at = 2
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="not finite"):
            cached.at(0, (1, 2, 3))
    assert recorder.advanced == [0, 1, 2, *([2] if max_bytes else [0, 1, 2])]
    recorder.fail_at = None
    assert float(cached.at(0, (1, 2, 3)).weight) == 123.0
