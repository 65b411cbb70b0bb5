"""How fast images stream from disk, against a bare `DataLoader` over the same files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from compress_env.data.bundle import DatasetSource, stream_folder

__all__ = ["BARE", "CALLS", "OURS", "bare_loader", "time_loading"]

OURS, BARE = "ours", "bare DataLoader"
CALLS = {"all-at-once": None, "20-minibatches-a-call": 20}
"""Minibatches that are asked for at once, all when None. The bare loader is asked once: a loop of
one's own lets it run on."""
BATCH_SIZE = 64
Batches = Iterable[tuple[Tensor, Tensor]]


def bare_loader(
    root: Path,
    order: Sequence[Tensor],
    *,
    size: int | None = None,
    num_workers: int,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Return a loader of the same minibatches that knows nothing of this package.

    Args:
        root: A tree `CLASS/IMAGE`.
        order: Indices of each minibatch, (b,) int64.
        size: Side in pixels to which images are scaled; as they are when None.
        num_workers: Processes that read; they live as long as the loader.
        pin_memory: For a GPU.
    """
    from torchvision.datasets import ImageFolder  # which takes long to import
    from torchvision.transforms import v2

    sized = [] if size is None else [v2.Resize(size), v2.CenterCrop(size)]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return DataLoader(
        ImageFolder(root, v2.Compose([*sized, *to_float])),
        batch_sampler=[indices.tolist() for indices in order],
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )


def time_loading(
    root: Path,
    calls: str,
    *,
    n_images: int,
    n_rounds: int,
    size: int | None = None,
    device: torch.device | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Time both loaders on the same images, in turn; which is first changes from round to round.

    A first round is not counted: it starts the workers, and files come into the cache.

    Args:
        root: A tree `CLASS/IMAGE`.
        calls: A key of `CALLS`.
        n_images: Images that are read in a round, at most all.
        n_rounds: Rounds that count.
        size: As for `bare_loader`.
        device: Where minibatches go; the CPU when None.
        seed: Of the order of the images.
    """
    place = torch.device("cpu") if device is None else device
    source = stream_folder(root, size=size).to(place)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(source), generator=generator)[:n_images]
    order = torch.split(chosen, BATCH_SIZE)
    is_gpu = place.type == "cuda"
    bare = bare_loader(root, order, size=size, num_workers=source.num_workers, pin_memory=is_gpu)
    readers: dict[str, Callable[[], Batches]] = {
        OURS: partial(_in_calls, source, order, CALLS[calls]),
        BARE: partial(_on_device, bare, place),
    }
    seconds = {name: 0.0 for name in readers}
    for number in range(n_rounds + 1):
        for name in (OURS, BARE) if number % 2 else (BARE, OURS):
            spent = _time(readers[name](), place)
            seconds[name] += spent if number else 0.0
    n_read = n_rounds * len(chosen)
    return {
        "calls": calls,
        "workers": source.num_workers,
        "images": n_read,
        "ours_per_s": n_read / seconds[OURS],
        "bare_per_s": n_read / seconds[BARE],
        "ratio": seconds[BARE] / seconds[OURS],
    }


def _in_calls(source: DatasetSource, order: Sequence[Tensor], length: int | None) -> Batches:
    batches = iter(order)
    while call := list(islice(batches, length)):
        yield from source.batches(call)


def _on_device(loader: DataLoader[Any], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _time(batches: Batches, device: torch.device) -> float:
    start = perf_counter()
    for _ in batches:
        pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - start
