"""The paper's agent: the ratio against the policy that has collected the data, and its preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import QCriticPPO
from agents.q_critic_ppo import PAPER, PAPER_ENVS
from tests.agents.q_critic_ppo.fakes import make_agent, parameters_of, vectorized


def paper(n_envs: int = 2, **kwargs: Any) -> QCriticPPO:
    return QCriticPPO.paper("MlpPolicy", vectorized(n_envs), seed=0, device="cpu", **kwargs)


def test_preset_is_the_papers_and_may_be_changed() -> None:
    agent = paper()
    assert {name: getattr(agent, name) for name in PAPER if name != "clip_range"} == {
        name: value for name, value in PAPER.items() if name != "clip_range"
    }
    agent.learn(8)
    rates = [
        net.optimizer.param_groups[0]["lr"] for net in (agent.policy.actor, agent.policy.critic)
    ]
    assert rates == [1e-3, 1e-3] and agent.clip_range(1.0) == 0.2  # type: ignore[operator]
    assert (agent.advantage, agent.target_steps, agent.prior_policy) == ("q", 1, "behavior")
    assert paper(target_steps=3).target_steps == 3


def test_of_an_id_four_actors_are_made() -> None:
    assert QCriticPPO.paper("MlpPolicy", "Pendulum-v1", device="cpu").n_envs == PAPER_ENVS == 4
    assert QCriticPPO.paper("MlpPolicy", "Pendulum-v1", n_envs=2, device="cpu").n_envs == 2
    with pytest.raises(ValueError, match=r"n_envs must be a whole number at least 1, got 1.5"):
        QCriticPPO.paper("MlpPolicy", "Pendulum-v1", n_envs=1.5)  # type: ignore[arg-type]


def test_ratio_is_against_the_policy_that_has_acted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored actions are those that were executed, before the clip, judged by raw Q."""
    agent = paper(policy_kwargs={"log_std_init": 1.0}, n_steps=2)
    seen: list[Any] = []
    sample = agent._sample_prior

    def watch(observations: th.Tensor) -> Any:
        prior = sample(observations)
        # Nothing of the actor has been updated since: so it is the policy that has acted.
        distribution = agent.policy.get_distribution(prior.observations)
        with th.no_grad():
            expected = distribution.log_prob(prior.actions)
            q_values = agent.policy.q_values(prior.observations, prior.actions).squeeze(1)
        buffer = agent.replay_buffer
        assert buffer is not None
        executed = buffer.actions[buffer.pos - 2 : buffer.pos].reshape(-1, 1)
        seen.append((prior, expected, q_values, executed))
        return prior

    monkeypatch.setattr(agent, "_sample_prior", watch)
    agent.learn(8)
    assert len(seen) == 2
    for prior, expected, q_values, executed in seen:
        assert prior.actions.shape == (4, 1)  # two steps of two environments
        assert th.allclose(prior.log_prob, expected) and th.allclose(prior.advantages, q_values)
        assert np.allclose(prior.actions.clamp(-1.0, 1.0).numpy(), executed)
    assert any((prior.actions.abs() > 1.0).any() for prior, *_ in seen)


def test_behavior_and_target_are_other_priors() -> None:
    agent = make_agent(vectorized(2), prior_policy="behavior", n_action_samples=3).learn(16)
    assert agent._sample_prior(th.zeros(5, 2)).actions.shape == (2, 1)
    agent.prior_policy = "target"
    assert agent._sample_prior(th.zeros(5, 2)).actions.shape == (15, 1)


def test_a_baseline_can_be_taken_off_collected_actions_too() -> None:
    agent = paper(advantage="q_baseline").learn(8)
    prior = agent._sample_prior(th.zeros(1, 2))
    with th.no_grad():
        q_values = agent.policy.q_values(prior.observations, prior.actions)
        baseline = agent.policy.predict_values(prior.observations)
    assert th.allclose(prior.advantages, (q_values - baseline).squeeze(1), atol=1e-6)


def test_actor_rests_while_actions_are_random() -> None:
    """The step before the last random one is followed by an update, of the critic alone."""
    agent = paper(random_starts=True, learning_starts=8)
    before = parameters_of(agent)
    agent.learning_starts = 8
    agent.learn(8)
    agent.learning_starts, agent._rollout = 0, []
    agent.train()
    after = parameters_of(agent)
    assert th.equal(after["actor.net.0.weight"], before["actor.net.0.weight"])
    assert not th.equal(after["critic.qf0.0.weight"], before["critic.qf0.0.weight"])


def test_saved_agent_goes_on_as_the_papers(tmp_path: Path) -> None:
    agent = paper().learn(8)
    agent.save(tmp_path / "agent")
    loaded = QCriticPPO.load(tmp_path / "agent", vectorized(2), device="cpu")
    assert loaded.prior_policy == "behavior" and loaded._rollout == []
    loaded.learn(8, reset_num_timesteps=False)


def test_learns_a_bandit_with_negative_rewards() -> None:
    """Raw Q works where it is below 0, as minus the error is: what is bad is left."""

    class Bandit(gym.Env[Any, Any]):
        observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
        action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

        def reset(self, **_: Any) -> Any:
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> Any:
            reward = -float((action[0] - 0.8) ** 2)
            return np.zeros(1, np.float32), reward, True, False, {}

    agent = QCriticPPO.paper(
        "MlpPolicy", DummyVecEnv([Bandit for _ in range(4)]), seed=0, device="cpu"
    )
    agent.learn(400)
    action, _ = agent.predict(np.zeros(1, np.float32), deterministic=True)
    assert action[0] > 0.4


def test_unknown_prior_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prior_policy must be one of .*, got 'old'"):
        make_agent(prior_policy="old")
