"""Credit for each decision before an episode ends: a wrapper that adds to the reward."""

from __future__ import annotations

import math
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.stage import Action, Observation
from compress_env.envs.wrappers.context import BITS, RATES, curves_of, stage_of

__all__ = ["PotentialReward", "layer_lost"]


class PotentialReward(gym.Wrapper[Observation, Action, Observation, Action], RecordConstructorArgs):
    """Adds to each reward what a decision does to a potential (Ng, Harada & Russell 1999).

    Each decision is charged at once for what it takes from the network, and the last one is given
    all of it back: credit before the end of an episode, by which no policy gains or loses.

    ## Added to the reward

    The reward r becomes r + gamma Phi(s') - Phi(s), where **(ours)**

        Phi(s) = -weight * (share of the network's saliency that is lost so far)

    and Phi = 0 before the first decision and after the end. With gamma = 1 the return of every
    episode stays what it was, but for rounding; a learner that discounts needs its own gamma here,
    and then each discounted return is what it was. So it is where a step fails. The environments do
    not truncate; where a wrapper within does, the episode goes on for the learner, and s' keeps its
    potential.

    What is lost is the mean over all layers of what `LayerContext` tells of each: for pruning, the
    share of the layer's Fisher information at the rate that was executed; for quantization, the
    error of its weights at its bits. Between the points of these curves it is interpolated.

    The environment's own reward stays in `info["reward_terms"]`; what is added to it is
    `info["shaping"]`. Searches rank episodes by the former.
    """

    def __init__(
        self, env: gym.Env[Observation, Action], weight: float = 1.0, *, gamma: float = 1.0
    ) -> None:
        """Look at the network, unless a `LayerContext` has done so.

        Args:
            env: A pruning or quantization environment, with or without wrappers.
            weight: What the loss of all saliency counts, in the unit of the reward; 0 or more.
            gamma: Discount factor of the learner, in [0, 1].

        Raises:
            TypeError: If it is of neither stage.
            ValueError: If a number is out of range.
        """
        RecordConstructorArgs.__init__(self, weight=weight, gamma=gamma)
        super().__init__(env)
        self.stage = stage_of(env)
        if not (math.isfinite(weight) and weight >= 0.0):
            raise ValueError(f"weight must be 0 or more, got {weight}")
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma must be in [0, 1], got {gamma}")
        self.weight, self.gamma = weight, gamma
        self._curves = curves_of(self.stage)  # a copy need not compute them again

    def step(self, action: Action) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take a step, and add what it does to the potential."""
        before = self.potential()
        observation, reward, terminated, truncated, info = self.env.step(action)
        after = 0.0 if terminated else self.potential()
        shaping = self.gamma * after - before
        return (
            observation,
            float(reward) + shaping,
            terminated,
            truncated,
            info | {"shaping": shaping},
        )

    def potential(self) -> float:
        """Return Phi of the decisions so far, in [-weight, 0]."""
        lost = zip(self._curves, self.stage.decided, strict=False)
        total = sum(layer_lost(self.stage, curve, decision.value) for curve, decision in lost)
        return -self.weight * total / len(self.stage.walk)


def layer_lost(env: LayerwiseCompressionEnv, curve: NDArray[np.float32], value: float) -> float:
    """Return the share of a layer's saliency that a decision costs, in [0, 1].

    Args:
        env: The environment that the decision is of.
        curve: (6,) or (4,), the layer's row of `compress_env.envs.wrappers.context.curves_of`.
        value: Pruning rate or bits.
    """
    if isinstance(env, PruningEnv):
        lost = np.interp(value, (0.0, *RATES, 1.0), (0.0, *curve[: len(RATES)], 1.0))
    else:
        lost = np.interp(value, BITS, curve)
    return min(max(float(lost), 0.0), 1.0)
