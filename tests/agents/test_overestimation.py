"""Overestimation: critics set by hand, tasks whose returns are known."""

from __future__ import annotations

import functools
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from agents import KLPPO, OverestimationCallback, QCriticPPO
from agents.overestimation import (
    discounted_returns,
)
from tests.agents.fakes import TargetEnv

LEARNERS: list[Any] = [QCriticPPO, PPO, A2C, KLPPO, DDPG, TD3, SAC]
ON_POLICY = (PPO, A2C)


class Chain(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Pays 1, 2, 4, 8, ... whatever is done; ends after `n_steps`.

    Half a discount makes every return a multiple of the steps that are left: from step t on it is
    ``2^t (n_steps - t)``.
    """

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-2.0, 6.0, (1, 2), np.float32)

    def __init__(self, n_steps: int = 2, truncate: bool = False) -> None:
        self.n_steps = n_steps
        self.truncate = truncate
        self.t = 0

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        reward = 2.0**self.t
        self.t += 1
        ended = self.t == self.n_steps
        return self._get_obs(), reward, ended and not self.truncate, ended and self.truncate, {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._get_obs(), {}

    def _get_obs(self) -> NDArray[np.float32]:
        return np.array([self.t / self.n_steps], np.float32)


def chains(*lengths: int, truncate: bool = False) -> DummyVecEnv:
    return DummyVecEnv([functools.partial(Chain, n, truncate) for n in lengths])


def build(learner: Any, env: Any, gamma: float = 0.5, **kwargs: Any) -> Any:
    settings: dict[str, Any] = {"seed": 0, "device": "cpu", "gamma": gamma}
    if not issubclass(learner, QCriticPPO) and issubclass(learner, ON_POLICY):
        settings |= {"n_steps": 8} | ({} if learner is A2C else {"batch_size": 8})
    else:
        settings |= {"learning_starts": 4, "batch_size": 8}
    return learner("MlpPolicy", env, **settings | kwargs)


def set_critic(agent: BaseAlgorithm, *values: float) -> None:
    """Make critics say the same of everything, and learn nothing."""
    policy: Any = agent.policy
    if isinstance(agent, QCriticPPO) or not isinstance(agent, ON_POLICY):
        lasts = [network[-1] for network in policy.critic.q_networks]
    else:
        lasts = [policy.value_net]
    for last, value in zip(lasts, values, strict=True):
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, value)
    agent.train = lambda *_, **__: None  # type: ignore[attr-defined]


def measure(agent: Any, n_steps: int, **kwargs: Any) -> OverestimationCallback:
    """Return the callback after learning; that of `QCriticPPO` is its own."""
    if isinstance(agent, QCriticPPO):
        return agent.learn(n_steps, **kwargs).overestimation
    callback = OverestimationCallback()
    agent.learn(n_steps, callback=callback, **kwargs)
    return callback


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.__name__)
def test_two_steps_by_hand(learner: Any) -> None:
    """Rewards 1 and 2 at gamma 1/2: the returns are 1 + 2/2 = 2 and 2, the critic says 5."""
    extra = {"ent_coef": 0.0} if learner is SAC else {}
    agent = build(learner, Chain(2), **extra)
    set_critic(agent, *([5.0, 5.0] if learner in (TD3, SAC) else [5.0]))
    records = measure(agent, 8).records
    assert [record.timestep for record in records] == [2, 4, 6, 8]
    for record in records:
        assert record[1:4] == (2, 5.0, 2.0)
        assert record.overestimation == 3.0


@pytest.mark.parametrize("learner", [TD3, SAC], ids=["TD3", "SAC"])
def test_of_two_critics_the_lower_counts(learner: Any) -> None:
    agent = build(learner, Chain(1))
    set_critic(agent, 7.0, 4.0)
    assert {record.mean_value for record in measure(agent, 4).records} == {4.0}


def test_environments_end_at_different_times() -> None:
    """Returns of the chain of 3 at gamma 1/2: 3, 4, 4; of the chain of 2: 2, 2."""
    agent = build(QCriticPPO, chains(3, 2))
    set_critic(agent, 0.0)
    records = measure(agent, 12).records
    expected = [(4, 2, 2.0), (6, 3, 11 / 3), (8, 2, 2.0), (12, 3, 11 / 3), (12, 2, 2.0)]
    assert [record[:2] for record in records] == [row[:2] for row in expected]
    means = [record.mean_return for record in records]
    assert means == pytest.approx([row[2] for row in expected])


@pytest.mark.parametrize(("gamma", "expected"), [(1.0, (7 + 6 + 4) / 3), (0.0, 7 / 3)])
def test_limits_of_the_discount(gamma: float, expected: float) -> None:
    agent = build(QCriticPPO, Chain(3), gamma=gamma)
    set_critic(agent, 0.0)
    assert measure(agent, 3).records[0].mean_return == pytest.approx(expected)


@pytest.mark.parametrize(
    ("gamma", "n_steps", "n_counted"), [(0.5, 10, 4), (0.5, 6, 0), (1.0, 10, 0), (0.0, 3, 3)]
)
def test_truncated_returns_count_where_their_rest_hardly_matters(
    gamma: float, n_steps: int, n_counted: int
) -> None:
    """Seven rewards must have been seen at gamma 1/2: 2^-6 > 1 % > 2^-7."""
    agent = build(QCriticPPO, Chain(n_steps, truncate=True), gamma=gamma)
    set_critic(agent, 0.0)
    records = measure(agent, n_steps).records
    assert [record.n_transitions for record in records] == [n_counted] * (n_counted > 0)
    if (gamma, n_steps) == (0.5, 10):
        assert records[0].mean_return == (10 + 2 * 9 + 4 * 8 + 8 * 7) / 4
    assert ("train/q_overestimation" in agent.logger.name_to_value) == (n_counted > 0)


def test_the_weight_of_what_is_unknown_can_be_chosen() -> None:
    """Up to a quarter: two rewards at gamma 1/2 are enough."""
    agent = build(PPO, Chain(4, truncate=True))
    for max_tail, n_counted in ((0.25, 3), (1.0, 4)):
        callback = OverestimationCallback(max_tail)
        agent.learn(8, callback=callback)
        assert [record.n_transitions for record in callback.records] == [n_counted] * 2


def test_pendulum_has_the_numbers_of_the_docstring() -> None:
    for gamma, n_counted in ((0.99, []), (0.9, [157])):
        agent = build(QCriticPPO, gym.make("Pendulum-v1"), gamma=gamma, learning_starts=200)
        records = measure(agent, 200).records
        assert [record.n_transitions for record in records] == n_counted


def test_values_are_those_from_when_actions_were_taken() -> None:
    """What the critic says later, having learnt from the episode, is something else."""
    agent = build(QCriticPPO, TargetEnv(n_steps=3), learning_starts=0)
    said: list[float] = []

    class Ask(BaseCallback):
        def _on_step(self) -> bool:
            buffer = agent.replay_buffer
            state = th.as_tensor(buffer.observations[buffer.pos - 1])
            action = th.as_tensor(buffer.actions[buffer.pos - 1])
            with th.no_grad():
                said.append(float(agent.policy.q_values(state, action)))
            return True

    records = measure(agent, 6, callback=Ask()).records
    means = np.mean(np.reshape(said, (2, 3)), axis=1)
    assert [record.mean_value for record in records] == pytest.approx(means.tolist(), abs=1e-6)
    assert said[0] != said[3]


def test_q_critics_see_the_executed_action() -> None:
    """The critic that says the first action, and an environment that pays it, agree."""

    class Paying(Chain):
        def step(self, action: Any) -> Any:
            observation, _, *rest = super().step(action)
            return observation, float(action[0, 0]), *rest

    for learner in (QCriticPPO, DDPG, SAC):
        agent = build(learner, Paying(1), policy_kwargs={"net_arch": []})
        for network in agent.policy.critic.q_networks:  # of (state, 2 actions in [-1, 1])
            network[0].weight.data[:] = th.tensor([[0.0, 4.0, 0.0]])
            network[0].bias.data[:] = 2.0
        agent.train = lambda *_, **__: None
        records = measure(agent, 10).records
        assert [record.overestimation for record in records] == pytest.approx([0.0] * 10, abs=1e-5)
        assert len({record.mean_return for record in records}) > 3


def test_sac_is_compared_with_what_it_promises() -> None:
    """Two steps, each pays the entropy bonus of the one after it, too."""
    agent = build(SAC, Chain(2), ent_coef=0.25, learning_starts=0)
    set_critic(agent, 0.0, 0.0)
    taken: list[tuple[Any, Any]] = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            taken.append((agent._last_obs.copy(), self.locals["buffer_actions"].copy()))
            return True

    callback = OverestimationCallback()
    agent.learn(2, callback=[callback, Watch()])
    state, action = (th.as_tensor(array).flatten(1) for array in taken[1])
    mean, log_std, _ = agent.actor.get_action_dist_params(state)
    gaussian = th.distributions.Normal(mean, log_std.exp())
    log_prob = gaussian.log_prob(th.atanh(action))  # type: ignore[no-untyped-call]
    log_prob = log_prob - th.log(1.0 - action**2)
    bonus = -0.25 * log_prob.sum().item()
    # Returns 1 + (2 + bonus) / 2 and 2.
    (record,) = callback.records
    assert record.mean_return == pytest.approx(2.0 + bonus / 4, abs=1e-4)
    assert abs(bonus) > 0.1


def test_rewards_are_those_that_the_agent_gets() -> None:
    env = VecNormalize(chains(1), norm_obs=False, clip_reward=math.inf)
    for learner in (QCriticPPO, PPO, TD3):
        agent = build(learner, env)
        seen: list[float] = []

        class Watch(BaseCallback):
            def _on_step(self, seen: list[float] = seen) -> bool:
                seen.append(float(self.locals["rewards"][0]))
                return True

        callback = OverestimationCallback()
        agent.learn(8, callback=[callback, Watch()])
        assert [record.mean_return for record in callback.records] == seen
        assert seen[0] != 1.0


def test_learning_goes_on_within_an_episode() -> None:
    agent = build(QCriticPPO, Chain(3))
    set_critic(agent, 0.0)
    agent.learn(2)
    assert agent.overestimation.records == []
    agent.learn(1, reset_num_timesteps=False)
    assert [r[:2] for r in agent.overestimation.records] == [(3, 3)]


def test_an_episode_cut_by_a_reset_is_forgotten() -> None:
    """Otherwise the rewards of another episode would count as its own."""
    agent = build(QCriticPPO, Chain(3))
    set_critic(agent, 0.0)
    agent.learn(2).learn(3)
    (record,) = agent.overestimation.records
    assert record.n_transitions == 3 and record.mean_return == pytest.approx(11 / 3)


def test_another_number_of_environments() -> None:
    callback = OverestimationCallback()
    for lengths in ((2,), (2, 2)):
        build(PPO, chains(*lengths)).learn(8, callback=callback)
    assert [record.timestep for record in callback.records] == [
        2,
        4,
        6,
        8,
        4,
        4,
        8,
        8,
        12,
        12,
        16,
        16,
    ]


def test_the_mean_since_the_last_dump_is_logged() -> None:
    agent = build(QCriticPPO, chains(1, 2))
    set_critic(agent, 4.0)
    agent.set_logger(Logger(folder=None, output_formats=[]))
    agent.learn(4, log_interval=1000)  # differences 3, 3 and 2
    assert agent.logger.name_to_value["train/q_overestimation"] == pytest.approx(8 / 3)


@pytest.mark.parametrize("learner", [DDPG, SAC, PPO], ids=["DDPG", "SAC", "PPO"])
def test_weights_are_the_same_with_and_without_it(learner: Any) -> None:
    weights = []
    for callback in (None, OverestimationCallback()):
        agent = build(learner, TargetEnv()).learn(32, callback=callback)
        weights.append(agent.policy.state_dict())
    assert all(th.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_q_critic_ppo_learns_the_same_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = build(QCriticPPO, TargetEnv()).learn(32)
    assert len(with_it.overestimation.records) == 10
    monkeypatch.setattr(OverestimationCallback, "_on_step", lambda _: True)
    monkeypatch.setattr(type(with_it.policy), "predict_q_values", lambda *_: None)
    without = build(QCriticPPO, TargetEnv()).learn(32)
    assert without.overestimation.records == []
    expected = without.policy.state_dict()
    assert all(th.equal(with_it.policy.state_dict()[name], expected[name]) for name in expected)


def test_q_critic_ppo_calls_given_callbacks_once() -> None:
    calls = {"init": 0, "start": 0, "step": 0, "end": 0}

    class Count(BaseCallback):
        def _init_callback(self) -> None:
            calls["init"] += 1

        def _on_training_start(self) -> None:
            calls["start"] += 1

        def _on_step(self) -> bool:
            assert self.num_timesteps == self.n_calls == calls["step"] + 1
            calls["step"] += 1
            return True

        def _on_training_end(self) -> None:
            calls["end"] += 1

    rewards: list[float] = []
    build(QCriticPPO, Chain(2)).learn(6, callback=[Count()])

    def keep(found: dict[str, Any], _: Any) -> bool:
        rewards.append(float(found["rewards"][0]))
        return True

    build(QCriticPPO, Chain(2)).learn(6, callback=keep)
    assert calls == {"init": 1, "start": 1, "step": 6, "end": 1}
    assert rewards == [1.0, 2.0] * 3


def test_an_episode_is_counted_when_a_callback_stops_at_its_end() -> None:
    agent = build(QCriticPPO, Chain(2))
    agent.learn(100, callback=StopTrainingOnMaxEpisodes(2))
    assert [record.timestep for record in agent.overestimation.records] == [2, 4]


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=8),
    st.floats(0, 1),
)
def test_returns_are_the_sums_of_their_definition(
    steps: list[tuple[float, float]], gamma: float
) -> None:
    rewards, bonuses = zip(*steps, strict=True)
    expected = [
        r + sum(gamma**k * (steps[t + k][0] + steps[t + k][1]) for k in range(1, len(steps) - t))
        for t, r in enumerate(rewards)
    ]
    np.testing.assert_allclose(discounted_returns(rewards, gamma, bonuses), expected, atol=1e-9)
    plain = discounted_returns(rewards, gamma)
    np.testing.assert_allclose(plain, discounted_returns(rewards, gamma, [0.0] * len(steps)))


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_bad_weights_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"max_tail must be in \[0, 1\], got"):
        OverestimationCallback(value)


def test_agents_with_other_critics_are_refused() -> None:
    agent = DQN("MlpPolicy", gym.make("CartPole-v1"), buffer_size=10, device="cpu")
    with pytest.raises(
        ValueError, match="expected QCriticPPO, PPO, A2C, DDPG, TD3 or SAC, got DQN"
    ):
        agent.learn(1, callback=OverestimationCallback())
