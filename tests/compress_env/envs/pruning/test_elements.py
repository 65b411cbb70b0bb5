"""Pruning of single elements, alone and together with channels, in whole episodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress_env.envs.pruning import PruningEnv
from compress_env.pruning.elements import PRESETS, VariationalConfig
from compress_env.task.layers import compute_layers
from tests.fakes import BranchedNet, PlainNet, make_data, seeded

QUICK: dict[str, Any] = {
    "finetune_steps": 1,
    "device": "cpu",
    "scorer": lambda _: 0.5,
    "variational": VariationalConfig(n_steps=1),
}
METHODS = ["variational", "channel+variational"]
pytestmark = pytest.mark.filterwarnings("ignore:information dropout has not told")


def test_settings_may_be_given_by_name() -> None:
    env = PruningEnv(seeded(PlainNet), make_data(), variational={"n_steps": 2})
    assert env.variational == VariationalConfig(n_steps=2)
    with pytest.raises(ValueError, match="unknown variational 'steps'; valid: n_steps, kl_weight"):
        PruningEnv(seeded(PlainNet), make_data(), variational={"steps": 2})
    env = PruningEnv(seeded(PlainNet), make_data(), variational="paper")
    assert env.variational == PRESETS["paper"]
    with pytest.raises(ValueError, match=r"unknown variational 'papers'.*paper"):
        PruningEnv(seeded(PlainNet), make_data(), variational="papers")


@pytest.mark.parametrize("store", ["memory", None])
def test_info_says_whether_outputs_are_told_apart(store: Any) -> None:
    settings = QUICK | {"variational": VariationalConfig(n_steps=50), "finetune_steps": 0}
    env = PruningEnv(seeded(PlainNet), make_data(), method="variational", store=store, **settings)
    first, second, whole = act(env, [0.3, 0.3, -1.0])
    assert 0.0 < first["information_std"] != second["information_std"]
    assert "information_std" not in whole  # nothing has gone: nothing was measured
    again = act(env, [0.3, 0.3, -1.0])  # from the store, if there is one
    assert [info.get("information_std") for info in again] == [
        info.get("information_std") for info in (first, second, whole)
    ]
    _, fresh = env.reset()
    assert "information_std" not in fresh


def test_methods_without_information_do_not_measure_it() -> None:
    env = PruningEnv(seeded(PlainNet), make_data(), method="magnitude", **QUICK)
    assert not any("information_std" in info for info in act(env, [0.3, 0.3, 0.3]))


def act(env: PruningEnv, actions: list[float]) -> list[dict[str, Any]]:
    env.reset()
    return [env.step(np.array([action], np.float32))[-1] for action in actions]


@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
@pytest.mark.parametrize("method", METHODS)
def test_the_asked_fraction_of_the_weights_goes(build: type[nn.Module], method: Any) -> None:
    env = PruningEnv(seeded(build), make_data(), method=method, **QUICK)
    env.reset()
    for t, planned in enumerate(env.walk):
        before = compute_layers(env.compressed_model())[planned.name].weight.numel()
        info = env.step(np.array([0.2], np.float32))[-1]
        after = compute_layers(env.compressed_model())[planned.name].weight
        assert info["layer"] == planned.name
        kept = int(torch.count_nonzero(after))
        assert kept == env._executed[t][-1]  # type: ignore[index]
        assert info["pruning_rate"] == pytest.approx(1 - kept / before)
        if after.numel() > kept:  # rounding of channels has not taken more than was asked for
            assert info["pruning_rate"] == pytest.approx(0.6 * 0.95, abs=0.5 / before)


def test_variational_pruning_leaves_every_channel() -> None:
    env = PruningEnv(seeded(PlainNet), make_data(), method="variational", **QUICK)
    last = act(env, [0.5] * 3)[-1]
    assert last["dense_macs"] == env.unpruned.macs
    assert last["sparse_macs"] < env.unpruned.macs
    shapes = [p.shape for p in env.compressed_model().parameters()]
    assert shapes == [p.shape for p in seeded(PlainNet).parameters()]


def test_both_dimensions_share_the_rate() -> None:
    env = PruningEnv(
        seeded(PlainNet), make_data(), method="channel+variational", channel_share=0.5, **QUICK
    )
    act(env, [1.0 - 2 * 0.2 / 0.95])  # three quarters of 0.95 and a bit: rate 0.75
    env.reset()
    env.step(np.array([2 * 0.75 / 0.95 - 1], np.float32))
    weight = compute_layers(env.compressed_model())["conv2"].weight
    assert weight.shape == (6, 2, 3, 3)  # half of 4 channels
    assert int(torch.count_nonzero(weight)) == 54  # a quarter of 6 * 4 * 9


@settings(max_examples=4)
@given(
    actions=st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=6),
    budget=st.floats(0.35, 1.0),
    kind=st.sampled_from(["dense", "sparse"]),
)
@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
def test_any_actions_meet_the_budget(
    build: type[nn.Module], actions: list[float], budget: float, kind: Any
) -> None:
    env = PruningEnv(
        seeded(build),
        make_data(),
        method="channel+variational",
        flops_budget=budget,
        macs=kind,
        **QUICK | {"finetune_steps": 0, "variational": VariationalConfig(n_steps=0)},
    )
    info = act(env, actions[: len(env.walk)])[-1]
    assert info[f"{kind}_macs"] <= budget * env.unpruned.macs
    assert info["reward_terms"]["cost"] == info[f"{kind}_macs"]


def test_zeros_stay_through_fine_tuning_and_later_surgery() -> None:
    options = QUICK | {"finetune_steps": 5}
    env = PruningEnv(seeded(PlainNet), make_data(), method="channel+variational", **options)
    infos = act(env, [0.3] * 3)
    layers = compute_layers(env.compressed_model())
    for t, planned in enumerate(env.walk):
        left = int(torch.count_nonzero(layers[planned.name].weight))
        assert left <= env._executed[t][-1]  # type: ignore[index]
    weights = sum(int(torch.count_nonzero(p)) for p in env.compressed_model().parameters())
    assert infos[-1]["sparse_params"] == weights


def test_uniform_value_meets_the_budget() -> None:
    env = PruningEnv(
        seeded(BranchedNet), make_data(), method="channel+variational", flops_budget=0.5, **QUICK
    )
    value = env.uniform_value()
    env.reset()
    done = False
    while not done:
        low, high = env._interval
        action = np.clip(2 * (value - low) / max(high - low, 1e-9) - 1, -1, 1)
        _, _, done, _, info = env.step(np.array([action], np.float32))
    assert info["sparse_macs"] <= 0.5 * env.unpruned.macs


@pytest.mark.parametrize("method", METHODS)
def test_replayed_bit_for_bit(method: Any) -> None:
    networks = []
    for store in ("memory", None):
        env = PruningEnv(seeded(BranchedNet), make_data(), method=method, store=store, **QUICK)
        for _ in range(2):
            act(env, [0.1, -0.4, 0.7, 0.0, 0.2, -0.9][: len(env.walk)])
            networks.append(env.compressed_model().state_dict())
    for other in networks[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in networks[0].items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "channel", "channel_share": 0.5}, "channel_share is for method 'channel\\+"),
        ({"method": "channel+variational", "channel_share": 1.0}, r"must be in \(0, 1\), got 1"),
        ({"macs": "wet"}, "unknown macs 'wet'; valid: dense, sparse"),
        (
            {"method": "variational", "macs": "dense", "flops_budget": 0.5},
            r"flops_budget must be in \[1.0000, 1\].*\(dense ones\), got 0.5",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruningEnv(seeded(PlainNet), make_data(), **QUICK | options)
