"""The pruning environment on small networks."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from compress_env.data.bundle import make_data_bundle
from compress_env.envs.pruning import PruningEnv
from compress_env.task.counting import total_macs
from compress_env.task.layers import compute_layers
from tests.compress_env.envs.pruning.fakes import QUICK, act, data
from tests.fakes import BranchedNet, PlainNet, ShapedNet, seeded


def count_macs(model: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 8, 8))
    return int(counter.get_total_flops()) // 2


@cache
def lowest_budget(is_plain: bool) -> float:
    network = seeded(PlainNet if is_plain else BranchedNet)
    env = PruningEnv(network, data(), method="magnitude", **QUICK)
    return env.unpruned.cost_low / env.unpruned.cost_high


@pytest.mark.parametrize("method", ["magnitude", "magnitude+reconstruction", "channel"])
@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**16), budget=st.floats(0.0, 1.0))
def test_every_action_sequence_meets_the_budget(
    build: type[nn.Module], method: Any, seed: int, budget: float
) -> None:
    lowest = lowest_budget(build is PlainNet)
    budget = lowest + budget * (1.0 - lowest)
    env = PruningEnv(seeded(build), data(), method=method, flops_budget=budget, **QUICK)
    rng = np.random.default_rng(seed)
    # Mostly the gentlest action: the one that leaves the budget to later layers.
    actions = np.where(rng.random(len(env.walk)) < 0.5, -1.0, rng.uniform(-1, 1, len(env.walk)))
    info = act(env, actions)[-1][-1]
    assert info["dense_macs"] <= budget * env.unpruned.cost_high
    assert info["dense_macs"] == count_macs(env.compressed_model())


@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**16), budget=st.floats(0.35, 1.0))
def test_every_action_sequence_meets_a_budget_of_filters(
    build: type[nn.Module], seed: int, budget: float
) -> None:
    env = PruningEnv(seeded(build), data(), method="random", filters_budget=budget, **QUICK)
    rng = np.random.default_rng(seed)
    actions = np.where(rng.random(len(env.walk)) < 0.5, -1.0, rng.uniform(-1, 1, len(env.walk)))
    act(env, actions)
    producers = {name for each in env.plan.producers for name in each}

    def n_filters(model: nn.Module) -> int:
        return sum(len(x.weight) for n, x in compute_layers(model).items() if n in producers)

    left = n_filters(env.compressed_model())
    assert left <= budget * n_filters(env.task.model)
    kept = env.plan._kept(env._executed)
    assert left == env.plan._cost.filters(kept)
    assert env.plan._cost.params(kept) == sum(p.numel() for p in env.live_model().parameters())


def test_producers_are_the_layers_whose_filters_go() -> None:
    plain = PruningEnv(seeded(PlainNet), data(), method="magnitude", **QUICK)
    assert plain.plan.producers == (("conv1",), ("conv2",), ("fc1",))
    branched = PruningEnv(seeded(BranchedNet), data(), method="magnitude", **QUICK)
    by_layer = dict(zip((x.name for x in branched.walk), branched.plan.producers, strict=True))
    assert by_layer == {
        "block1.0": ("stem.0", "block2"),  # one stream; the depthwise layer follows
        "block2": ("block1.0",),
        "merge": ("left", "right.0"),  # two groups, decided together
        "head": ("merge",),
    }
    assert branched.plan.full("filters") == 2 * 8 + 6 + 5 + 4 + 7


def test_random_channels_follow_from_the_seed_of_the_transition() -> None:
    def kept(seed: int) -> torch.Tensor:
        env = PruningEnv(seeded(PlainNet), data(), method="random", seed=seed, **QUICK)
        act(env, [0.0, 0.0, 0.0])
        return compute_layers(env.live_model())["fc2"].weight.detach()

    original = compute_layers(seeded(PlainNet))["fc2"].weight
    first = kept(0)
    assert torch.equal(first, kept(0))
    assert any(not torch.equal(first, kept(seed)) for seed in (1, 2, 3))
    assert first.shape == (3, 4)  # at rate 0.475, as magnitude; its weights are left as they are
    assert torch.isin(first, original).all()


def test_gentlest_actions_use_the_budget_and_extreme_ones_reach_the_minimum() -> None:
    env = PruningEnv(seeded(PlainNet), data(), flops_budget=0.5, **QUICK)
    gentle = act(env, [-1.0] * len(env.walk))[-1][-1]["dense_macs"]
    extreme = act(env, [1.0] * len(env.walk))[-1][-1]["dense_macs"]
    assert 0.3 < gentle / env.unpruned.cost_high <= 0.5
    assert extreme == env.unpruned.cost_low


@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
def test_predicted_costs_are_the_live_ones(build: type[nn.Module]) -> None:
    env = PruningEnv(seeded(build), data(), method="magnitude", **QUICK)
    rng = np.random.default_rng(1)
    env.reset()
    for _ in env.walk:
        _, _, _, _, info = env.step(rng.uniform(-1, 1, 1).astype(np.float32))
        live = env.compressed_model()
        assert info["dense_macs"] == count_macs(live)
        assert info["dense_params"] == sum(p.numel() for p in live.parameters())
        assert info["reward_terms"]["cost"] == info["dense_macs"]
        plan = env.plan
        assert info["dense_macs"] == plan._cost.macs(plan._kept(env._executed))


@pytest.mark.parametrize("method", ["magnitude", "channel"])
def test_network_really_shrinks(method: Any) -> None:
    env = PruningEnv(seeded(PlainNet), data(), method=method, **QUICK)
    act(env, [1.0 - 2 * 0.5 / 0.95] * 3)  # half of every layer's inputs
    model = env.compressed_model()
    assert isinstance(model, PlainNet)
    assert model.conv1.weight.shape == (2, 1, 3, 3)
    assert model.conv2.weight.shape == (3, 2, 3, 3)
    assert model.fc1.weight.shape == (4, 3 * 4)
    assert model.fc2.weight.shape == (3, 4)


def test_compressed_model_is_a_copy() -> None:
    env = PruningEnv(seeded(PlainNet), data(), **QUICK)
    env.reset()
    first = env.compressed_model()
    nn.init.zeros_(next(first.parameters()))
    assert not torch.equal(next(first.parameters()), next(env.live_model().parameters()))


def test_given_network_is_never_changed() -> None:
    model = seeded(BranchedNet)
    before = copy.deepcopy(model.state_dict())
    env = PruningEnv(model, data(), finetune_steps=2, device="cpu")
    act(env, [0.5] * len(env.walk))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
def test_lasso_and_least_squares_beat_magnitude_before_finetuning(build: type[nn.Module]) -> None:
    """On the calibration images, fitted responses lie closer to the unpruned network's."""
    errors = {}
    for method in ("magnitude", "channel"):
        env = PruningEnv(seeded(build), data(), method=method, **QUICK)
        act(env, [0.0, -1.0, 0.0, -1.0][: len(env.walk)])
        images = next(env.task.calibration_batches())[0]
        with torch.no_grad():
            gap = env.live_model()(images) - env.task.model(images)
        errors[method] = float(gap.square().mean())
    assert errors["channel"] < 0.8 * errors["magnitude"]


