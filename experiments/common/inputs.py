"""Digests of what a run is made from, so that a stopped one does not go on with something else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from compress_env.data.bundle import DataBundle, ImageSource, TensorSource
from compress_env.store.digests import digest

__all__ = ["data_digest", "file_digest", "network_digest"]

N_READ = 64
"""Images of a set that is read from files, evenly spaced, that tell it from others."""
N_AT_ONCE = 4096


def network_digest(model: nn.Module) -> str:
    """Return a hex sha256 of the names and values of a network's weights and buffers."""
    return digest(dict(model.state_dict()))


def data_digest(data: DataBundle) -> str:
    """Return a hex sha256 of the images and labels of all sets, in their order.

    Of sets that are read from files when needed, all labels and `N_READ` images count.
    """
    sets = {
        "train": data.train,
        "calibration": data.calibration,
        "validation": data.validation,
        "test": data.test,
    }
    return digest({name: _source_digest(source) for name, source in sets.items()})


def _source_digest(source: ImageSource) -> str:
    total = hashlib.sha256(digest(source.labels).encode())
    for images, _ in source.batches(_indices(source)):
        total.update(digest(images).encode())
    return total.hexdigest()


def _indices(source: ImageSource) -> list[Tensor]:
    n = len(source)
    if isinstance(source, TensorSource):
        return list(torch.split(torch.arange(n), N_AT_ONCE))
    return [torch.linspace(0, n - 1, min(N_READ, n), dtype=torch.double).round().long()]


def file_digest(path: Path) -> str:
    """Return a hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differing(now: Mapping[str, str], then: Mapping[str, str]) -> Iterable[str]:
    """Return the names under which both have a digest, and not the same one."""
    return [name for name in now if name in then and then[name] != now[name]]
