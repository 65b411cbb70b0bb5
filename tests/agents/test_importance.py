"""Agents that prune by importance, in the pruning environment."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from torch import nn
from torch.utils.data import TensorDataset

from agents import AFIE, SBPF
from agents.importance import GivenRates
from compress_env.allocation import afie, allocate, sensitivity
from compress_env.data.bundle import make_data_bundle
from compress_env.envs.pruning import PruningEnv
from compress_env.networks.models import MODELS
from tests.fakes import BranchedNet, PlainNet, make_data, seeded


@cache
def data() -> Any:
    return make_data()


def make(build: type[nn.Module] = PlainNet, **options: Any) -> PruningEnv:
    settings: dict[str, Any] = {"finetune_steps": 0, "device": "cpu", "reward_at": "episode"}
    settings["variational"] = {"n_steps": 0}
    return PruningEnv(seeded(build), data(), **(settings | options))


def play(env: PruningEnv, agent: GivenRates) -> tuple[list[float], dict[str, Any]]:
    observation, info = env.reset()
    rates = []
    for _ in env.walk:
        action, _ = agent.predict(observation, deterministic=True)
        observation, _, _, _, info = env.step(action)
        rates.append(info["pruning_rate"])
    return rates, info


@pytest.mark.parametrize("method", ["magnitude", "channel", "random", "channel+variational"])
@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
@pytest.mark.parametrize("agent_class", [AFIE, SBPF])
def test_rates_are_executed_as_allocated_and_meet_the_budget(
    agent_class: Any, build: type[nn.Module], method: str
) -> None:
    env = make(build, method=method, flops_budget=0.6)
    agent = agent_class(env)
    expected = agent.table["pruning_rate"].to_numpy()
    whole: list[tuple[int, ...]] = []
    for rate in expected:
        whole.append(env.plan.decide(tuple(whole), rate))
    _, info = play(env, agent)
    assert env._executed == tuple(whole)
    assert info["reward_terms"]["cost"] <= 0.6 * env.unpruned.cost_high


@pytest.mark.slow
def test_sbpf_allocates_filters_of_resnet18_with_a_hundred_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(200, 3, 8, 8, generator=generator), torch.arange(200) % 100
    made = TensorDataset(images + labels[:, None, None, None] / 100, labels)
    network = seeded(lambda: MODELS["resnet18_cifar"](100, (3, 8, 8)))
    bundle = make_data_bundle(made, made, n_calibration=32)
    seen = made.tensors[0]
    told = network.eval()(seen).argmax(1)

    def agreement(model: nn.Module) -> float:
        """How often a damaged network says what the undamaged one does, which knows nothing."""
        with torch.no_grad():
            return float((model.eval()(seen).argmax(1) == told).double().mean())

    settings: dict[str, Any] = {"device": "cpu", "finetune_steps": 0, "scorer": agreement}
    env = PruningEnv(network, bundle, filters_budget=0.5, **settings)
    agent = SBPF(env, n_trials=1)
    assert len(agent.scores) == 20 and agent.n_evaluations == 21
    assert env.plan.meets(agent.rates.tolist(), env.budgets)
    assert (agent.rates <= 0.99).all() and agent.rates.max() > 0.5


def test_afie_looks_at_no_image_and_sbpf_counts_what_it_looks_at() -> None:
    calls = 0

    def scorer(model: nn.Module) -> float:
        nonlocal calls
        calls += 1
        with torch.no_grad():
            return 1.0 / (1.0 + float(model(torch.ones(1, 1, 8, 8)).square().mean()))

    env = make(scorer=scorer, method="magnitude", filters_budget=0.5)
    by_entropy = AFIE(env)
    assert (calls, by_entropy.n_evaluations) == (0, 0)
    expected = allocate(afie(env.task.model)["afie"], 0.5, plan=env.plan)
    np.testing.assert_array_equal(by_entropy.rates, expected["pruning_rate"])
    agent = SBPF(env, n_trials=3, damage=0.5, seed=4)
    assert agent.n_evaluations == calls == 1 + 3 * 3  # fc2 produces logits and is left alone
    layers = ["conv1", "conv2", "fc1"]
    table = sensitivity(env.task.model, scorer, layers=layers, n_trials=3, damage=0.5, seed=4)
    rates = allocate(table["sensitivity"], 0.5, plan=env.plan)["pruning_rate"]
    np.testing.assert_array_equal(agent.rates, rates)
    assert agent.seconds > 0.0


def test_rounds_measure_what_episodes_lead_to() -> None:
    env = make(method="magnitude", filters_budget=0.5, finetune_steps=2)
    agent = SBPF(env, n_trials=2, n_rounds=3)
    assert agent.n_evaluations == 3 * (1 + 3 * 2) + 2
    table = agent.table
    assert (table["rate_1"] <= table["rate_2"]).all()
    assert (table["rate_2"] <= table["pruning_rate"]).all()
    shares = [
        1.0 - env.plan.count(table[name].tolist(), "filters") / env.plan.full("filters")
        for name in ("rate_1", "rate_2", "pruning_rate")
    ]
    np.testing.assert_allclose(shares, [1 / 6, 1 / 3, 1 / 2], atol=1 / 18 + 1e-9)
    rates, _ = play(env, agent)
    assert env.plan.count(rates, "filters") == 9


def test_a_target_stands_in_for_a_budget() -> None:
    env = make(method="magnitude")
    _, info = play(env, AFIE(env, 0.5, "params"))
    assert info["dense_params"] <= 0.5 * env.plan.full("params")
    with pytest.raises(ValueError, match="expected a target, as the environment has no budget"):
        AFIE(env)
    with pytest.raises(ValueError, match=r"target must be in \[0, 0\.\d+\]"):
        SBPF(env, 0.999)
    budgeted = make(method="magnitude", flops_budget=0.5)
    with pytest.raises(ValueError, match="budget counts macs, got unit='filters'"):
        AFIE(budgeted, unit="filters")


def test_other_environments_are_refused() -> None:
    env = gym.make("compress_env/Quantization-v0", model=seeded(PlainNet), data=data())
    with pytest.raises(TypeError, match="expected a PruningEnv, got QuantizationEnv"):
        AFIE(env)


def test_a_scorer_that_returns_nan_is_an_error_and_leaves_the_network_alone() -> None:
    scores = iter([0.5, 0.4, math.nan])
    env = make(method="magnitude", scorer=lambda _: next(scores), filters_budget=0.5)
    before = {name: tensor.clone() for name, tensor in env.task.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="returned nan"):
        SBPF(env)
    after = env.task.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_each_layer_of_a_batch_gets_its_own_rate() -> None:
    agent = GivenRates(np.array([0.25, 0.5, 0.75]))
    observations = np.zeros((3, 9), np.float32)
    observations[:, 0] = [1.0, 0.0, 0.5]
    observations[:, 7] = 1.0
    actions, state = agent.predict(observations)
    assert state is None and actions.dtype == np.float32
    assert actions.tolist() == [[0.5], [-0.5], [0.0]]
    assert agent.predict(observations[0])[0].tolist() == [0.5]


@pytest.mark.parametrize("rates", [[], [0.5, 1.5], [math.nan]], ids=["none", "high", "NaN"])
def test_given_rates_are_checked(rates: list[float]) -> None:
    with pytest.raises(ValueError, match=r"expected rates in \[0, 1\], at least one"):
        GivenRates(np.array(rates))


def test_wrong_observations_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 8 entries"):
        GivenRates(np.array([0.5])).predict(np.zeros((1, 1, 9)))
    with pytest.raises(ValueError, match="Dict observations are not supported"):
        GivenRates(np.array([0.5])).predict({"x": np.zeros(9)})


def test_agents_run_under_evaluate_policy() -> None:
    env = gym.make(
        "compress_env/Pruning-v0",
        model=seeded(PlainNet),
        data=data(),
        finetune_steps=0,
        flops_budget=0.5,
    )
    for agent in (AFIE(env), SBPF(env, n_trials=1)):
        mean, _ = evaluate_policy(agent, env, n_eval_episodes=2, warn=False)
        assert isinstance(mean, float) and -3.0 <= mean <= 0.0


def test_given_rates_are_copied() -> None:
    rates = np.array([0.1, 0.2])
    agent = GivenRates(rates)
    rates[:] = 5.0
    assert agent.rates.tolist() == [0.1, 0.2]


@pytest.mark.parametrize("rates", [[], [0.1, 1.5], [np.nan], [[0.1, 0.2]]])
def test_what_are_no_rates_is_refused(rates: Any) -> None:
    with pytest.raises(ValueError, match=r"^expected rates in \[0, 1\], at least one, got "):
        GivenRates(np.array(rates))


def test_layers_of_another_walk_are_refused() -> None:
    """A negative index would count from the end."""
    agent = GivenRates(np.array([0.0, 0.5, 1.0]))
    observations = np.zeros((3, 9), np.float32)
    observations[:, 0], observations[:, 7] = [0.0, 0.5, 1.0], 1.0
    assert agent.predict(observations)[0].ravel().tolist() == [-1.0, 0.0, 1.0]
    for index in (-0.5, 1.5, 0.33):
        observations[1, 0] = index
        with pytest.raises(ValueError, match="expected the observations of a walk of 3 decisions"):
            agent.predict(observations)


@pytest.mark.parametrize("seed", [np.int64(4), np.uint8(4)])
def test_a_seed_may_be_numpys(seed: Any) -> None:
    env = make(method="magnitude", filters_budget=0.5)
    same = [SBPF(env, n_trials=2, seed=each).rates.tolist() for each in (seed, 4)]
    assert same[0] == same[1]


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5])
def test_what_is_no_seed_is_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"^seed must be [^\n]*$"):
        SBPF(make(method="magnitude", filters_budget=0.5), seed=seed)
