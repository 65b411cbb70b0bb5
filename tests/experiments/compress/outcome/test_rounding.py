"""When rounder numbers of channels are suggested."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from torch import nn

from compress_env.envs.pruning import PruningEnv
from experiments.common.latency import Latency
from experiments.compress.outcome import rounding
from experiments.compress.outcome.rounding import Suggestion, find_faster, suggest_channel_round
from tests.fakes import make_data, seeded


def time_of(batch_size: int, median: float, spread: float = 0.01) -> Latency:
    return Latency(batch_size, median, median - spread, median + spread)


OLD = [time_of(1, 1.0), time_of(64, 10.0)]


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ({8: [time_of(1, 0.9), time_of(64, 5.0)]}, (8, 1, 0.1)),
        (
            {8: [time_of(1, 0.9), OLD[1]], 16: [time_of(1, 0.8), OLD[1]]},
            (16, 1, 0.2),
        ),
        ({8: [time_of(1, 0.96), time_of(64, 9.0)]}, (8, 64, 0.1)),
        ({8: [time_of(1, 0.96), time_of(64, 9.9)]}, None),
        ({8: [time_of(1, 0.9, spread=0.2), OLD[1]]}, None),
        ({}, None),
    ],
    ids=["faster", "the fastest", "for many images", "too little", "within the noise", "none"],
)
def test_rounding_is_suggested_for_time_that_was_measured(
    after: dict[int, list[Latency]], expected: tuple[int, int, float] | None
) -> None:
    found = find_faster(OLD, after)
    assert found == (None if expected is None else pytest.approx(expected))


def test_suggestion_in_words() -> None:
    assert str(Suggestion(8, 1, 0.123)).startswith(
        "With --channel-round 8 one image takes 12 % less time in PyTorch"
    )
    assert "64 images take 50 % less" in str(Suggestion(16, 64, 0.5))


def wide() -> nn.Module:
    layers = [nn.Conv2d(1, 20, 3), nn.ReLU(), nn.Conv2d(20, 24, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(24 * 16, 3))


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(1.0, [[14, 18], [16, 16], [16, 16]]), (0.55, [[14, 18], [8, 16]])],
    ids=["nearest", "down"],
)
def test_rounded_networks_meet_the_budget(
    budget: float, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = PruningEnv(seeded(wide), make_data(), flops_budget=budget, finetune_steps=0, device="cpu")
    timed: list[list[int]] = []

    def measure(networks: Sequence[Any], shape: Sequence[int]) -> list[list[Latency]]:
        assert tuple(shape) == (1, 8, 8)
        timed.extend(
            [m.out_channels for m in each._network if isinstance(m, nn.Conv2d)] for each in networks
        )
        return [[time_of(1, sum(sizes))] for sizes in timed]

    monkeypatch.setattr(rounding, "measure_latency", measure)
    rates = [1 - 14 / 20, 1 - 18 / 24]
    suggestion = suggest_channel_round(env, rates)
    assert timed == expected
    assert suggestion == (None if budget == 1.0 else (8, 1, 0.25))
    assert suggest_channel_round(env, [1 - 16 / 20, 1 - 16 / 24]) is None  # round already
    assert suggest_channel_round(env, rates, channel_round=16) is None
