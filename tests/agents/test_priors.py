"""Agents that give values execute them whatever the prior of the environment is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from agents import AFIE, SBPF, Greedy, Portfolio, Rule, Uniform
from agents.importance import GivenRates
from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from experiments.search.playing import play
from experiments.search.uniform import uniform_policy
from tests.fakes import BranchedNet, PlainNet, make_data, seeded

QUICK: dict[str, Any] = {"finetune_steps": 0, "device": "cpu", "reward_at": "episode"}
PRUNING: dict[str, Callable[[Any], Any]] = {
    "uniform": uniform_policy,
    "l2": lambda env: Rule(env, "l2"),
    "taylor": lambda env: Rule(env, "taylor"),
    "afie": AFIE,
    "sbpf": lambda env: SBPF(env, seed=0, n_rounds=2, n_trials=1),
    "greedy": Greedy,
    "portfolio": Portfolio,
    "given": lambda env: GivenRates(np.full(len(env.walk), 0.6), env),
}
BITS: dict[str, Callable[[Any], Any]] = {
    "uniform": uniform_policy,
    "relative_error": lambda env: Rule(env, "relative_error"),
    "greedy": Greedy,
    "portfolio": Portfolio,
    "given": lambda env: GivenRates(np.full(len(env.walk), 5 / 8), env),
}


def pruning(prior: str, build: Callable[[], nn.Module] = BranchedNet) -> PruningEnv:
    options: dict[str, Any] = QUICK | {"method": "magnitude", "flops_budget": 0.5}
    return PruningEnv(seeded(build), make_data(), prior=prior, **options)


def bits(prior: str) -> QuantizationEnv:
    return QuantizationEnv(seeded(PlainNet), make_data(), size_budget=0.3, prior=prior, **QUICK)


def executed(env: LayerwiseCompressionEnv, agent: Any) -> tuple[float, ...]:
    return play(env, agent).values


@pytest.mark.parametrize("prior", ["uniform", "l1"])
@pytest.mark.parametrize("name", PRUNING)
def test_rates_are_executed_under_every_prior(name: str, prior: str) -> None:
    expected, found = (
        executed(env, PRUNING[name](env)) for env in (pruning("middle"), pruning(prior))
    )
    assert found == expected and len(set(found)) > 1


@pytest.mark.parametrize("prior", ["uniform", "relative_error"])
@pytest.mark.parametrize("name", BITS)
def test_bits_are_executed_under_every_prior(name: str, prior: str) -> None:
    expected, found = (executed(env, BITS[name](env)) for env in (bits("middle"), bits(prior)))
    assert found == expected


def test_the_prior_itself_is_action_zero() -> None:
    for env, rule in ((pruning("l2"), "l2"), (bits("relative_error"), "relative_error")):
        episode = play(env, Rule(env, rule))
        assert set(episode.actions) == {0.0}
    env = pruning("uniform")
    assert set(play(env, uniform_policy(env)).actions) == {0.0}


def test_agents_run_under_evaluate_policy() -> None:
    env = pruning("uniform", PlainNet)
    rewards = [
        evaluate_policy(Rule(env, "l2"), on, n_eval_episodes=2, warn=False)[0]
        for on in (env, DummyVecEnv([lambda: env]))
    ]
    assert rewards == pytest.approx([play(env, Rule(env, "l2")).reward] * 2)


@pytest.mark.parametrize("agent", [Uniform(0.5), GivenRates(np.full(3, 0.5))])
def test_what_is_observed_suffices_without_a_prior(agent: Any) -> None:
    env = pruning("middle", PlainNet)
    observation, _ = env.reset()
    action, _ = agent.predict(observation)
    assert action == pytest.approx(env.action_for(0.5), abs=1e-6)


def test_observations_of_elsewhere_are_refused_with_a_prior() -> None:
    env = pruning("uniform", PlainNet)
    for agent in (Uniform(0.5, env=env), GivenRates(np.full(3, 0.5), env)):
        observation, _ = env.reset()
        assert agent.predict(observation)[0].shape == (1,)
        assert agent.predict(observation[None])[0].shape == (1, 1)
        with pytest.raises(ValueError, match="as the environment has a prior, got 2"):
            agent.predict(np.stack([observation, observation]))
        env.step(np.zeros(1, np.float32))
        with pytest.raises(ValueError, match="expected the present observation"):
            agent.predict(observation)
