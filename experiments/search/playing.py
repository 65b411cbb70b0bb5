"""One episode without exploration, and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from stable_baselines3.common.type_aliases import PolicyPredictor

from compress_env.envs.base import LayerwiseCompressionEnv
from experiments.search.policies import Script, StagePolicy

__all__ = ["Played", "play", "play_actions"]


class Played(NamedTuple):
    """One episode."""

    actions: tuple[float, ...]
    """In [-1, 1], one for each layer."""
    accuracy: float
    """Validation accuracy of the network; NaN when the episode failed."""
    reward: float
    """Sum of rewards."""
    cost: float
    """Multiply-accumulates per image when pruning, bytes when quantizing; NaN when it failed."""
    dense_macs: int
    """Multiply-accumulates per image."""
    dense_params: int
    """Parameters as stored."""
    sparse_macs: int
    """Multiply-accumulates by non-zero weights."""
    sparse_params: int
    """Non-zero parameters."""


def play(env: LayerwiseCompressionEnv, policy: PolicyPredictor) -> Played:
    """Let a policy act for one episode; the environment then holds its network.

    Args:
        env: The environment.
        policy: Asked for its deterministic actions, on batches of one observation.
    """
    observation, _ = env.reset()
    actions: list[float] = []
    reward, ended = 0.0, False
    while not ended:
        batch, _ = policy.predict(observation[None], deterministic=True)
        action = np.asarray(batch, np.float32)[0]
        observation, _, ended, _, info = env.step(action)
        actions.append(float(action[0]))
        reward += info["reward_terms"]["reward"]
    return Played(
        actions=tuple(actions),
        accuracy=info["accuracy"],
        reward=reward,
        cost=info["reward_terms"].get("cost", float("nan")),
        dense_macs=info["dense_macs"],
        dense_params=info["dense_params"],
        sparse_macs=info["sparse_macs"],
        sparse_params=info["sparse_params"],
    )


def play_actions(env: LayerwiseCompressionEnv, actions: Sequence[float]) -> Played:
    """Take given actions; the environment then holds their network.

    Raises:
        ValueError: If there are more than layers, or fewer and the episode does not end with them.
    """
    try:
        if len(actions) <= len(env.walk):
            return play(env, Script(StagePolicy((), (), tuple(actions))))
    except StopIteration:
        pass
    raise ValueError(f"expected {len(env.walk)} actions, one for each layer, got {len(actions)}")
