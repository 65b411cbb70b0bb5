"""Rates that meet a target exactly, in the order that the scores ask for."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress_env.allocation import afie, allocate, allocate_in_rounds, decision_scores, sensitivity
from compress_env.envs.pruning import PruningEnv
from compress_env.networks.models import build_model
from compress_env.pruning.cost import Unit
from compress_env.pruning.graph.surgery import find_walk
from compress_env.pruning.plan import PruningPlan
from compress_env.task.layers import compute_layers, layer_table
from tests.fakes import BranchedNet, PlainNet, make_data, seeded


def env_of(build: type[nn.Module], method: str = "magnitude", cap: float = 0.95) -> PruningEnv:
    return _env_of(build is PlainNet, method, cap)


@cache
def _env_of(is_plain: bool, method: Any, cap: float) -> PruningEnv:
    settings: dict[str, Any] = {"finetune_steps": 0, "device": "cpu", "reward_at": "episode"}
    return PruningEnv(
        seeded(PlainNet if is_plain else BranchedNet),
        make_data(),
        method=method,
        max_pruning_rate=cap,
        scorer=lambda _: 0.5,
        **settings,
    )


def scores_of(env: PruningEnv, values: list[float]) -> pd.Series:
    names = list(compute_layers(env.task.model))
    return pd.Series([values[i % len(values)] for i in range(len(names))], index=names)


def largest_step(plan: PruningPlan, unit: Unit) -> float:
    """What one more channel of a decision can cost at most, as a fraction."""
    rates = [0.0] * len(plan.decisions)
    costs = []
    for t, decision in enumerate(plan.decisions):
        one = 1.0 / min(group.n_channels for group in decision.groups)
        costs.append(plan.full(unit) - plan.count([*rates[:t], one, *rates[t + 1 :]], unit))
    return max(costs) / plan.full(unit)


def test_rates_by_hand() -> None:
    """Scores 1, 2, 4 and 18 filters of 4, 6 and 8: kappa max / score is r, r / 2, r / 4."""
    env = env_of(PlainNet)
    scores = pd.Series({"conv1": 1.0, "conv2": 2.0, "fc1": 4.0, "fc2": 9.0})
    table = allocate(scores, 1 / 3, plan=env.plan)
    assert table.index.tolist() == ["conv2", "fc1", "fc2"]
    assert table["producers"].tolist() == ["conv1", "conv2", "fc1"]
    assert table["score"].tolist() == [1.0, 2.0, 4.0]
    # Six filters go: r = 0.625 removes 3 of 4 (2.5 rounds up), 2 of 6 (1.875) and 1 of 8 (1.25).
    np.testing.assert_allclose(table["pruning_rate"], [0.625, 0.3125, 0.15625], atol=1e-4)
    assert env.plan.count(table["pruning_rate"].tolist(), "filters") == 18 - 6


@pytest.mark.parametrize("method", ["magnitude", "channel+variational"])
@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e3)), min_size=2, max_size=8),
    share=st.floats(0.0, 1.0),
    unit=st.sampled_from(get_args(Unit)),
)
def test_target_is_met_and_by_no_channel_too_many(
    build: type[nn.Module], method: Any, values: list[float], share: float, unit: Unit
) -> None:
    env = env_of(build, method)
    plan = env.plan
    most = 1.0 - plan.count([0.95] * len(plan.decisions), unit) / plan.full(unit)
    target = share * most
    rates = allocate(scores_of(env, values), target, unit, plan=plan)["pruning_rate"]
    removed = 1.0 - plan.count(rates.tolist(), unit) / plan.full(unit)
    assert target - 1e-9 <= removed
    if method == "magnitude":  # elements go in finer steps, but channels with them
        assert removed <= target + largest_step(plan, unit) + 1e-9
    assert rates.between(0.0, 0.95).all()


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(0.01, 100.0), min_size=4, max_size=4), share=st.floats(0.0, 0.7))
def test_layers_of_lower_score_lose_no_less(values: list[float], share: float) -> None:
    table = allocate(scores_of(env_of(PlainNet), values), share, plan=env_of(PlainNet).plan)
    ordered = table.sort_values("score")["pruning_rate"].to_numpy()
    assert (np.diff(ordered) <= 1e-9).all()


@pytest.mark.parametrize("unit", get_args(Unit))
@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
def test_counts_are_those_of_the_pruned_network(build: type[nn.Module], unit: Unit) -> None:
    env = env_of(build)
    rates = allocate(scores_of(env, [1.0, 3.0, 2.0]), 0.4, unit, plan=env.plan)["pruning_rate"]
    env.reset()
    for rate in rates:
        _, _, _, _, info = env.step(np.array([2.0 * rate / 0.95 - 1.0], np.float32))
    names = {name for each in env.plan.producers for name in each}
    filters = sum(len(m.weight) for n, m in compute_layers(env.live_model()).items() if n in names)
    counted = {"filters": filters, "macs": info["dense_macs"], "params": info["dense_params"]}
    assert counted[unit] == env.plan.count(rates.tolist(), unit)
    assert counted[unit] <= 0.6 * env.plan.full(unit)


def test_decision_score_is_the_mean_over_its_producers() -> None:
    env = env_of(BranchedNet)
    values = {
        "stem.0": 1.0,
        "block2": 4.0,
        "block1.0": 0.5,
        "left": 2.0,
        "right.0": 3.0,
        "merge": 7.0,
    }
    found = decision_scores(pd.Series(values), env.plan)
    assert found.to_dict() == {"block1.0": 2.5, "block2": 0.5, "merge": 2.5, "head": 7.0}


def test_insensitive_layers_are_all_alike() -> None:
    env = env_of(PlainNet)
    zeros = allocate(scores_of(env, [0.0]), 0.5, plan=env.plan)["pruning_rate"]
    ones = allocate(scores_of(env, [1.0]), 0.5, plan=env.plan)["pruning_rate"]
    np.testing.assert_array_equal(zeros, ones)
    assert np.ptp(zeros) < 0.2


def test_rates_are_capped_and_a_channel_stays() -> None:
    env = env_of(PlainNet, cap=1.0)
    scores = pd.Series({"conv1": 1e-9, "conv2": 1.0, "fc1": 1.0})
    table = allocate(scores, 0.5, plan=env.plan)
    assert table["pruning_rate"].iloc[0] == 0.99
    full = 1.0 - 3 / 18
    assert allocate(scores, full, plan=env.plan)["pruning_rate"].max() <= 0.99
    assert env.plan.count([0.99] * 3, "filters") == 3


def test_layer_with_one_filter_keeps_it() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Conv2d(1, 6, 3), nn.Flatten())
    model.append(nn.Linear(96, 3))
    env = PruningEnv(model, make_data(), method="magnitude", finetune_steps=0, device="cpu")
    assert env.plan.producers == (("2",),)  # the first layer's only filter is not in the walk
    table = afie(env.task.model)
    assert table.loc["0", "afie"] == 0.0
    rates = allocate(table["afie"], 0.5, plan=env.plan)["pruning_rate"]
    assert env.plan.count(rates.tolist(), "filters") == 3
    with pytest.raises(ValueError, match=r"target must be in \[0, 0.8333\]"):
        allocate(table["afie"], 0.9, plan=env.plan)


@pytest.mark.parametrize("unit", get_args(Unit))
def test_targets_out_of_reach_are_refused(unit: Unit) -> None:
    plan = env_of(PlainNet).plan
    scores = scores_of(env_of(PlainNet), [1.0])
    with pytest.raises(
        ValueError, match=rf"target must be in \[0, 0.\d+\].*of the {unit}, got 1.0"
    ):
        allocate(scores, 1.0, unit, plan=plan)
    with pytest.raises(ValueError, match=r"got -0\.1"):
        allocate(scores, -0.1, unit, plan=plan)
    with pytest.raises(ValueError, match="got nan"):
        allocate(scores, float("nan"), unit, plan=plan)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"conv1": 1.0, "conv2": 1.0}, r"expected a score for 'fc1', got them for \['conv1'"),
        ({"conv1": 1.0, "conv2": -1.0, "fc1": 1.0}, "0 or more, got -1.0 of 'conv2'"),
        ({"conv1": float("nan"), "conv2": 1.0, "fc1": 1.0}, "finite.* got nan of 'conv1'"),
    ],
    ids=["missing", "negative", "NaN"],
)
def test_bad_scores_are_refused(scores: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocate(pd.Series(scores), 0.5, plan=env_of(PlainNet).plan)


def test_unknown_unit_is_refused() -> None:
    plan = env_of(PlainNet).plan
    with pytest.raises(ValueError, match="unknown unit 'grams'; valid: filters, macs, params"):
        allocate(scores_of(env_of(PlainNet), [1.0]), 0.5, "grams", plan=plan)  # type: ignore[arg-type]


def test_rounds_go_on_from_each_other() -> None:
    env = env_of(PlainNet)
    by_round = [[1.0, 10.0, 10.0, 1.0], [10.0, 10.0, 1.0, 1.0]]
    measured: list[nn.Module] = []
    pruned: list[list[float]] = []
    small = seeded(PlainNet, 1)

    def measure(model: nn.Module) -> pd.Series:
        measured.append(model)
        return scores_of(env, by_round[len(measured) - 1])

    def prune(rates: list[float]) -> nn.Module:
        pruned.append(rates)
        return small

    table = allocate_in_rounds(env.task.model, measure, prune, 0.5, plan=env.plan, n_rounds=2)
    assert [model is small for model in measured] == [False, True]
    first, last = np.array(pruned[0]), table["pruning_rate"].to_numpy()
    assert table["rate_1"].tolist() == pruned[0]
    assert env.plan.count(pruned[0], "filters") == 13  # of 18, a quarter is 4.5
    assert env.plan.count(last.tolist(), "filters") == 9
    assert (last >= first).all()
    assert int(np.argmax(first)) == 0 and int(np.argmax(last - first)) == 2
    with pytest.raises(ValueError, match="n_rounds must be at least 1, got 0"):
        allocate_in_rounds(env.task.model, measure, prune, 0.5, plan=env.plan, n_rounds=0)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lenet5", (1, 28, 28)),
        ("alexnet_small", (1, 28, 28)),
        ("resnet20", (3, 16, 16)),
        ("mobilenet_v2_narrow", (1, 16, 16)),
        ("densenet_small", (1, 16, 16)),
    ],
)
def test_named_networks_can_be_scored_and_allocated(name: str, shape: tuple[int, int, int]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(name, 10, shape).eval()
    image = torch.zeros(1, *shape)
    plan = PruningPlan(
        find_walk(model, image).decisions,
        layer_table(model, image),
        model,
        channel_share=1.0,
        max_pruning_rate=0.95,
        channel_round=1,
        counts_zeros=True,
    )

    def score(network: nn.Module) -> float:
        with torch.no_grad():
            return 1.0 + float(network(image).abs().sum())

    damaged = sensitivity(model, score, n_trials=1)
    for scores in (afie(model)["afie"], damaged["sensitivity"]):
        rates = allocate(scores, 0.5, plan=plan)["pruning_rate"]
        removed = 1.0 - plan.count(rates.tolist(), "filters") / plan.full("filters")
        assert 0.5 <= removed <= 0.5 + largest_step(plan, "filters")
