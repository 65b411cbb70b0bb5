"""Ranking in rounds: what is scored, what is removed, and what one round comes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from compress_env.allocation import channel_norms, rank_channels, rank_in_rounds, rank_per_cost
from compress_env.pruning.graph.surgery import Decision
from tests.compress_env.allocation.networks import SHAPES, network, plan_of
from tests.compress_env.allocation.test_ranking import small_plan
from tests.fakes import BranchedNet, PlainNet, seeded

IMAGE = torch.zeros(1, 1, 8, 8)


def nothing(model: nn.Module) -> None:
    """Train nothing."""


@pytest.mark.parametrize("rank", [rank_channels, rank_per_cost])
def test_one_round_is_the_ranking_itself(rank: Any) -> None:
    model, plan = seeded(BranchedNet), small_plan(BranchedNet)
    budgets: Any = {"macs": 0.5 * plan.full("macs")}
    found = rank_in_rounds(
        model, channel_norms, nothing, plan, budgets, image=IMAGE, n_rounds=1, rank=rank
    )
    assert found == rank(channel_norms(model, plan.decisions), plan, budgets)


@pytest.mark.parametrize("name", ["vgg8", "mobilenet_v2_narrow", "densenet_small", "resnet20"])
def test_rounds_prune_more_each_time_and_meet_the_budget(name: str) -> None:
    plan, image = plan_of(name), torch.zeros(1, *SHAPES[name])
    budgets: Any = {"macs": 0.4 * plan.full("macs")}
    sizes: list[int] = []

    def count(model: nn.Module) -> None:
        assert model(image).shape == (1, 10)
        sizes.append(sum(p.numel() for p in model.parameters()))

    before = sum(p.numel() for p in network(name).parameters())
    rates = rank_in_rounds(
        network(name), channel_norms, count, plan, budgets, image=image, n_rounds=3
    )
    assert before > sizes[0] > sizes[1] and len(sizes) == 2
    assert 0.99 * budgets["macs"] <= plan.count(rates, "macs") <= budgets["macs"]
    assert sum(p.numel() for p in network(name).parameters()) == before


def test_later_rounds_go_by_the_fine_tuned_network() -> None:
    """Fine-tuning makes the channels of the last group worthless: they go next."""
    model, plan = seeded(PlainNet), small_plan(PlainNet)  # 4, 6 and 8 channels
    seen: list[list[int]] = []

    def score(network: nn.Module, decisions: Sequence[Decision]) -> list[Any]:
        seen.append([decision.n_channels for decision in decisions])
        by_l1 = channel_norms(network, decisions)
        return [*by_l1[:2], by_l1[2] * (1.0 if len(seen) == 1 else 1e-3)]

    rates = rank_in_rounds(model, score, nothing, plan, {"filters": 12}, image=IMAGE, n_rounds=2)
    assert seen[0] == [4, 6, 8] and sum(seen[1]) == 15
    first, second, third = (kept for (kept,) in plan.at_rates(rates))
    assert [first, second] == seen[1][:2] and third == seen[1][2] - 3


def test_wrong_input_is_refused() -> None:
    plan = small_plan(PlainNet)
    settings: dict[str, Any] = {"image": IMAGE, "plan": plan, "budgets": {"filters": 12}}
    rest = seeded(PlainNet), channel_norms, nothing
    with pytest.raises(ValueError, match="n_rounds must be at least 1, got 0"):
        rank_in_rounds(*rest, n_rounds=0, **settings)
    elements = settings | {"plan": small_plan(PlainNet, channel_share=0.5)}
    with pytest.raises(ValueError, match="rounds are for plans that remove channels only"):
        rank_in_rounds(*rest, n_rounds=2, **elements)
    with pytest.raises(ValueError, match="budgets cannot be met"):
        rank_in_rounds(*rest, n_rounds=1, **(settings | {"budgets": {"filters": 1}}))
