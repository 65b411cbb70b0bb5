"""Small environments for the agents' tests."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

__all__ = ["TargetEnv"]


class TargetEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A short episode with the reward ``1 - mean((action - target)^2)`` at its end.

    Entry 0 of the observation is the step divided by ``n_steps``, entry 1 the number of the
    episode divided by 1000, the rest are zeros.

    Args:
        n_steps: decisions per episode.
        low: lower bounds of the action space.
        high: upper bounds of the action space; targets lie at 3/4 of the way, alternating with 1/4.
        truncate: end by truncation instead of termination.
        observation_dim: entries of the observation, at least 2.
    """

    def __init__(
        self,
        n_steps: int = 3,
        low: tuple[float, ...] = (-1.0,),
        high: tuple[float, ...] = (1.0,),
        truncate: bool = False,
        observation_dim: int = 2,
    ) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (observation_dim,), np.float32)
        self.action_space = spaces.Box(
            np.asarray(low, np.float32), np.asarray(high, np.float32), dtype=np.float32
        )
        self.n_steps = n_steps
        self.truncate = truncate
        self.n_episodes = 0
        self.errors: list[float] = []
        self.executed: list[NDArray[np.float32]] = []

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        space = self.action_space
        assert isinstance(space, spaces.Box) and space.contains(action)
        self.executed.append(action.copy())
        unit = (action - space.low) / (space.high - space.low)
        target = 0.75 if len(self.errors) % 2 == 0 else 0.25
        self.errors.append(float(np.mean((2.0 * (unit - target)) ** 2)))
        ended = len(self.errors) == self.n_steps
        reward = 1.0 - float(np.mean(self.errors)) if ended else 0.0
        return self._get_obs(), reward, ended and not self.truncate, ended and self.truncate, {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.errors = []
        self.n_episodes += 1
        return self._get_obs(), {}

    def _get_obs(self) -> NDArray[np.float32]:
        observation = np.zeros(self.observation_space.shape or (), np.float32)
        observation[0] = len(self.errors) / self.n_steps
        observation[1] = self.n_episodes / 1000
        return observation
