"""What trains and steps agents elsewhere works with the environments as they are."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics, RescaleAction, TimeLimit
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecMonitor,
    VecNormalize,
)

import compress_env
from agents import QCriticPPO
from compress_env.envs.base import LayerwiseCompressionEnv
from tests.fakes import PlainNet, make_data, seeded

PRUNING = "compress_env/Pruning-v0"
N_LAYERS = 3
RATES = np.array([[0.5], [-0.2], [0.1]], np.float32)


def settings(**options: Any) -> dict[str, Any]:
    quick: dict[str, Any] = {"finetune_steps": 0, "device": "cpu", "method": "magnitude"}
    return quick | {"model": seeded(PlainNet), "data": make_data()} | options


def make(**options: Any) -> gym.Env[Any, Any]:
    return gym.make(PRUNING, **settings(**options))


def dummy(n_envs: int = 2, **options: Any) -> DummyVecEnv:
    return DummyVecEnv([functools.partial(make, **options)] * n_envs)


def play(env: gym.Env[Any, Any], actions: NDArray[np.float32] = RATES) -> list[tuple[Any, ...]]:
    env.reset(seed=0)
    return [env.step(action) for action in actions]


def core(env: gym.Env[Any, Any]) -> LayerwiseCompressionEnv:
    unwrapped = env.unwrapped
    assert isinstance(unwrapped, LayerwiseCompressionEnv)
    return unwrapped


def ppo(env: Any) -> PPO:
    return PPO("MlpPolicy", env, n_steps=6, batch_size=6, n_epochs=2, seed=0, device="cpu")


def test_make_vec_in_one_process_steps_as_single_environments_do() -> None:
    """With Gymnasium's own way to go on after the end, a step later."""
    vector = gym.make_vec(PRUNING, num_envs=2, vectorization_mode="sync", **settings())
    assert vector.observation_space.shape == (2, 9) and vector.action_space.shape == (2, 1)
    expected = [play(make()), play(make(), -RATES)]
    first, _ = vector.reset(seed=0)
    for t in range(N_LAYERS):
        observations, rewards, terminated, truncated, info = vector.step(
            np.stack([RATES[t], -RATES[t]])
        )
        for number, steps in enumerate(expected):
            np.testing.assert_array_equal(observations[number], steps[t][0])
            assert rewards[number] == steps[t][1]
            assert info["pruning_rate"][number] == steps[t][-1]["pruning_rate"]
        assert terminated.tolist() == [t == N_LAYERS - 1] * 2 and not truncated.any()
    observations, rewards, terminated, _, _ = vector.step(np.zeros((2, 1), np.float32))
    np.testing.assert_array_equal(observations, first)
    assert rewards.tolist() == [0.0, 0.0] and not terminated.any()
    vector.close()


def test_vector_wrappers_of_gymnasium() -> None:
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(
        gym.make_vec(PRUNING, num_envs=2, **settings())
    )
    wrapped.reset(seed=0)
    total = np.zeros(2)
    for _ in range(N_LAYERS):
        _, rewards, _, _, info = wrapped.step(wrapped.action_space.sample())
        total += rewards
    np.testing.assert_allclose(info["episode"]["r"], total, rtol=1e-6)
    assert info["episode"]["l"].tolist() == [N_LAYERS] * 2


def test_rescaled_actions_are_the_same_actions() -> None:
    env = RescaleAction(make(), np.float32(0.0), np.float32(1.0))
    assert isinstance(env.action_space, gym.spaces.Box)
    assert env.action_space.low.item() == 0.0 and env.action_space.high.item() == 1.0
    found, expected = play(env, (RATES + 1.0) / 2.0), play(make())
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one[0], other[0])
        assert one[-1]["pruning_rate"] == pytest.approx(other[-1]["pruning_rate"], abs=1e-6)


def test_episode_statistics_are_recorded() -> None:
    steps = play(RecordEpisodeStatistics(make()))
    assert "episode" not in steps[0][-1]
    episode = steps[-1][-1]["episode"]
    assert episode["l"] == N_LAYERS
    assert episode["r"] == pytest.approx(sum(step[1] for step in steps))


