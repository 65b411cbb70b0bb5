"""Multiply-accumulates of every operation, against PyTorch's counter and counts by hand."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress_env import PruningEnv, QuantizationEnv
from compress_env.task.counting import macs_by_module, total_macs
from compress_env.task.layers import layer_table
from tests.fakes import make_data, seeded

SIDE, N_CLASSES = 8, 3


class Headed(nn.Module):
    """Two convolutions, something in between, a mean over the places, and a linear layer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.body = nn.Conv2d(8, width, 3, padding=1)
        self.head = nn.Linear(width, N_CLASSES)

    def between(self, x: Tensor) -> Tensor:
        """(b, C, H, W) -> (b, C', ...)."""
        return x

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.between(torch.relu(self.body(torch.relu(self.stem(images)))))
        return self.head(hidden.flatten(2).mean(2))  # type: ignore[no-any-return]


class Tokens(Headed):
    """A linear layer whose batch holds the pixels, too."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8))

    def between(self, x: Tensor) -> Tensor:
        tokens = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        return self.mix(tokens).reshape(len(x), -1, 8).transpose(1, 2)  # type: ignore[no-any-return]


class Windows(Headed):
    """A convolution whose batch holds four windows of each image."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 1))

    def between(self, x: Tensor) -> Tensor:
        b = len(x)
        parts = x.reshape(b, 8, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5)
        return self.inner(parts.reshape(b * 4, 8, 4, 4)).reshape(b, 4, 8, 16).transpose(1, 2)  # type: ignore[no-any-return]


class Flipped(Headed):
    """Every image is seen a second time, flipped, in the same batch."""

    def forward(self, images: Tensor) -> Tensor:
        both = super().forward(torch.cat([images, images.flip(3)]))
        return both[: len(images)] + both[len(images) :]


