"""How much of a budget is used, in every network that the documentation lists."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from compress_env.allocation import channel_norms, rank_channels, rank_per_cost
from compress_env.networks.models import build_model
from compress_env.pruning.graph.surgery import find_walk
from compress_env.pruning.plan import PruningPlan
from compress_env.task.layers import layer_table
from tests.fakes import slow

SIDES = {"torchvision/alexnet": 63, "torchvision/vit_b_16": 224}
SMALL = ["resnet20_padded"]
LARGE = [
    "resnet18_cifar",
    "resnet56",
    "vgg16",
    "vgg19",
    "resnet110",
    "resnet56_padded",
    "resnet110_padded",
    "torchvision/alexnet",
    "torchvision/vgg16",
    "torchvision/resnet18",
    "torchvision/resnet50",
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_large",
    "torchvision/densenet121",
    "torchvision/efficientnet_b0",
    "torchvision/shufflenet_v2_x1_0",
    "torchvision/convnext_tiny",
    "torchvision/swin_t",
    "torchvision/vit_b_16",
]


@cache
def scored(name: str) -> tuple[PruningPlan, Any]:
    if name.startswith("torchvision/"):
        pytest.importorskip("torchvision")
    shape = (3, SIDES.get(name, 32), SIDES.get(name, 32))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(name, 10, shape).eval()
    image = torch.zeros(1, *shape)
    settings: dict[str, Any] = {"channel_share": 1.0, "max_pruning_rate": 0.95}
    settings |= {"channel_round": 1, "counts_zeros": True}
    decisions = find_walk(model, image).decisions
    plan = PruningPlan(decisions, layer_table(model, image), model, **settings)
    return plan, channel_norms(model, decisions)


@pytest.mark.parametrize("name", [*SMALL, *slow(*LARGE)])
def test_nearly_all_of_a_budget_is_used(name: str) -> None:
    plan, scores = scored(name)
    for unit, share in (("macs", 0.4), ("params", 0.5)):
        least, full = plan.highest((), unit), plan.full(unit)  # type: ignore[arg-type]
        budgets: Any = {unit: least + share * (full - least)}
        rates = rank_channels(scores, plan, budgets)
        assert 0.99 <= plan.worst(rates, budgets) <= 1.0
    if name in SMALL:
        rates = rank_per_cost(scores, plan, budgets)
        assert 0.99 <= plan.worst(rates, budgets) <= 1.0
