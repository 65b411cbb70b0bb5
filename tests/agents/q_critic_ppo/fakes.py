"""Small QCriticPPO agents, and what is read off them."""

from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import QCriticPPO
from tests.agents.fakes import TargetEnv


def make_agent(env: gym.Env[Any, Any] | DummyVecEnv | None = None, **kwargs: Any) -> QCriticPPO:
    arguments: dict[str, Any] = {
        "learning_starts": 8,
        "batch_size": 16,
        "seed": 0,
        "device": "cpu",
    } | kwargs
    return QCriticPPO("MlpPolicy", env or TargetEnv(), **arguments)


def vectorized(n_envs: int, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(TargetEnv(**kwargs)) for _ in range(n_envs)])


def greedy_return(agent: QCriticPPO, n_steps: int = 2) -> float:
    returns, _ = evaluate_policy(
        agent, Monitor(TargetEnv(n_steps=n_steps)), n_eval_episodes=1, return_episode_rewards=True
    )
    assert isinstance(returns, list)
    return returns[0]


def parameters_of(agent: QCriticPPO) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in agent.policy.state_dict().items()}


def observations(n: int = 5) -> th.Tensor:
    return th.rand(n, 2, generator=th.Generator().manual_seed(0))
