"""Workers that wait for the next minibatches: what they read, how long they live."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from compress_env.data import loading
from compress_env.data.bundle import DatasetSource


class Whose(Dataset[tuple[Tensor, int]]):
    """Images that say who has read them: index, process, and a number of NumPy's."""

    def __len__(self) -> int:  # noqa: D105
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:  # noqa: D105
        drawn = np.random.randint(2**20)  # noqa: NPY002
        return torch.tensor([float(index), float(os.getpid()), float(drawn)]).view(3, 1, 1), 0


BATCHES = [torch.arange(n, n + 3) for n in (0, 3, 6, 9)]


def make_source(num_workers: int = 1) -> DatasetSource:
    return DatasetSource(Whose(), labels=torch.zeros(12).long(), num_workers=num_workers)


def read(source: DatasetSource, batches: list[Tensor] = BATCHES) -> Tensor:
    """Return index, process and number of each image, (n, 3)."""
    return torch.cat([images.flatten(1) for images, _ in source.batches(batches)])


def processes(source: DatasetSource) -> set[float]:
    return set(read(source)[:, 1].tolist())


@pytest.fixture(autouse=True)
def _no_workers_before() -> Iterator[None]:
    yield
    for reference in loading._used:
        loader = reference()
        if loader is not None:
            loader.end_workers()


def test_workers_wait_for_the_next_call() -> None:
    source = make_source()
    first, again = read(source), read(source)
    assert first[:, 0].tolist() == again[:, 0].tolist() == list(range(12))
    assert torch.equal(first[:, 1], again[:, 1])
    assert len(set(first[:, 1].tolist())) == 1 and os.getpid() not in first[:, 1]
    # What is drawn depends on the minibatch, not on what was read before.
    assert torch.equal(first[:, 2], again[:, 2]) and len(set(first[:, 2].tolist())) == 12


def test_a_call_that_is_left_does_not_disturb_the_next() -> None:
    source = make_source(2)
    for images, _ in source.batches(BATCHES):
        assert images[0, 0] == 0
        break
    assert read(source, BATCHES[::-1])[:, 0].tolist() == [9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2]


def test_calls_may_take_turns() -> None:
    source = make_source()
    pairs = zip(source.batches(BATCHES), source.batches(BATCHES[::-1]), strict=True)
    seen = [(int(a[0, 0]), int(b[0, 0])) for (a, _), (b, _) in pairs]
    assert seen == [(0, 9), (3, 6), (6, 3), (9, 0)]


def test_workers_of_those_that_are_not_used_for_long_end() -> None:
    sources = [make_source() for _ in range(loading._N_WARM + 1)]
    before = [processes(source) for source in sources]
    assert len(set().union(*before)) == len(sources)
    assert processes(sources[-1]) == before[-1]
    assert processes(sources[0]) != before[0]


def test_workers_end_with_their_source() -> None:
    source = make_source()
    (worker,) = processes(source)
    assert int(worker) in {child.pid for child in multiprocessing.active_children()}
    del source
    assert int(worker) not in {child.pid for child in multiprocessing.active_children()}


def test_workers_end_soon_where_their_source_is_part_of_a_circle() -> None:
    source = make_source(2)
    source.itself = source  # type: ignore[attr-defined]
    workers = processes(source)
    assert len(workers) == 2
    del source
    start = perf_counter()
    gc.collect()
    alive = {child.pid for child in multiprocessing.active_children()}
    assert workers.isdisjoint(alive) and perf_counter() - start < 4


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_have_workers_of_their_own(copied: Callable[[DatasetSource], DatasetSource]) -> None:
    source = make_source()
    before = processes(source)
    assert processes(copied(source)).isdisjoint(before)
    assert processes(source) == before


def test_a_process_that_may_have_no_children_reads_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    process: Any = multiprocessing.current_process()
    monkeypatch.setitem(process._config, "daemon", True)
    assert processes(make_source()) == {float(os.getpid())}


def test_a_single_minibatch_is_read_here() -> None:
    assert read(make_source(), BATCHES[:1])[0, 1] == os.getpid()


def test_after_a_worker_has_died_another_is_started() -> None:
    source = make_source()
    (worker,) = processes(source)
    os.kill(int(worker), signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"worker .*exited unexpectedly"):
        read(source)
    assert processes(source) != {worker}


@pytest.mark.gpu
def test_minibatches_go_to_a_gpu() -> None:
    source = make_source().to(torch.device("cuda"))
    for _ in range(2):
        read = list(source.batches(BATCHES))
        assert all(x.device.type == "cuda" for pair in read for x in pair)
        assert torch.cat([images[:, 0, 0, 0] for images, _ in read]).tolist() == list(range(12))
