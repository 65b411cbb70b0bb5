"""Agents on the compression environments: they train, and no first step of an episode is lost."""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents import QCriticPPO, Random, Uniform
from compress_env.envs.base import LayerState
from tests.fakes import PlainNet, make_data, seeded, slow

IDS = ("compress_env/Pruning-v0", "compress_env/Quantization-v0")
LEARNERS: list[Any] = [PPO, SAC, QCriticPPO, *slow(A2C, DDPG, TD3)]


@cache
def data() -> Any:
    return make_data()


def make(name: str, **options: Any) -> gym.Env[Any, Any]:
    settings: dict[str, Any] = {"finetune_steps": 0, "device": "cpu"} | options
    return gym.make(name, model=seeded(PlainNet), data=data(), **settings)


@pytest.mark.parametrize("name", IDS, ids=["pruning", "quantization"])
@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.__name__)
def test_learners_train_with_nothing_special(learner: Any, name: str) -> None:
    env = make(name)
    small = {"n_steps": 12, "batch_size": 12} if learner is PPO else {}
    agent: BaseAlgorithm = learner("MlpPolicy", env, seed=0, device="cpu", **small)
    before = [p.clone() for p in agent.policy.parameters()]
    agent.learn(120)
    after = list(agent.policy.parameters())
    assert any(not (a == b).all() for a, b in zip(before, after, strict=True))
    action, _ = agent.predict(env.reset()[0], deterministic=True)
    assert env.action_space.contains(action)


@pytest.mark.parametrize("learner", [SAC, QCriticPPO], ids=lambda learner: learner.__name__)
def test_every_layer_is_replayed_as_often(learner: Any) -> None:
    env = make(IDS[1])
    agent: OffPolicyAlgorithm = learner("MlpPolicy", env, seed=0, device="cpu", learning_starts=8)
    agent.learn(40)  # ten episodes of four layers
    buffer = agent.replay_buffer
    assert buffer is not None
    index = LayerState._fields.index("index")
    stored = buffer.observations[: buffer.pos, 0, index]
    positions, counts = np.unique(stored.round(4), return_counts=True)
    np.testing.assert_allclose(positions, [0, 1 / 3, 2 / 3, 1], atol=1e-3)
    assert counts.tolist() == [10, 10, 10, 10]
    drawn = buffer.sample(8_000).observations[:, index].numpy().round(4)
    shares = np.unique(drawn, return_counts=True)[1] / 8_000
    np.testing.assert_allclose(shares, 0.25, atol=0.03)


def test_q_critic_ppo_learns_from_two_environments_at_once() -> None:
    def build() -> gym.Env[Any, Any]:
        return make(IDS[0])

    vector = make_vec_env(build, n_envs=2, seed=0)
    agent = QCriticPPO("MlpPolicy", vector, seed=0, device="cpu", learning_starts=10)
    agent.learn(60)
    assert agent.num_timesteps == 60
    assert agent.replay_buffer is not None and agent.replay_buffer.size() == 30


@pytest.mark.slow
def test_q_critic_ppo_finds_what_to_keep() -> None:
    """Fewer bits always pay here, whatever becomes of the network."""
    env = make(IDS[1], scorer=lambda _: 1.0, reward=lambda x: -x.cost / x.cost_high)
    agent = QCriticPPO("MlpPolicy", env, seed=0, device="cpu", gamma=1.0)
    uniform, _ = evaluate_policy(Uniform(0.5), env, n_eval_episodes=1, warn=False)
    agent.learn(400)
    learnt, _ = evaluate_policy(agent, env, n_eval_episodes=1, warn=False)
    assert isinstance(learnt, float) and isinstance(uniform, float)
    assert learnt > uniform


def test_baselines_run_through_evaluate_policy() -> None:
    env = make(IDS[0], flops_budget=0.5)
    random = Random(env.observation_space, env.action_space, seed=0)
    for policy in (random, Uniform(0.4)):
        mean, _ = evaluate_policy(policy, env, n_eval_episodes=2, warn=False)
        assert isinstance(mean, float) and -3.0 <= mean <= 0.0
