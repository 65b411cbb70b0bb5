"""Whole episodes in a replay buffer: where they are, what they earned, the best of them.

Shapes: n steps, T of an episode, M episodes, D action dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

__all__ = [
    "Steps",
    "StoredEpisode",
    "best_steps",
    "estimated_returns",
    "steps_of",
    "stored_episodes",
]


class StoredEpisode(NamedTuple):
    """An episode that is in a replay buffer from its first step to its last."""

    rows: NDArray[np.int64]
    """(T,) positions of its transitions, in order."""
    env: int
    """Number of its environment."""
    episode_return: float
    """Sum of its rewards, as the environment gave them."""


class Steps(NamedTuple):
    """What was observed and done."""

    observations: th.Tensor
    """(n, *observation shape), normalised"""
    actions: th.Tensor
    """(n, D), executed"""


def stored_episodes(buffer: ReplayBuffer) -> list[StoredEpisode]:
    """Return all whole episodes of a buffer, in the order of ending, then by environment.

    An episode that was interrupted, is under way or has been overwritten in part is none.
    """
    size = buffer.size()
    # (n,) rows, oldest first
    order = ((buffer.pos if buffer.full else 0) + np.arange(size)) % buffer.buffer_size
    found: dict[tuple[int, int], StoredEpisode] = {}
    for env in range(buffer.n_envs):
        ends, cuts = buffer.dones[order, env] > 0, buffer.timeouts[order, env] > 0
        # What the oldest row of a full buffer belongs to may have begun before it.
        start, is_whole = 0, not buffer.full
        for last in np.flatnonzero(ends | cuts):
            rows = order[start : last + 1]
            if is_whole and ends[last]:
                earned = float(buffer.rewards[rows, env].sum())
                found[int(last), env] = StoredEpisode(rows, env, earned)
            start, is_whole = int(last) + 1, True
    return [found[when] for when in sorted(found)]


def best_steps(
    buffer: ReplayBuffer, n_best: int, normalizer: VecNormalize | None = None
) -> Steps | None:
    """Return all steps of the best whole episodes by return, None where there is none.

    Args:
        buffer: With one transition for each environment in a row.
        n_best: How many episodes, at most; of equal ones those that come first.
        normalizer: What the agent's observations are normalised by.
    """
    ranked = sorted(stored_episodes(buffer), key=lambda each: -each.episode_return)[:n_best]
    return steps_of(buffer, ranked, normalizer) if ranked else None


def estimated_returns(
    q_values: NDArray[np.float64],
    values: NDArray[np.float64],
    lengths: Sequence[int],
    gamma: float,
) -> NDArray[np.float64]:
    """Return ``V(s_0) + sum over t of gamma^t (Q(s_t, a_t) - V(s_t))`` of episodes, (M,).

    With the true Q, and rewards that are no draws, this is an episode's return (Kakade & Langford
    2002, lemma 6.1); with a learnt one it adds up what decisions are given credit for **(ours)**.

    Args:
        q_values: Q(s, a) of all steps, (n,), one episode after the other.
        values: V(s) = Q(s, pi(s)) likewise.
        lengths: Steps of each episode, M numbers that sum up to n.
        gamma: Discount factor in [0, 1].
    """
    splits = np.cumsum(lengths)[:-1]
    pairs = zip(np.split(q_values - values, splits), np.split(values, splits), strict=True)
    return np.array([v[0] + a @ gamma ** np.arange(len(a)) for a, v in pairs if len(v)])


def steps_of(
    buffer: ReplayBuffer, episodes: Sequence[StoredEpisode], normalizer: VecNormalize | None
) -> Steps:
    """Return all steps of some episodes, at least one, in their order."""
    rows = np.concatenate([each.rows for each in episodes])
    envs = np.concatenate([np.full_like(each.rows, each.env) for each in episodes])
    observations = buffer._normalize_obs(buffer.observations[rows, envs], normalizer)
    assert isinstance(observations, np.ndarray)  # Dict observations are rejected at construction
    return Steps(buffer.to_torch(observations), buffer.to_torch(buffer.actions[rows, envs]))