def test_weights_of_silent_inputs_are_left_alone() -> None:
    """Half of every image is black: those inputs of the linear layer are always zero."""
    images = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[..., :4] = 0.0
    pairs = TensorDataset(images, torch.arange(60) % 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv, linear = nn.Conv2d(1, 4, 1, bias=False), nn.Linear(256, 3)
        nn.init.uniform_(conv.weight, 0.1, 1.0)  # so that no channel is silent everywhere
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear)
    env = PruningEnv(model, make_data_bundle(pairs, pairs), method="channel", **QUICK)
    act(env, [0.0])
    weight = compute_layers(env.live_model())["3"].weight.reshape(3, -1, 8, 8)
    assert weight[..., :4].all()
    assert torch.isin(weight[..., :4], linear.weight).all()
    assert not torch.isin(weight[..., 4:], linear.weight).any()


def test_batch_norm_statistics_are_those_of_the_pruned_network() -> None:
    env = PruningEnv(seeded(BranchedNet), data(), method="magnitude", **QUICK)
    act(env, [0.0] * len(env.walk))
    model = env.live_model()
    assert isinstance(model, BranchedNet)
    images = torch.cat([x for x, _ in env.task._in_order(env.task.data.train, 500)])
    with torch.no_grad():
        outputs = model.stem[0](images)
    estimated = model.stem[1].running_mean
    assert isinstance(estimated, torch.Tensor)
    torch.testing.assert_close(estimated, outputs.mean((0, 2, 3)), atol=0.05, rtol=0.05)


