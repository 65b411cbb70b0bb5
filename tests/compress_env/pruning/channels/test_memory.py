"""Pruning a wide layer takes bounded memory.

Shape legend: C input channels, k columns of each, N output channels, P sampled rows.
"""

from __future__ import annotations

import gc
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from compress_env.pruning.channels.patches import PatchSampler
from compress_env.pruning.channels.reconstruction import reconstruct
from compress_env.pruning.channels.selection import select_by_lasso
from compress_env.pruning.channels.statistics import collect_responses, collect_statistics

STATUS = Path("/proc/self/status")
SIDE = 4
"""Of a convolution's maps, as in the last layers of VGG-16 for small images."""


class Size(NamedTuple):
    n_channels: int
    """C."""
    n_outputs: int
    """N."""
    n_rows: int
    """P: 10 positions per image of a convolution, 1 of a linear layer."""
    side: int | None = None
    """None: a 3x3 convolution. Else a linear layer that reads maps of this side, flattened."""


def prune(size: Size) -> int:
    """Collect statistics, select half of the channels, and fit the weights of all columns.

    Returns:
        Bytes of the process at the most, beyond what it had with the layer and its inputs.
    """
    torch.manual_seed(0)
    side, n_positions = (size.side, 1) if size.side else (SIDE, 10)
    n_images, n_columns = size.n_rows // n_positions, side**2 if size.side else 9
    images = torch.randn(n_images, size.n_channels, side, side).relu_()
    layer = (
        nn.Linear(size.n_channels * n_columns, size.n_outputs)
        if size.side
        else nn.Conv2d(size.n_channels, size.n_outputs, 3, padding=1)
    )
    model = nn.Sequential(nn.Flatten() if size.side else nn.Identity(), layer)
    positions = PatchSampler(n_images, n_positions, 0).positions(1 if size.side else side**2)
    batches = torch.split(images, 100)
    responses = collect_responses(model, ["1"], batches, {"1": positions})["1"]
    # (C * k,) -> (C, k)
    columns = torch.arange(size.n_channels * n_columns).view(-1, n_columns)
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets earlier peaks
    before = resident_bytes("VmRSS")
    statistics = collect_statistics(model, "1", batches, positions, responses)
    # (N, C, ...) -> (N, C * k)
    weight = layer.weight.detach().flatten(1)
    select_by_lasso(statistics, weight, columns, size.n_channels // 2)
    reconstruct(statistics, columns.flatten())
    return resident_bytes("VmHWM") - before


def resident_bytes(field: str) -> int:
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def prune_in_child(size: Size) -> int:
    torch.set_num_threads(1)
    prune(Size(16, 16, 200))  # loads the libraries and their buffers
    return prune(size)


# About a third above what it takes. D x D in float64 has 41 MiB for the convolution, where three
# or four such are needed, and 264 MiB for the linear layer, where none is.
@pytest.mark.skipif(not STATUS.exists(), reason="the system does not tell a process's peak memory")
@pytest.mark.parametrize(
    ("size", "limit_mib"),
    [
        (Size(120, 64, 200, side=7), 64),
        pytest.param(Size(256, 256, 2500), 240, marks=pytest.mark.slow),
        pytest.param(Size(512, 512, 5000), 1024, marks=pytest.mark.slow),
    ],
    ids=["linear, rows", "convolution, sums", "widest convolution"],
)
def test_pruning_a_wide_layer_takes_bounded_memory(size: Size, limit_mib: int) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        peak_bytes = pool.submit(prune_in_child, size).result()
    assert 0 < peak_bytes < limit_mib * 2**20
