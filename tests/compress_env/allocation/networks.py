"""Small networks by name, and the plans of pruning them."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from compress_env.networks.models import build_model
from compress_env.pruning.graph.surgery import find_walk
from compress_env.pruning.plan import PruningPlan
from compress_env.task.layers import layer_table

SHAPES: dict[str, tuple[int, int, int]] = {
    "lenet5": (1, 28, 28),
    "cnn4": (1, 28, 28),
    "alexnet_small": (1, 28, 28),
    "vgg8": (1, 16, 16),
    "mobilenet_v2_narrow": (1, 16, 16),
    "densenet_small": (1, 16, 16),
    "resnet20": (3, 16, 16),
    "resnet20_padded": (3, 16, 16),
    "mobilenet_v1": (3, 32, 32),
}


@cache
def network(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(name, 10, SHAPES[name])
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.1, 1.5)
    return model.eval()


@cache
def plan_of(
    name: str, channel_share: float = 1.0, channel_round: int = 1, highest: float = 0.95
) -> PruningPlan:
    model, image = network(name), torch.zeros(1, *SHAPES[name])
    return PruningPlan(
        find_walk(model, image).decisions,
        layer_table(model, image),
        model,
        channel_share=channel_share,
        max_pruning_rate=highest,
        channel_round=channel_round,
        counts_zeros=channel_share == 1.0,
    )
