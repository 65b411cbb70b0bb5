"""Small agents of every algorithm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import CIMPPO, CMAES, KLPPO, TPE, QCriticPPO
from tests.agents.fakes import TargetEnv

N_STEPS = 3
PENALTIES: list[Any] = [KLPPO, CIMPPO]
LEARNERS: list[Any] = [*PENALTIES, QCriticPPO]
SEARCHES: list[Any] = [CMAES, TPE]
AGENTS: list[Any] = [*LEARNERS, *SEARCHES]
each_agent = pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.__name__)
each_learner = pytest.mark.parametrize("agent", LEARNERS, ids=lambda agent: agent.__name__)


def settings_of(agent: Any) -> dict[str, Any]:
    if agent in SEARCHES:
        return {"n_decisions": N_STEPS, "seed": 0}
    common = {"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
    if agent is QCriticPPO:
        return common | {"learning_starts": 4, "batch_size": 8, "gradient_steps": 1}
    return common | {"n_steps": 12, "batch_size": 12, "n_epochs": 2}


def make(agent: Any, env: Any = None, policy: Any = "MlpPolicy", **settings: Any) -> Any:
    return agent(policy, env or TargetEnv(N_STEPS), **(settings_of(agent) | settings))


def vectorized(n_envs: int) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(TargetEnv(N_STEPS))] * n_envs)


def actions_of(agent: Any) -> NDArray[Any]:
    """Return what the agent does at each step of an episode."""
    observations = np.zeros((N_STEPS, 2), np.float32)
    observations[:, 0] = np.arange(N_STEPS) / N_STEPS
    state, actions = None, []
    for observation in observations:
        action, state = agent.predict(observation, state, deterministic=True)
        actions.append(action)
    return np.stack(actions)


def learnt_by(agent: Any) -> list[float]:
    """Return all that learning changes: weights, or the values of sequences."""
    if isinstance(agent, CMAES | TPE):
        return [value for _, value in agent.search_state()["history"] if value is not None]
    weights = th.nn.utils.parameters_to_vector(agent.policy.parameters())
    return weights.tolist()
