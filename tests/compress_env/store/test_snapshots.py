"""Which networks are kept, and that none is computed twice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress_env.store.snapshots import COPYING_SHARE, PrefixNetworks, SnapshotCache
from compress_env.store.store import Executed, Prefix

N_LAYERS = 4
Key = tuple[int, Prefix]


class Numbers:
    """A network of `n` float32 weights, 4n bytes, and what was done to it."""

    def __init__(self, n: int = 1, on_copy: Callable[[], None] = lambda: None) -> None:
        self.model: nn.Module = nn.Linear(n, 1, bias=False)
        nn.init.zeros_(self.weight)
        self.done: list[tuple[int, int, Executed]] = []
        self.on_copy = on_copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Numbers:
        """Return a copy, and say so."""
        twin = Numbers(on_copy=self.on_copy)
        twin.model, twin.done = copy.deepcopy(self.model, memo), list(self.done)
        self.on_copy()
        return twin

    @property
    def weight(self) -> torch.Tensor:
        return self.model.get_parameter("weight").data


class Recorder:
    """Makes and advances networks, counts what it does, and tells a time of its own."""

    def __init__(self, step_s: float = 1.0, copy_s: float = 0.0) -> None:
        self.step_s = step_s
        self.copy_s = copy_s
        self.now = 0.0
        self.n_fresh = 0
        self.n_copies = 0
        self.advanced: list[int] = []
        self.fail_at: int | None = None

    def clock(self) -> float:
        return self.now

    def copied(self) -> None:
        self.n_copies += 1
        self.now += self.copy_s

    def fresh(self) -> Numbers:
        self.n_fresh += 1
        self.now += self.copy_s
        return Numbers(on_copy=self.copied)

    def advance(self, network: Numbers, seed: int, t: int, executed: Executed) -> None:
        self.advanced.append(t)
        self.now += self.step_s
        assert isinstance(executed, int)
        network.weight.mul_(10).add_(executed + 1000 * seed)
        if t == self.fail_at:
            raise FloatingPointError("weights are not finite")
        network.done.append((seed, t, executed))


def networks(
    max_bytes: int = 100, *, copy_s: float = 0.0, n_layers: int = N_LAYERS
) -> tuple[PrefixNetworks[Numbers], Recorder]:
    """Return networks whose decisions take a second each, and their copies as long as told."""
    recorder = Recorder(copy_s=copy_s)
    makers = recorder.fresh, recorder.advance
    return PrefixNetworks(*makers, n_layers, max_bytes, recorder.clock), recorder


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
        twin = cache.copy_of(key(0))
        assert (float(twin.weight), twin.done) == (0.0, [])
        twin.weight.fill_(2.0)
        assert float(cache.copy_of(key(0)).weight) == 0.0

    def test_there_is_no_copy_of_what_is_not_kept(self) -> None:
        with pytest.raises(KeyError):
            filled(max_bytes=12, n=1).copy_of(key(5))


PREFIXES = st.lists(st.integers(0, 2), max_size=N_LAYERS).map(tuple)


@settings(max_examples=60)
@given(
    max_bytes=st.sampled_from([0, 4, 8, 20, 1000]),
    copy_s=st.sampled_from([0.0, 0.02, 0.5, 1.5, 10.0]),
    asked=st.lists(st.tuples(st.integers(0, 1), PREFIXES), max_size=15),
)
def test_only_what_is_not_at_hand_is_computed(
    max_bytes: int, copy_s: float, asked: list[tuple[int, Prefix]]
) -> None:
    """Each network is the one computed from scratch; the cost is that of its missing layers."""
    cached, recorder = networks(max_bytes, copy_s=copy_s)
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


def walk(cached: PrefixNetworks[Numbers], episode: Prefix, n_known: int = 0) -> None:
    """Ask for the networks of an episode, but for those that a store knows."""
    for n in range(n_known + 1, len(episode) + 1):
        cached.at(0, episode[:n])


class TestWhatIsWorthACopy:
    @pytest.mark.parametrize("copy_s", [0.1, 1.0, 2.4])
    def test_episodes_that_are_all_new_copy_for_a_small_part_of_their_time(
        self, copy_s: float
    ) -> None:
        cached, recorder = networks(10**6, copy_s=copy_s, n_layers=30)
        for first in range(20):
            walk(cached, (first,) * 30)
        assert len(recorder.advanced) == 600
        assert recorder.n_copies * copy_s <= COPYING_SHARE * 600
        assert recorder.n_copies >= int(COPYING_SHARE * 600 / copy_s) - 1

    def test_cheap_copies_are_made_of_every_network_but_the_finished(self) -> None:
        cached, recorder = networks(10**6, copy_s=0.01, n_layers=4)
        for first in range(5):
            walk(cached, (first,) * 4)
        assert recorder.n_copies == len(cached.snapshots) == 5 * 3

    def test_where_an_episode_leaves_another_the_network_is_kept_for_the_next(self) -> None:
        cached, recorder = networks(10**6, copy_s=4.0, n_layers=10)
        walk(cached, (0,) * 10)
        assert recorder.n_copies == 0
        walk(cached, (0,) * 6 + (1,) * 4, n_known=6)
        assert (0, (0,) * 6) in cached.snapshots
        assert len(cached.snapshots) == recorder.n_copies == 1
        assert len(recorder.advanced) == 10 + 10
        for other in (2, 3, 4):
            recorder.advanced.clear()
            walk(cached, (0,) * 6 + (other,) * 4, n_known=6)
            assert recorder.advanced == [6, 7, 8, 9]
        assert len(cached.snapshots) == 1

    def test_a_network_made_again_sooner_than_copied_is_not_kept(self) -> None:
        cached, recorder = networks(10**6, copy_s=4.0, n_layers=10)
        walk(cached, (0,) * 10)
        walk(cached, (0,) * 3 + (1,) * 7, n_known=3)
        assert recorder.n_copies == 0

    def test_from_a_snapshot_only_what_follows_it_is_saved(self) -> None:
        cached, _ = networks(10**6, copy_s=4.0, n_layers=12)
        walk(cached, (0,) * 12)
        walk(cached, (0,) * 5 + (1,) * 7, n_known=5)
        assert len(cached.snapshots) == 1
        walk(cached, (0,) * 8 + (1,) * 4, n_known=8)  # three decisions after the snapshot
        assert len(cached.snapshots) == 1
        walk(cached, (0,) * 11 + (1,), n_known=11)
        assert (0, (0,) * 11) in cached.snapshots

    def test_forgetting_leaves_no_network(self) -> None:
        cached, recorder = networks()
        walk(cached, (1, 2, 3))
        cached.forget()
        recorder.advanced.clear()
        cached.at(0, (1, 2, 3))
        assert recorder.advanced == [0, 1, 2]
