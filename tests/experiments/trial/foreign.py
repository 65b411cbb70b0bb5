"""Agents of anybody's, some of which cannot do what a trial asks of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3 import PPO

from agents import Random

FOREIGN = __name__
"""The module of these agents, as their names begin."""


class Midway:
    """Acts the same everywhere, and knows nothing but `predict`."""

    def __init__(self, policy: str, env: Any, seed: int) -> None:
        assert policy == "MlpPolicy" and env.num_envs == 1
        self.seed = seed

    def predict(self, observation: Any, deterministic: bool = False) -> tuple[Any, None]:
        return np.zeros((len(observation), 1), np.float64), None


class Stepper(Midway):
    """Learns nothing, for as many steps as it is told to, and takes no callbacks."""

    def __init__(self, policy: str, env: Any, seed: int) -> None:
        super().__init__(policy, env, seed)
        self.env = env
        self.policy = Random(env.observation_space, env.action_space, seed)

    def learn(self, total_timesteps: int) -> None:
        observations = self.env.reset()
        for _ in range(total_timesteps):
            actions, _ = self.policy.predict(observations)
            observations, *_ = self.env.step(actions)


class SmallPPO(PPO):
    def __init__(self, policy: str, env: Any, seed: int) -> None:
        super().__init__(policy, env, n_steps=8, batch_size=8, seed=seed, device="cpu")


class Stubborn(Stepper):
    """Takes no exception for an answer."""

    def learn(self, total_timesteps: int) -> None:
        for _ in range(2):
            try:
                super().learn(total_timesteps)
            except Exception:
                continue


class NoSeed:
    def __init__(self, policy: str, env: Any) -> None: ...

    def predict(self, observation: Any, deterministic: bool = False) -> Any: ...


class NoMode(Midway):
    def predict(self, observation: Any) -> Any: ...  # type: ignore[override]


class WrongShape(Midway):
    def predict(self, observation: Any, deterministic: bool = False) -> tuple[Any, None]:
        return np.zeros(1), None


class Failing(Stepper):
    def learn(self, total_timesteps: int) -> None:
        raise KeyError("x")


INSTANCE = Midway("MlpPolicy", type("Env", (), {"num_envs": 1}), 0)
