"""How images and weights lie in memory."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from compress_env.task.finetune import compute_logits, finetune
from compress_env.task.layout import FEW, channels_last_of, use_channels_last
from tests.fakes import BranchedNet, seeded

CHECKED = "libc_malloc_debug.so.0"
"""Part of glibc: with it, the process ends where something has written beyond its memory."""


def test_channels_last_changes_the_strides_alone() -> None:
    model, before = seeded(BranchedNet), seeded(BranchedNet)
    parameters = list(model.parameters())
    use_channels_last(model)
    use_channels_last(model)
    for now, first, then in zip(model.parameters(), parameters, before.parameters(), strict=True):
        assert now is first
        assert torch.equal(now, then)
        if now.dim() == 4:
            _, channels, height, width = now.shape
            assert now.stride() == (channels * height * width, 1, width * channels, channels)
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(model(images), before(images))


class Shortcut(nn.Module):
    """A strided 1x1 convolution of so many channels, by module or by function."""

    by_name: bool

    def __init__(self, n_channels: int, stride: tuple[int, int], *, padding: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, n_channels, 3, padding=1)
        self.short = nn.Conv2d(n_channels, 9, 1, stride, padding)
        self.head = nn.Linear(9, 4)
        self.by_name = False

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).relu()
        if self.by_name:
            conv = self.short
            x = functional.conv2d(
                x, weight=conv.weight, bias=conv.bias, stride=conv.stride, padding=conv.padding
            )
        else:
            x = self.short(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Recorded(TorchFunctionMode):
    """Notes what convolutions are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, bool]] = []

    def __torch_function__(  # noqa: D105
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.conv2d and len(args) > 1:
            weight, stride = args[1], args[3] if len(args) > 3 else 1
            if weight.shape[2:] == (1, 1):
                self.asked.append((weight.shape[1], stride not in (1, (1, 1))))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stride", [(2, 2), (1, 3)])
@pytest.mark.parametrize("padding", [0, 1])
def test_strided_convolutions_of_few_channels_see_every_pixel_once(
    stride: tuple[int, int], padding: int
) -> None:
    images, labels = torch.rand(4, 1, 7, 8), torch.arange(4)
    for n_channels, by_name in itertools.product((1, 3, FEW - 1, FEW), (False, True)):
        make = partial(Shortcut, n_channels, stride, padding=padding)
        model, exact = seeded(make), seeded(make).double()
        assert isinstance(model, Shortcut)
        model.by_name = by_name
        use_channels_last(model)
        with Recorded() as recorded:
            logits = compute_logits(model, images, channels_last=True)
        if not by_name:
            assert recorded.asked == [(n_channels, n_channels >= FEW)]
        expected = exact(images.double())
        torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-5)
        functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        functional.cross_entropy(expected, labels).backward()  # type: ignore[no-untyped-call]
        for mine, other in zip(model.parameters(), exact.parameters(), strict=True):
            assert mine.grad is not None and other.grad is not None
            torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-4, atol=1e-5)


def test_other_networks_and_scores_run_as_they_are() -> None:
    images = torch.rand(2, 1, 8, 8)
    model = Shortcut(3, (2, 2))
    with Recorded() as recorded, torch.no_grad():
        compute_logits(model, images, channels_last=True)
    assert recorded.asked == [(3, True)]


def train_all() -> None:
    """Train shortcuts of all numbers of channels on images that lie channels last."""
    torch.set_num_threads(1)
    for n_channels, stride in itertools.product(range(1, FEW + 2), (2, 3)):
        model = Shortcut(n_channels, (stride, stride))
        use_channels_last(model)
        finetune(model, made_up(), learning_rate=0.01, channels_last=True)


def made_up() -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(3):
        yield channels_last_of(torch.rand(64, 1, 16, 16)), torch.randint(4, (64,))


@pytest.mark.slow
def test_nothing_is_written_beyond_its_memory() -> None:
    if not _is_there(CHECKED):
        pytest.skip(f"there is no {CHECKED} here")
    root = Path(__file__).parents[3]
    environment = os.environ | {"LD_PRELOAD": CHECKED, "MALLOC_CHECK_": "3"}
    environment["PYTHONPATH"] = str(root)
    call = "from tests.compress_env.task.test_layout import train_all; train_all()"
    done = subprocess.run(
        [sys.executable, "-c", call], env=environment, cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def _is_there(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