class Transposed(Headed):
    """Upsamples by a transposed convolution, and joins what came before."""

    def __init__(self) -> None:
        super().__init__(width=12)
        self.down = nn.Conv2d(12, 6, 3, 2, 1)
        self.up = nn.ConvTranspose2d(6, 8, 4, 2, 1)
        self.merge = nn.Conv2d(20, 12, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        return self.merge(torch.cat([x, self.up(self.down(x).relu())], 1))  # type: ignore[no-any-return]


class OtherConvolutions(Headed):
    """One and three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.cubes = nn.Conv1d(8, 8, 3, padding=1), nn.Conv3d(8, 8, 1)

    def between(self, x: Tensor) -> Tensor:
        return self.cubes(self.rows(x.flatten(2)).reshape(*x.shape, 1)).flatten(2)  # type: ignore[no-any-return]


class Functional(Headed):
    """A convolution and a product that no module stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3) / 8)
        self.mixing = nn.Parameter(torch.randn(8, 8) / 3)

    def between(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,cd->bdhw", F.conv2d(x, self.kernel, padding=1), self.mixing)


class Attention(Headed):
    """Attention over the pixels, by the module that PyTorch has a fused kernel for."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def between(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return (tokens + self.attention(tokens, tokens, tokens)[0]).transpose(1, 2)  # type: ignore[no-any-return]


class Encoder(Headed):
    """A whole layer of a transformer, fused as well."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def between(self, x: Tensor) -> Tensor:
        return self.encoder(x.flatten(2).transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class Recurrent(Headed):
    """Reads the pixels one after another."""

    def __init__(self, kind: Callable[..., nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.memory = kind(8, 8, batch_first=True)

    def between(self, x: Tensor) -> Tensor:
        return self.memory(x.flatten(2).transpose(1, 2))[0].transpose(1, 2)  # type: ignore[no-any-return]


class Gated(Recurrent):
    """The same, gated."""

    def __init__(self) -> None:
        super().__init__(nn.GRU)


class Keyword(Headed):
    """Gives a layer its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.named = nn.Conv2d(8, 8, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        return self.named(input=x)  # type: ignore[no-any-return]


NETWORKS: list[type[Headed]] = [
    Tokens,
    Windows,
    Flipped,
    Transposed,
    OtherConvolutions,
    Functional,
    Attention,
    Encoder,
    Recurrent,
    Gated,
    Keyword,
]


def count_on_meta(model: nn.Module) -> int:
    """Count where no kernel is fused, by PyTorch's own counter."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).eval().to("meta")(torch.zeros(1, 1, SIDE, SIDE, device="meta"))
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize("build", NETWORKS)
def test_every_operation_of_one_image_is_counted(build: Callable[[], nn.Module]) -> None:
    model = seeded(build).train()
    images = torch.rand(5, 1, SIDE, SIDE)
    assert total_macs(model, images) == count_on_meta(model.eval()) > 0
    outside = set(macs_by_module(model, images)) - {x.name for x in layer_table(model, images)}
    layers_alone = sum(x.macs for x in layer_table(model, images))
    assert (layers_alone < total_macs(model, images)) == bool(outside)


def test_macs_are_told_by_the_module_that_asks_for_them() -> None:
    found = macs_by_module(seeded(Functional), torch.rand(1, 1, SIDE, SIDE))
    assert found == {"stem": 64 * 72, "body": 64 * 576, "": 64 * 576 + 64 * 64, "head": 24}


def test_modes_and_switches_are_left_as_they_were() -> None:
    model = seeded(Recurrent).train()
    total_macs(model, torch.rand(1, 1, SIDE, SIDE))
    assert all(module.training for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled() and torch.backends.mkldnn.enabled
    with pytest.raises(RuntimeError):
        total_macs(model, torch.rand(1, 2, SIDE, SIDE))
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled() and torch.backends.mkldnn.enabled
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_operations_that_nobody_counts_are_named(caplog: pytest.LogCaptureFixture) -> None:
    class Paired(Headed):
        def __init__(self) -> None:
            super().__init__()
            self.pairs = nn.Bilinear(8, 8, 4)

        def between(self, x: Tensor) -> Tensor:
            rows = x.permute(0, 2, 3, 1)
            return torch.cat([x, self.pairs(rows, rows).permute(0, 3, 1, 2)], 1)[:, :8]

    with caplog.at_level(logging.WARNING):
        total_macs(seeded(Paired), torch.rand(1, 1, SIDE, SIDE))
    assert "the multiply-accumulates of aten::_trilinear in pairs are not counted" in caplog.text


@pytest.mark.parametrize("method", ["magnitude", "channel", "channel+variational"])
@pytest.mark.parametrize("build", NETWORKS)
def test_a_budget_holds_for_the_network_that_stands_there(
    build: Callable[[], nn.Module], method: str
) -> None:
    options: dict[str, Any] = {"finetune_steps": 0, "macs": "dense", "reward_at": "episode"}
    options |= {"device": "cpu", "variational": {"n_steps": 0}}
    data = make_data(N_CLASSES, SIDE)
    free = PruningEnv(seeded(build), data, method=method, **options)  # type: ignore[arg-type]
    assert free.unpruned.macs == free.unpruned.cost_high == count_on_meta(free.task.model)
    budget = 0.5 + 0.5 * free.unpruned.cost_low / free.unpruned.cost_high
    env = PruningEnv(seeded(build), data, method=method, flops_budget=budget, **options)  # type: ignore[arg-type]
    rng, done = np.random.default_rng(0), False
    env.reset()
    while not done:
        action = np.full(1, rng.choice([-1.0, 0.3]), np.float32)
        _, _, done, _, info = env.step(action)
        assert "error" not in info
    found = count_on_meta(env.compressed_model())
    assert info["dense_macs"] == found <= budget * env.unpruned.macs
    assert info["sparse_macs"] - env.other_macs <= found - env.other_macs


def test_quantization_counts_every_operation_too() -> None:
    env = QuantizationEnv(seeded(Attention), make_data(N_CLASSES, SIDE), finetune_steps=0)
    _, _, _, _, info = env.step(np.zeros(1, np.float32))
    assert info["dense_macs"] == env.unpruned.macs == count_on_meta(env.task.model)


class Adaptive(Headed):
    """Sees its image twice once it has fewer channels, which no cost model follows."""

    def between(self, x: Tensor) -> Tensor:
        if self.body.in_channels < 8:
            torch.mm(self.head.weight.T, self.head.weight)
        return x


def test_costs_that_do_not_follow_from_channels_are_refused() -> None:
    message = r"of 'the network' do not follow from its channels: once pruned they are \d+, exp"
    with pytest.raises(ValueError, match=message):
        PruningEnv(seeded(Adaptive), make_data(N_CLASSES, SIDE), finetune_steps=0)


def test_a_network_that_hardly_gets_smaller_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Fixed(Headed):
        def __init__(self) -> None:
            super().__init__()
            self.large = nn.Conv1d(8, 8, 127, padding=63)

        def between(self, x: Tensor) -> Tensor:
            return self.large(x.flatten(2))  # type: ignore[no-any-return]

    with caplog.at_level(logging.WARNING):
        PruningEnv(seeded(Fixed), make_data(N_CLASSES, SIDE), finetune_steps=0)
    assert "still leaves 9" in caplog.text and "layers left out: 2" in caplog.text
