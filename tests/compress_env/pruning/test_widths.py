"""Networks whose structure depends on numbers of channels: no layer of a walk may change it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress_env.pruning.graph.surgery import LiveChannels, Walk, find_walk, zero_channels
from tests.fakes import seeded

IMAGE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Join = Callable[[Tensor, Tensor], Tensor]


class Joined(nn.Module):
    """A stem, a block of which a function decides how it is joined to the stem, and a head."""

    def __init__(self, join: Join, stem: int = 8, block: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, stem, 3, padding=1)
        self.block = nn.Conv2d(stem, block, 3, padding=1)
        self.last = nn.Conv2d(block, 12, 1)
        self.head = nn.Linear(12, 3)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.last(self.join(x, torch.relu(self.block(x)))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def _joined(join: Join, stem: int = 8, block: int = 16) -> Callable[[], nn.Module]:
    return lambda: Joined(join, stem, block)


class Constants(Joined):
    """Compares widths with what they were when the network was built."""

    def __init__(self, stem: int = 8, block: int = 16) -> None:
        super().__init__(lambda x, y: y + x if y.shape[1] == stem else y, stem, block)


class OnItsOwn(nn.Module):
    """The stem stays, as a softmax mixes it; the block may become as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 5, 3, padding=1)
        self.block = nn.Conv2d(5, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 12, 1)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).softmax(1)
        y = torch.relu(self.block(x))
        y = x + y if x.shape == y.shape else y
        return self.head(torch.relu(self.last(y)).mean((2, 3)))  # type: ignore[no-any-return]


class Projected(Joined):
    """Takes another layer once the widths differ."""

    def __init__(self) -> None:
        super().__init__(lambda x, y: y, 8, 8)
        self.shortcut = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.block(x))
        y = y + (x if x.shape[1] == self.shortcut.in_channels == 8 else self.shortcut(x))
        return self.head(torch.relu(self.last(y)).mean((2, 3)))  # type: ignore[no-any-return]


class SilentHead(Joined):
    """Begins with a head that answers zero to everything."""

    def __init__(self, scale: Callable[[Tensor], Tensor]) -> None:
        super().__init__(lambda x, y: scale(y))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


class SilentBranch(Joined):
    """Begins with a residual branch that adds nothing: its scale is zero."""

    def __init__(self) -> None:
        super().__init__(lambda x, y: y)
        self.wide = nn.Conv2d(16, 6, 1)
        self.narrow = nn.Conv2d(6, 16, 1)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.block(torch.relu(self.stem(x))))
        y = torch.relu(self.wide(x))
        x = x + self.scale * self.narrow(y / y.shape[1])
        return self.head(torch.relu(self.last(x)).mean((2, 3)))  # type: ignore[no-any-return]


UNSAFE: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "equal shapes": (_joined(lambda x, y: x + y if x.shape == y.shape else y), {"last"}),
    "equal shapes, wide first": (
        _joined(lambda x, y: x + y if x.shape == y.shape else y, 16, 8),
        {"block"},
    ),
    "the other is narrower": (
        _joined(lambda x, y: y * 2 if x.shape[1] < y.shape[1] else y, 8, 8),
        {"block"},
    ),
    "the other is wider": (
        _joined(lambda x, y: y * 2 if x.shape[1] > y.shape[1] else y, 8, 8),
        {"last"},
    ),
    "a multiple": (
        _joined(
            lambda x, y: (
                y + x.repeat(1, y.shape[1] // x.shape[1], 1, 1)
                if y.shape[1] % x.shape[1] == 0
                else y
            ),
            6,
            16,
        ),
        {"last"},
    ),
    "a constant": (Constants, {"last"}),
    "a layer that stays": (OnItsOwn, {"last"}),
    "more than so many": (_joined(lambda x, y: y if y.shape[1] > 3 else y * 2), {"last"}),
    "an even number": (
        _joined(lambda x, y: F.channel_shuffle(y, 2) if y.shape[1] % 2 == 0 else y, 8, 15),
        {"last"},
    ),
    "divided by the number": (_joined(lambda x, y: y / y.shape[1]), {"last"}),
    "by its root": (_joined(lambda x, y: y * x.shape[1] ** -0.5), {"block"}),
    "by its logarithm, hardly": (_joined(lambda x, y: y * (1 + 1e-3 * y.shape[1])), {"last"}),
    "sum over the number": (
        _joined(lambda x, y: y * (y.sum((2, 3), keepdim=True) / y.numel())),
        {"last"},
    ),
    "another layer": (Projected, {"block"}),
    "a silent head": (lambda: SilentHead(lambda x: x * x.shape[1]), {"last"}),
    "a silent branch": (SilentBranch, {"narrow"}),
}


@pytest.mark.parametrize(("build", "unsafe"), UNSAFE.values(), ids=UNSAFE)
def test_layers_that_would_change_the_structure_are_left_out(
    build: Callable[[], nn.Module], unsafe: set[str]
) -> None:
    walk = find_walk(seeded(build), IMAGE)
    decided = {decision.layer.name for decision in walk.decisions}
    assert not unsafe & decided
    assert unsafe <= walk.skipped.keys()
    assert "head" in decided
    _check_pruned_equals_zeroed(seeded(build), walk)


def _check_pruned_equals_zeroed(model: nn.Module, walk: Walk, n_draws: int = 40) -> None:
    rng = np.random.default_rng(0)
    groups = [group for decision in walk.decisions for group in decision.groups]
    for _ in range(n_draws):
        pruned, zeroed = copy.deepcopy(model), copy.deepcopy(model)
        live, level = LiveChannels(pruned), int(rng.integers(1, 17))
        for group in groups:
            own = int(rng.integers(1, 17))
            n_keep = min(group.n_channels, level if rng.random() < 0.5 else own)
            gone = rng.permutation(group.n_channels)[n_keep:]
            live.remove(group, gone)
            zero_channels(zeroed, group, gone.tolist())
        with torch.no_grad():
            torch.testing.assert_close(pruned(IMAGE), zeroed(IMAGE), rtol=1e-4, atol=1e-5)


SAFE: dict[str, Callable[[], nn.Module]] = {
    "always joined": _joined(lambda x, y: y + x.mean(1, keepdim=True) * 0 + y, 8, 16),
    "size of the image": _joined(lambda x, y: y / (y.shape[2] * y.shape[3])),
    "scaled by a constant": _joined(lambda x, y: y * 16**-0.5),
    "reshaped by what it is": _joined(lambda x, y: y.reshape(*y.shape[:2], -1).view(*y.shape)),
}


@pytest.mark.parametrize("build", SAFE.values(), ids=SAFE)
def test_nothing_else_is_left_out(build: Callable[[], nn.Module]) -> None:
    walk = find_walk(seeded(build), IMAGE)
    assert {"last", "head"} <= {decision.layer.name for decision in walk.decisions}
    _check_pruned_equals_zeroed(seeded(build), walk, n_draws=5)