def test_a_time_limit_truncates_and_the_next_episode_is_whole() -> None:
    env = TimeLimit(make(), 2)
    steps = play(env, RATES[:2])
    assert [step[2:4] for step in steps] == [(False, False), (False, True)]
    assert [step[2:4] for step in play(TimeLimit(env.env, 5))] == [(False, False)] * 2 + [
        (True, False)
    ]
    assert core(env).compressed_model() is not None


def test_an_agent_learns_under_a_time_limit() -> None:
    agent = QCriticPPO("MlpPolicy", TimeLimit(make(), 2), seed=0, device="cpu", learning_starts=4)
    agent.learn(12)
    assert agent.replay_buffer is not None
    assert agent.replay_buffer.timeouts[:12, 0].tolist() == [0, 1] * 6
    assert not agent.replay_buffer.dones[:12, 0][::2].any()


@pytest.mark.parametrize("learner", ["PPO", "QCriticPPO"])
def test_normalized_and_monitored(learner: str) -> None:
    vector = VecNormalize(VecMonitor(dummy(), info_keywords=("accuracy", "dense_macs")))
    agent: Any = ppo(vector)
    if learner == "QCriticPPO":
        agent = QCriticPPO("MlpPolicy", vector, seed=0, device="cpu", learning_starts=4)
    agent.learn(24)
    assert vector.ret_rms.count > 20
    scaled: Any = vector.normalize_obs(np.zeros((2, 9), np.float32))
    assert not np.allclose(scaled, 0.0)
    assert agent.ep_info_buffer is not None and len(agent.ep_info_buffer) == 8
    for episode in agent.ep_info_buffer:
        assert episode["l"] == N_LAYERS
        assert -N_LAYERS <= episode["r"] <= 0.0  # of the rewards as they are
        assert 0.0 <= episode["accuracy"] <= 1.0 and episode["dense_macs"] > 0
    vector.training = False
    action, _ = agent.predict(vector.reset(), deterministic=True)
    assert action.shape == (2, 1) and np.abs(action).max() <= 1.0


def test_environments_in_one_process_do_not_meet() -> None:
    """Each takes its own actions, and ends with what it would be alone."""
    vector = dummy()
    vector.reset()
    for action in RATES:
        _, _, dones, infos = vector.step(np.stack([action, -action]))
    assert dones.all()
    for actions, info in zip((RATES, -RATES), infos, strict=True):
        alone = play(make(), actions)[-1]
        np.testing.assert_array_equal(info["terminal_observation"], alone[0])
        assert info["dense_macs"] == alone[-1]["dense_macs"]
        assert info["accuracy"] == alone[-1]["accuracy"]
        assert info["TimeLimit.truncated"] is False


def weights_after(vector: VecEnv) -> list[NDArray[np.float32]]:
    agent = ppo(vector).learn(24)
    return [p.detach().numpy().copy() for p in agent.policy.parameters()]


@pytest.mark.slow
def test_ppo_learns_the_same_from_processes_as_without() -> None:
    actors = compress_env.make_actors(make, 1, threads_per_actor=1)
    workers = SubprocVecEnv(list(actors), start_method="spawn")
    try:
        found = weights_after(workers)
    finally:
        workers.close()
    expected = weights_after(dummy(1))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_tqc_of_sb3_contrib_learns() -> None:
    contrib = pytest.importorskip("sb3_contrib")
    env = make()
    agent = contrib.TQC("MlpPolicy", env, learning_starts=6, seed=0, device="cpu", batch_size=8)
    before = [p.detach().clone() for p in agent.actor.parameters()]
    agent.learn(15)
    after = list(agent.actor.parameters())
    assert any(not (a == b).all() for a, b in zip(before, after, strict=True))
    action, _ = agent.predict(env.reset()[0], deterministic=True)
    assert env.action_space.contains(action)
