"""QCriticPPO's buffer and what its critic learns: every step, targets over several, smoothed."""

from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes

from agents import QCriticPPO
from tests.agents.fakes import TargetEnv
from tests.agents.q_critic_ppo.fakes import make_agent, observations, parameters_of, vectorized


def test_critic_sees_the_clipped_action() -> None:
    policy = make_agent().policy
    states = observations(2)
    inside, outside = th.tensor([[1.0], [-1.0]]), th.tensor([[7.0], [-3.0]])
    assert th.equal(policy.q_values(states, inside), policy.q_values(states, outside))
    assert not th.equal(policy.q_values(states, inside), policy.q_values(states, -inside))


def test_buffer_holds_what_was_executed() -> None:
    env = TargetEnv(low=(0.0,), high=(3.0,))
    agent = make_agent(env, policy_kwargs={"log_std_init": 1.0}, learning_starts=0)
    agent.learn(30)
    assert agent.replay_buffer is not None
    stored = agent.replay_buffer.actions[:30, 0]
    assert np.array_equal(stored, np.stack(env.executed))
    assert (stored == 0.0).any() and (stored == 3.0).any()


@pytest.mark.parametrize("n_envs", [1, 2], ids=["1 env", "2 envs"])
def test_first_steps_are_stored_as_often_as_others(n_envs: int) -> None:
    agent = make_agent(vectorized(n_envs, n_steps=3))
    agent.learn(36 * n_envs)
    assert agent.replay_buffer is not None and agent.replay_buffer.size() == 36
    steps = np.rint(agent.replay_buffer.observations[:36, :, 0] * 3).astype(int)
    assert np.bincount(steps.ravel()).tolist() == [12 * n_envs] * 3
    episodes = np.rint(agent.replay_buffer.observations[:36, :, 1] * 1000).astype(int)
    assert (np.unique(episodes[:, 0], return_counts=True)[1] == 3).all()


def test_next_observation_of_a_last_step_is_the_episodes_own() -> None:
    agent = make_agent(TargetEnv(n_steps=3))
    agent.learn(9)
    assert agent.replay_buffer is not None
    buffer = agent.replay_buffer
    assert buffer.next_observations[:9, 0, 0] == pytest.approx(np.tile([1 / 3, 2 / 3, 1], 3))
    assert np.array_equal(buffer.next_observations[:9, 0, 1], buffer.observations[:9, 0, 1])
    assert buffer.rewards[2, 0] != 0.0 and buffer.rewards[1, 0] == 0.0


def test_no_transition_is_lost_when_a_callback_stops() -> None:
    agent = make_agent(TargetEnv(n_steps=3))
    callback = StopTrainingOnMaxEpisodes(max_episodes=2)
    agent.learn(100, callback=callback).learn(3, reset_num_timesteps=False)
    assert agent.replay_buffer is not None and agent.replay_buffer.size() == 9
    steps = np.rint(agent.replay_buffer.observations[:9, 0, 0] * 3).astype(int)
    assert steps.tolist() == [0, 1, 2] * 3


@pytest.mark.parametrize("truncate", [True, False], ids=["truncated", "terminated"])
def test_only_truncation_bootstraps(truncate: bool) -> None:
    agent = make_agent(TargetEnv(n_steps=1, truncate=truncate), gamma=0.5, target_policy_noise=0.0)
    agent.learn(20)
    assert agent.replay_buffer is not None
    batch = agent.replay_buffer.sample(10)
    with th.no_grad():
        mean = agent.policy.actor_target(batch.next_observations)
        next_q_values = agent.policy.target_q_values(batch.next_observations, mean)
    assert next_q_values.abs().min() > 0.0
    expected = batch.rewards + 0.5 * next_q_values * float(truncate)
    assert th.allclose(agent._q_targets(batch), expected)


@pytest.mark.parametrize("target_steps", [1, 2, 10])
def test_targets_sum_rewards_over_target_steps(target_steps: int) -> None:
    agent = make_agent(
        TargetEnv(n_steps=3), gamma=0.5, target_policy_noise=0.0, target_steps=target_steps
    ).learn(30)
    buffer = agent.replay_buffer
    assert buffer is not None
    batch = buffer._get_samples(np.arange(3))  # one episode
    targets = agent._q_targets(batch).flatten()
    reward = float(buffer.rewards[2, 0])
    states = th.as_tensor(buffer.next_observations[:3, 0])
    with th.no_grad():
        later = agent.policy.target_q_values(states, agent.policy.actor_target(states)).flatten()
    expected = {
        1: [0.5 * float(later[0]), 0.5 * float(later[1]), reward],
        2: [0.25 * float(later[1]), 0.5 * reward, reward],
        10: [0.25 * reward, 0.5 * reward, reward],
    }[target_steps]
    assert targets.tolist() == pytest.approx(expected, abs=1e-6)


def test_targets_stop_at_an_interrupted_episode() -> None:
    agent = make_agent(
        TargetEnv(n_steps=3), gamma=0.5, target_policy_noise=0.0, target_steps=10
    ).learn(5)
    agent.learn(4)  # resets in the middle of the second episode
    buffer = agent.replay_buffer
    assert buffer is not None
    assert buffer.timeouts[:9, 0].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    batch = buffer._get_samples(np.array([3]))
    state = th.as_tensor(buffer.next_observations[4])
    with th.no_grad():
        later = agent.policy.target_q_values(state, agent.policy.actor_target(state))
    assert th.allclose(agent._q_targets(batch), 0.25 * later)


def test_a_loaded_buffer_ends_with_an_interrupted_episode(tmp_path: Path) -> None:
    agent = make_agent(TargetEnv(n_steps=3)).learn(5)
    agent.save_replay_buffer(tmp_path / "buffer.pkl")
    agent.load_replay_buffer(tmp_path / "buffer.pkl")
    assert agent.replay_buffer is not None
    assert agent.replay_buffer.timeouts[:5, 0].tolist() == [0, 0, 0, 0, 1]


def two_draws_of_targets(agent: QCriticPPO) -> tuple[th.Tensor, th.Tensor]:
    agent.learn(20)
    assert agent.replay_buffer is not None
    batch = agent.replay_buffer.sample(16)
    return agent._q_targets(batch), agent._q_targets(batch)


def test_target_noise_can_be_switched_off() -> None:
    quiet = two_draws_of_targets(make_agent(target_policy_noise=0.0))
    no_clip_room = two_draws_of_targets(make_agent(target_noise_clip=0.0))
    noisy = two_draws_of_targets(make_agent(target_policy_noise=0.5))
    assert th.equal(*quiet) and th.equal(*no_clip_room)
    assert not th.equal(*noisy)


def test_target_noise_is_clipped_and_logged() -> None:
    agent = make_agent(target_policy_noise=100.0, target_noise_clip=0.25)
    two_draws_of_targets(agent)
    shift = agent.logger.name_to_value["train/target_action_shift"]
    assert shift == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("tau", [1.0, 0.1], ids=["no smoothing", "smoothed"])
def test_targets_follow_with_tau(tau: float) -> None:
    agent = make_agent(tau=tau)
    agent.learn(12)
    agent.gradient_steps = 1
    old = parameters_of(agent)
    agent.train()
    new = parameters_of(agent)
    for name in ("actor.net.0.weight", "actor.log_std", "critic.qf0.0.weight"):
        module, rest = name.split(".", 1)
        expected = tau * new[name] + (1.0 - tau) * old[f"{module}_target.{rest}"]
        assert not th.equal(new[name], old[name])
        assert th.allclose(new[f"{module}_target.{rest}"], expected, atol=1e-7)
