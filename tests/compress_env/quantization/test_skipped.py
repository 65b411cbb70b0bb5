"""Tests of the list of what quantization leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compress_env import QuantizationEnv
from tests.fakes import BranchedNet, PlainNet, make_data, seeded


class Mixed(nn.Module):
    """A network with weights of many kinds."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 4, 4)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.mix = nn.Conv1d(8, 8, 1)
        self.position = nn.Parameter(torch.zeros(1, 16, 8))
        self.token = nn.Embedding(1, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.memory = nn.GRU(8, 8, batch_first=True)
        self.auxiliary = nn.Linear(8, 3)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (b, 3)."""
        tokens = self.mix(self.up(self.stem(images)).flatten(2)).transpose(1, 2)
        tokens = self.norm(tokens + self.position + self.token.weight)
        tokens = self.attention(tokens, tokens, tokens)[0]
        return self.head(self.memory(tokens)[0].mean(1))  # type: ignore[no-any-return]


REASONS = {
    "position": "a parameter of Mixed",
    "up": "transposed convolution",
    "mix": "not two-dimensional",
    "token": "Embedding",
    "attention.in_proj_weight": "projections of attention",
    "attention.out_proj": "does not call this",
    "memory.weight_ih_l0": "GRU",
    "memory.weight_hh_l0": "GRU",
    "auxiliary": "does not call this Linear",
}


def test_weights_that_stay_float32_are_listed_with_the_reason() -> None:
    env = QuantizationEnv(seeded(Mixed), make_data(), finetune_steps=0)
    assert [layer.name for layer in env.walk] == ["stem", "head"]
    assert env.skipped_layers.keys() == REASONS.keys()
    for name, reason in REASONS.items():
        assert reason in env.skipped_layers[name]
        assert env.skipped_layers[name].endswith("; it stays float32")


@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
def test_where_all_weights_are_decided_nothing_is_listed(build: type[nn.Module]) -> None:
    env = QuantizationEnv(seeded(build), make_data(), finetune_steps=0)
    assert env.skipped_layers == {}
    quantized = QuantizationEnv(env.compressed_model(), make_data(), finetune_steps=0)
    assert quantized.skipped_layers == {}