def test_state_describes_the_layer_about_to_be_decided() -> None:
    env = PruningEnv(seeded(PlainNet), data(), method="magnitude", **QUICK)
    observation, _ = env.reset()
    # conv2 is first: 6 of at most 8 outputs, 4 of at most 24 inputs, 3x3, 864 x 4 MACs
    expected = [0, 6 / 8, 4 / 24, 1, 1, 1, 0, 0.95, 1]
    np.testing.assert_allclose(observation, expected, rtol=1e-6)
    observation = env.step(np.array([1.0], np.float32))[0]
    # fc1: its 24 inputs are untouched, conv2's pruning concerned conv1 and conv2 alone
    macs = 24 * 8 / (6 * 4 * 9 * 16)
    np.testing.assert_allclose(observation, [0.5, 1, 1, 1 / 3, 1 / 3, 1, 0, 0.95, macs], rtol=1e-6)


def test_layers_that_cannot_be_pruned_are_listed_with_the_reason() -> None:
    env = PruningEnv(seeded(ShapedNet), data(), **QUICK)
    assert [layer.name for layer in env.walk] == ["fc1", "fc2"]
    assert "breaks the network" in env.skipped_layers["conv2"]


def test_reward_at_episode_scores_once() -> None:
    env = PruningEnv(seeded(PlainNet), data(), reward_at="episode", **QUICK)
    results = act(env, [0.0] * 3)
    assert [r[1] for r in results[:-1]] == [0.0, 0.0]
    assert ["accuracy" in r[-1] for r in results] == [False, False, True]
    assert [r[-1]["n_evaluations"] for r in results] == [0, 0, 1]
    assert results[-1][1] == pytest.approx(results[-1][-1]["accuracy"] - 1.0)


def test_evaluations_are_counted_once_per_prefix() -> None:
    env = PruningEnv(seeded(PlainNet), data(), **QUICK)
    counts = [act(env, actions)[-1][-1]["n_evaluations"] for actions in ([0, 0, 0], [0, 0, 0.9])]
    # the second episode shares two of three prefixes
    assert counts == [3, 4]
    env.forget_evaluations()
    assert act(env, [0, 0, 0])[-1][-1]["n_evaluations"] == 3


def test_transition_noise_draws_a_new_seed_at_each_reset() -> None:
    env = PruningEnv(
        seeded(PlainNet), data(), transition_noise=True, finetune_steps=3, device="cpu"
    )

    def final_weights(seed: int | None) -> torch.Tensor:
        env.reset(seed=seed)
        env.step(np.zeros(1, np.float32))
        return next(env.compressed_model().parameters()).detach()

    assert torch.equal(final_weights(0), final_weights(0))
    assert not torch.equal(final_weights(0), final_weights(None))


