"""Whole episodes of every method on small networks of every structure."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress_env.envs.pruning import PruningEnv, PruningMethod
from tests.fakes import BranchedNet, PlainNet, make_data, seeded


class OneLayerResidual(nn.Module):
    """Each block is one convolution that reads and writes the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class ReZero(OneLayerResidual):
    """Each block adds nothing in the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.zeros(2, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for scale, block in zip(self.scales, self.blocks, strict=True):
            x = x + scale * torch.relu(block(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class RepVGG(nn.Module):
    """A 3x3 and a 1x1 convolution and a norm of the stream itself, added."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.wide = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.point = nn.Sequential(nn.Conv2d(6, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.wide(x) + self.point(x) + self.norm(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class LinearResidual(nn.Module):
    """Linear layers that read and write one stream of flat features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 10)
        self.first, self.second = nn.Linear(10, 10), nn.Linear(10, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        x = x + self.first(torch.relu(x))
        x = x + self.second(torch.relu(x))
        return self.head(torch.relu(x))  # type: ignore[no-any-return]


class Recombined(nn.Module):
    """A layer reads two groups and writes one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 6, 3, padding=1)
        self.merge = nn.Conv2d(10, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.left(x)), torch.relu(self.right(x))
        right = right + self.merge(torch.cat([left, right], 1))
        return self.head(right.mean((2, 3)))  # type: ignore[no-any-return]


class Excited(nn.Module):
    """Squeeze and excitation around a depthwise convolution, softplus behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.squeeze, self.excite = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.softplus = nn.Softplus()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(torch.relu(self.stem(x)))
        gate = self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        x = self.softplus(x) * torch.sigmoid(gate)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


STRUCTURES: tuple[type[nn.Module], ...] = (
    PlainNet,
    BranchedNet,
    OneLayerResidual,
    ReZero,
    RepVGG,
    LinearResidual,
    Recombined,
    Excited,
)
BY_NAME = {build.__name__: build for build in STRUCTURES}


@cache
def _environment(name: str, method: PruningMethod) -> PruningEnv:
    options: dict[str, Any] = {"device": "cpu", "finetune_steps": 1, "store": None}
    if "variational" in method:
        options["variational"] = {"n_steps": 1}
    return PruningEnv(seeded(BY_NAME[name]), make_data(), method=method, **options)


@pytest.mark.filterwarnings("ignore:information dropout has not told")
@pytest.mark.parametrize("method", get_args(PruningMethod))
@pytest.mark.parametrize("name", BY_NAME)
@settings(max_examples=1, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**16))
def test_every_method_finishes_an_episode_on_every_structure(
    name: str, method: PruningMethod, seed: int
) -> None:
    env, rng = _environment(name, method), np.random.default_rng(seed)
    assert env.skipped_layers == {}
    env.reset()
    done = False
    while not done:
        _, _, done, _, info = env.step(rng.uniform(-1, 1, 1).astype(np.float32))
        assert "error" not in info
    assert info["dense_macs"] == _count_macs(env.compressed_model())


def _count_macs(model: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, 8, 8))
    return int(counter.get_total_flops()) // 2


def test_weights_are_fitted_to_the_outputs_that_are_left() -> None:
    """Of a stream in which two channels are silent, these go, and all else stays as it was."""
    model = seeded(LinearResidual)
    assert isinstance(model, LinearResidual)
    silent, others = [2, 7], [0, 1, 3, 4, 5, 6, 8, 9]
    with torch.no_grad():
        for layer in (model.stem, model.first, model.second):
            layer.weight[silent] = 0.0
            layer.bias[silent] = 0.0
    env = PruningEnv(model, make_data(), method="channel", device="cpu", finetune_steps=0)
    after = env.compress_layer(0, 0.2).get_submodule("first").weight
    expected = model.first.weight[others][:, others]
    torch.testing.assert_close(after, expected, rtol=0.0, atol=1e-4)
