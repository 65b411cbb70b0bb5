"""Whole episodes in a replay buffer, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from agents.common.episodes import best_steps, estimated_returns, stored_episodes

BOX = spaces.Box(-1.0, 1.0, (1,), np.float32)


def buffer_of(rewards: list[list[float]], ends: list[list[int]], size: int = 20) -> ReplayBuffer:
    """Make a buffer; row t of environment i observes t / 100 and does i + t / 100."""
    n_envs = len(rewards[0])
    buffer = ReplayBuffer(size, BOX, BOX, "cpu", n_envs)
    for t, (earned, ended) in enumerate(zip(rewards, ends, strict=True)):
        observed = np.full((n_envs, 1), t / 100, np.float32)
        done = observed + np.arange(n_envs)[:, None]
        infos: list[dict[str, object]] = [{} for _ in range(n_envs)]
        buffer.add(observed, observed, done, np.array(earned), np.array(ended), infos)
    return buffer


def test_episodes_are_found_in_the_order_of_ending() -> None:
    rewards = [[1.0, 0.0], [2.0, 0.0], [3.0, 5.0], [4.0, 0.0]]
    found = stored_episodes(buffer_of(rewards, [[0, 0], [1, 0], [0, 1], [1, 0]]))
    assert [(each.env, each.rows.tolist()) for each in found] == [
        (0, [0, 1]),
        (1, [0, 1, 2]),
        (0, [2, 3]),
    ]
    assert [each.episode_return for each in found] == [3.0, 5.0, 7.0]


def test_interrupted_episodes_and_those_under_way_are_none() -> None:
    buffer = buffer_of([[1.0]] * 5, [[0], [0], [0], [1], [0]])
    buffer.timeouts[1] = 1.0  # the first was cut there
    assert [each.rows.tolist() for each in stored_episodes(buffer)] == [[2, 3]]


def test_an_episode_that_is_overwritten_in_part_is_none() -> None:
    # Rows 0 and 1 of four have been written again: 2 and 3 are all that is left of their episode.
    buffer = buffer_of([[1.0]] * 6, [[0], [0], [0], [1], [0], [1]], size=4)
    assert [each.rows.tolist() for each in stored_episodes(buffer)] == [[0, 1]]


def test_best_steps_are_those_of_the_highest_returns() -> None:
    rewards = [[0.0, 0.0], [1.0, 3.0], [0.0, 0.0], [2.0, 0.0]]
    buffer = buffer_of(rewards, [[0, 0], [1, 1], [0, 0], [1, 1]])
    steps = best_steps(buffer, 2)
    assert steps is not None
    assert steps.actions[:, 0].tolist() == pytest.approx([1.0, 1.01, 0.02, 0.03])
    assert steps.observations[:, 0].tolist() == pytest.approx([0.0, 0.01, 0.02, 0.03])
    all_steps = best_steps(buffer, 100)
    assert all_steps is not None and len(all_steps.actions) == 8


def test_without_a_whole_episode_there_is_no_best() -> None:
    assert best_steps(buffer_of([[1.0]] * 3, [[0]] * 3), 4) is None


def test_estimated_returns_by_hand() -> None:
    """V(s_0) plus the discounted advantages: 1 + 1 + 0.5 * (-1), and 4 - 2."""
    q_values, values = np.array([2.0, 3.0, 2.0]), np.array([1.0, 4.0, 4.0])
    found = estimated_returns(q_values, values, [2, 1], gamma=0.5)
    assert found.tolist() == pytest.approx([1.5, 2.0])


def test_estimated_returns_of_a_true_critic_are_the_returns() -> None:
    """Three decisions, then a reward: Q of one is V of the next, and the last Q is the reward."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=6)
    rewards = rng.normal(size=2)
    q_values = np.array([*values[1:3], rewards[0], *values[4:6], rewards[1]])
    found = estimated_returns(q_values, values, [3, 3], gamma=1.0)
    assert found.tolist() == pytest.approx(rewards.tolist())
