"""Agents that allocate by a rule: what they decide is what an episode executes."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.evaluation import evaluate_policy
from torch import nn

from agents import AFIE, SBPF
from agents.rules import BIT_RULES, PRUNING_RULES, RULES, Portfolio, Rule
from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.pruning import PruningEnv, PruningMethod
from compress_env.envs.quantization import QuantizationEnv
from tests.compress_env.allocation.networks import SHAPES, network
from tests.fakes import BranchedNet, PlainNet, make_data, seeded, slow

QUICK: dict[str, Any] = {
    "finetune_steps": 0,
    "device": "cpu",
    "reward_at": "episode",
    "scorer": lambda model: 0.5,
    "store": None,
}
NAMED = ["lenet5", "resnet20_padded", *slow("vgg8", "mobilenet_v2_narrow", "densenet_small")]


def make(build: type[nn.Module] = PlainNet, **options: Any) -> PruningEnv:
    method = {"method": "magnitude", "variational": {"n_steps": 0}}
    return PruningEnv(seeded(build), make_data(), **(QUICK | method | options))


@cache
def named(name: str) -> PruningEnv:
    channels, side, _ = SHAPES[name]
    data = make_data(n_classes=10, side=side, channels=channels)
    return PruningEnv(network(name), data, method="magnitude", **QUICK)


def play(env: LayerwiseCompressionEnv, agent: Rule) -> tuple[list[float], dict[str, Any]]:
    observation, info = env.reset()
    values = []
    for _ in env.walk:
        action, _ = agent.predict(observation, deterministic=True)
        observation, _, _, _, info = env.step(action)
        values.append(info[env.value_name])
    return values, info


@pytest.mark.parametrize("name", NAMED)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(share=st.floats(0.0, 1.0), rule=st.sampled_from(list(PRUNING_RULES)))
def test_channels_are_executed_exactly(name: str, share: float, rule: str) -> None:
    env = named(name)
    least, full = env.plan.highest((), "macs"), env.plan.full("macs")
    env.budgets = {"macs": least + share * (full - least)}
    agent = Rule(env, rule)
    _, info = play(env, agent)
    assert env._executed == tuple(env.plan.at_rates(agent.values.tolist()))
    assert info["dense_macs"] == env.plan.count(agent.values.tolist(), "macs") <= env.budget


@pytest.mark.parametrize("method", get_args(PruningMethod))
@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
def test_rules_work_for_every_method(build: type[nn.Module], method: PruningMethod) -> None:
    env = make(build, method=method, flops_budget=0.6, params_budget=0.8)
    agent = Rule(env, "l1")
    rates, info = play(env, agent)
    assert info[f"{env.macs}_macs"] <= env.budgets["macs"]
    assert info[f"{env.macs}_params"] <= env.budgets["params"]
    if not env.plan.removes_elements:
        assert env._executed == tuple(env.plan.at_rates(agent.values.tolist()))
    np.testing.assert_allclose(rates, agent.values, atol=0.15)  # a few channels in each layer
    assert (agent.n_evaluations, agent.n_probes, agent.seconds > 0.0) == (0, 0, True)


@pytest.mark.parametrize("min_bits", [1, 3])
@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(share=st.floats(0.0, 1.0))
def test_bits_are_executed_exactly(build: type[nn.Module], min_bits: int, share: float) -> None:
    env = QuantizationEnv(seeded(build), make_data(), min_bits=min_bits, **QUICK)
    least, full = env.most_bytes([]), env.most_bytes([8] * len(env.walk))
    env.budget_bytes = least + share * (full - least)
    agent = Rule(env, "relative_error")
    bits, info = play(env, agent)
    assert bits == agent.values.tolist()
    assert info["size_bytes"] <= env.most_bytes([int(b) for b in bits]) <= env.budget_bytes
    assert min(bits) >= min_bits
    if share == 1.0:
        assert set(bits) == {8}


def test_bits_use_what_a_uniform_choice_leaves() -> None:
    env = QuantizationEnv(seeded(PlainNet), make_data(), **QUICK)
    four, five = (env.most_bytes([bits] * len(env.walk)) for bits in (4, 5))
    env.budget_bytes = (four + five) / 2
    values = Rule(env, "relative_error").values
    assert four < env.most_bytes([int(bits) for bits in values]) <= env.budget_bytes
    assert set(values) <= {3.0, 4.0, 5.0, 6.0, 7.0, 8.0} and len(set(values)) > 1


def test_names_are_known_and_stages_are_told_apart() -> None:
    assert set(RULES) == {*PRUNING_RULES, *BIT_RULES}
    env = make(flops_budget=0.5)
    with pytest.raises(ValueError, match="unknown rule 'relative_eror', did you mean 'relative_e"):
        Rule(env, "relative_eror")
    with pytest.raises(TypeError, match="relative_error chooses bits, got a PruningEnv"):
        Rule(env, "relative_error")
    with pytest.raises(ValueError, match="expected an environment with a budget, got none"):
        Rule(make(), "l1")
    bits = QuantizationEnv(seeded(PlainNet), make_data(), **QUICK)
    with pytest.raises(TypeError, match="l1 chooses pruning rates, got a QuantizationEnv"):
        Rule(bits, "l1")
    with pytest.raises(ValueError, match="expected an environment with a budget, got none"):
        Rule(bits, "relative_error")


def test_rules_run_under_evaluate_policy() -> None:
    env = make(flops_budget=0.5)
    mean, std = evaluate_policy(Rule(env, "l2"), env, n_eval_episodes=2, warn=False)
    assert (mean, std) == (-0.5, 0.0)


@pytest.mark.parametrize("stage", [PruningEnv, QuantizationEnv])
def test_portfolio_is_the_best_of_what_it_tries(stage: Any) -> None:
    budget = {"flops_budget": 0.5} if stage is PruningEnv else {"size_budget": 0.3}
    options: dict[str, Any] = {"finetune_steps": 1, "reward_at": "episode", "device": "cpu"}
    env = stage(seeded(PlainNet), make_data(), **budget, **options)
    agent = Portfolio(env)
    assert agent.choice in agent.rewards and "uniform" in agent.rewards
    assert agent.rewards[agent.choice] == max(agent.rewards.values())
    assert agent.n_evaluations == len(agent.rewards) >= 2
    assert ("relative_error" in agent.rewards) == (stage is QuantizationEnv)
    assert ("kl_curve" in agent.rewards) == (agent.n_probes > 0) == (stage is PruningEnv)
    observation, _ = env.reset()
    reward, ended = 0.0, False
    while not ended:
        action, _ = agent.predict(observation)
        observation, _, ended, _, info = env.step(action)
        reward += info["reward_terms"]["reward"]
    assert reward == agent.rewards[agent.choice]


def test_rules_are_tried_under_the_same_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(flops_budget=0.5, transition_noise=True)
    given: list[Any] = []
    reset = env.reset

    def recorded(**options: Any) -> Any:
        given.append(options["options"]["noise_seed"])
        return reset(**options)

    env.reset(seed=0)
    monkeypatch.setattr(env, "reset", recorded)
    agent = Portfolio(env, n_orders=2)
    assert given[:2] * len(agent.rewards) == given and len(set(given)) == 2
    assert agent.n_evaluations == len(given)
    with pytest.raises(ValueError, match="n_orders must be"):
        Portfolio(env, n_orders=0)


@pytest.mark.parametrize("name", ["afie", "sbpf"])
def test_scores_of_layers_are_rules_too(name: str) -> None:
    env = make(flops_budget=0.5, params_budget=0.7)
    rule, agent = Rule(env, name), {"afie": AFIE, "sbpf": SBPF}[name](env)
    np.testing.assert_array_equal(rule.values, agent.rates)
    assert rule.n_evaluations == agent.n_evaluations
    play(env, rule)
    assert env.prior == "middle" and make(flops_budget=0.5, prior=name).prior_value >= 0.0


def test_portfolio_leaves_out_rules_that_do_not_apply() -> None:
    network = seeded(PlainNet)
    network.requires_grad_(False)  # no gradients, and there are no batch norms
    env = PruningEnv(network, make_data(), flops_budget=0.5, finetune_steps=0, device="cpu")
    assert {"uniform", "l1", "l2"} <= Portfolio(env).rewards.keys()
    with pytest.raises(ValueError, match="expected an environment with a budget"):
        Portfolio(PruningEnv(network, make_data(), finetune_steps=0, device="cpu"))