class TestNoiseSeed:
    @pytest.fixture
    def env(self) -> PruningEnv:
        return PruningEnv(
            seeded(PlainNet), data(), transition_noise=True, finetune_steps=3, device="cpu"
        )

    @staticmethod
    def final_weights(env: PruningEnv, noise_seed: int | None) -> torch.Tensor:
        options = None if noise_seed is None else {"noise_seed": noise_seed}
        _, first = env.reset(options=options)
        info = env.step(np.zeros(1, np.float32))[-1]
        assert info["noise_seed"] == first["noise_seed"]
        assert noise_seed in (None, info["noise_seed"])
        return next(env.compressed_model().parameters()).detach()

    def test_fixes_the_order_of_an_episode(self, env: PruningEnv) -> None:
        first = self.final_weights(env, 2**31 + 5)
        assert not torch.equal(self.final_weights(env, 2**32 - 1), first)
        assert torch.equal(self.final_weights(env, 2**31 + 5), first)

    def test_leaves_those_that_are_drawn_as_they_are(self, env: PruningEnv) -> None:
        drawn = [env.reset(seed=0)[1]["noise_seed"], env.reset()[1]["noise_seed"]]
        env.reset(seed=0)
        env.reset(options={"noise_seed": 3})
        assert env.reset()[1]["noise_seed"] == drawn[1]
        assert len(set(drawn)) == 2 and all(0 <= seed < 2**31 for seed in drawn)

    def test_counts_for_its_episode_alone(self) -> None:
        env = PruningEnv(seeded(PlainNet), data(), seed=7, **QUICK)
        assert env.reset(options={"noise_seed": 3})[1]["noise_seed"] == 3
        assert env.reset()[1]["noise_seed"] == 7

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"noise_seed": -1}, "noise_seed must be 0 or more, got -1"),
            ({"noise_seed": 2**32}, r"noise_seed must be below 2\*\*32, got 4294967296"),
            ({"noise_seed": 1.0}, "noise_seed must be an int, got 1.0"),
            ({"noise_sed": 1}, "unknown option of reset 'noise_sed', did you mean 'noise_seed'"),
        ],
    )
    def test_others_are_refused(self, options: dict[str, Any], message: str) -> None:
        env = PruningEnv(seeded(PlainNet), data(), **QUICK)
        with pytest.raises((TypeError, ValueError), match=message):
            env.reset(options=options)


def test_dropout_is_replayed_too() -> None:
    model = nn.Sequential(seeded(PlainNet).get_submodule("conv1"), nn.Flatten(), nn.Dropout(0.5))
    model.append(nn.Linear(256, 3))
    env = PruningEnv(model, data(), finetune_steps=3, device="cpu")
    weights = []
    for _ in range(2):
        torch.rand(7)
        state = torch.get_rng_state()
        act(env, [0.0])
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(env.compressed_model().get_submodule("3").weight)
    assert torch.equal(*weights)  # type: ignore[arg-type]


def test_zeros_stay_zero_through_finetuning() -> None:
    model = seeded(PlainNet)
    assert isinstance(model, PlainNet)
    with torch.no_grad():
        model.fc1.weight[:, ::2] = 0.0
    env = PruningEnv(model, data(), method="magnitude", finetune_steps=4, device="cpu")
    info = act(env, [-1.0])[0][-1]
    live = env.live_model()
    assert isinstance(live, PlainNet)
    assert not live.fc1.weight[:, ::2].any()
    assert live.fc1.weight[:, 1::2].all()
    assert info["sparse_params"] == info["dense_params"] - 8 * 12
    assert info["sparse_macs"] == info["dense_macs"] - 8 * 12
    assert info["dense_macs"] == total_macs(live, env.task.example_image())


@pytest.mark.parametrize("rate", [0.3, 0.95])
def test_uniform_value_meets_the_budget_and_no_smaller_rate_does(rate: float) -> None:
    env = PruningEnv(seeded(BranchedNet), data(), max_pruning_rate=rate, **QUICK)
    budget = 0.5 * (1 + env.unpruned.cost_low / env.unpruned.cost_high)
    env = PruningEnv(
        seeded(BranchedNet), data(), max_pruning_rate=rate, flops_budget=budget, **QUICK
    )
    uniform = env.uniform_value()
    n_layers = len(env.walk)
    assert env.plan.count([uniform] * n_layers, "macs") <= env.budget
    assert env.plan.count([uniform - 1e-4] * n_layers, "macs") > env.budget
