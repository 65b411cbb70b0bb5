"""QCriticPPO's ensemble of critics, its slower actor, and what it makes of its best episodes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from agents import QCriticPPO
from tests.agents.fakes import TargetEnv
from tests.agents.q_critic_ppo.fakes import (
    greedy_return,
    make_agent,
    observations,
    parameters_of,
    vectorized,
)

FIVE = {"n_critics": 5}


def test_value_is_the_mean_of_the_ensemble() -> None:
    policy = make_agent(policy_kwargs=FIVE).policy
    states, actions = observations(), th.linspace(-1.0, 1.0, 5).unsqueeze(1)
    each = policy.each_q_value(states, actions)
    assert each.shape == (5, 5) and each.std(dim=1).min() > 0.0
    mean = each.mean(dim=1, keepdim=True)
    assert th.allclose(policy.q_values(states, actions), mean)
    for of_target in (False, True):  # which begin as copies
        found = policy.predict_q_values(states.numpy(), actions.numpy(), of_target)
        assert found.shape == (5, 1) and th.allclose(found, mean)


def test_value_is_the_lowest_of_a_cautious_ensemble(tmp_path: Path) -> None:
    agent = make_agent(policy_kwargs=FIVE | {"ensemble": "lowest"}).learn(5)
    policy, states, actions = agent.policy, observations(), th.linspace(-1.0, 1.0, 5).unsqueeze(1)
    lowest = policy.each_q_value(states, actions).amin(dim=1, keepdim=True)
    assert th.equal(policy.q_values(states, actions), lowest)
    agent.save(tmp_path / "agent")
    loaded = QCriticPPO.load(tmp_path / "agent", device="cpu")
    assert th.equal(loaded.policy.q_values(states, actions), lowest)
    with pytest.raises(ValueError, match=r"ensemble must be one of .'mean', 'lowest'., got 'max'"):
        make_agent(policy_kwargs={"ensemble": "max"})


def test_a_target_is_the_lower_of_two_that_are_drawn() -> None:
    policy = make_agent(policy_kwargs=FIVE).policy
    states, actions = observations(), th.zeros(5, 1)
    with th.no_grad():
        each = policy.each_q_value(states, actions)  # the targets begin as copies
        found = [policy.target_q_values(states, actions) for _ in range(60)]
    pairs = [each[:, [i, j]].amin(dim=1, keepdim=True) for i in range(5) for j in range(i)]
    drawn = {next(n for n, pair in enumerate(pairs) if th.equal(pair, got)) for got in found}
    assert len(drawn) > 3


def test_a_target_of_two_is_the_lower_and_draws_nothing() -> None:
    policy = make_agent(policy_kwargs={"n_critics": 2}).policy
    states, actions = observations(), th.zeros(5, 1)
    before = th.get_rng_state()
    with th.no_grad():
        lowest = policy.each_q_value(states, actions).amin(dim=1, keepdim=True)
        assert th.equal(policy.target_q_values(states, actions), lowest)
    assert th.equal(th.get_rng_state(), before)


def test_every_critic_of_the_ensemble_learns() -> None:
    agent = make_agent(policy_kwargs=FIVE)
    before = parameters_of(agent)
    after = parameters_of(agent.learn(20))
    for number in range(5):
        name = f"critic.qf{number}.0.weight"
        assert th.isfinite(after[name]).all() and not th.equal(after[name], before[name])


def test_an_ensemble_survives_save_and_load(tmp_path: Path) -> None:
    agent = make_agent(policy_kwargs=FIVE, policy_delay=3, imitation_coef=0.5).learn(20)
    agent.save(tmp_path / "agent")
    loaded = QCriticPPO.load(tmp_path / "agent", device="cpu")
    assert (loaded.policy.n_critics, loaded.policy_delay, loaded.imitation_coef) == (5, 3, 0.5)
    states, actions = observations(), th.zeros(5, 1)
    assert th.equal(
        loaded.policy.each_q_value(states, actions), agent.policy.each_q_value(states, actions)
    )
    agent.policy.save(str(tmp_path / "policy.pt"))
    assert type(agent.policy).load(str(tmp_path / "policy.pt"), device="cpu").n_critics == 5


def test_actor_learns_in_every_round_of_its_delay() -> None:
    updates = {}
    for delay in (1, 4):
        agent = make_agent(gradient_steps=2, policy_delay=delay, learning_starts=8).learn(24)
        step = agent.policy.actor.optimizer.state_dict()["state"][0]["step"]
        critic_step = agent.policy.critic.optimizer.state_dict()["state"][0]["step"]
        updates[delay] = (int(step), int(critic_step))
    assert updates == {1: (32, 32), 4: (8, 32)}


@pytest.mark.parametrize("n_envs", [1, 2], ids=["1 env", "2 envs"])
def test_imitation_draws_the_policy_to_the_best_episodes(n_envs: int) -> None:
    agent = make_agent(
        vectorized(n_envs, n_steps=2),
        learning_starts=200,
        gradient_steps=300,
        actor_learning_rate=1e-2,
        imitation_coef=1e3,
        n_elites=1,
    ).learn(200 + n_envs)
    assert agent.replay_buffer is not None
    size = agent.replay_buffer.size() // 2 * 2
    returns = agent.replay_buffer.rewards[1:size:2]
    best, env = np.unravel_index(returns.argmax(), returns.shape)
    done = agent.replay_buffer.actions[2 * best : 2 * best + 2, env, 0]
    seen = agent.replay_buffer.observations[2 * best : 2 * best + 2, env]
    found, _ = agent.predict(seen, deterministic=True)
    assert found[:, 0] == pytest.approx(done, abs=0.05)
    assert greedy_return(agent) > 0.8


def test_without_imitation_nobody_looks_for_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("agents.q_critic_ppo.best_steps", fail)
    assert make_agent().learn(12)._n_updates == 8
    with pytest.raises(AssertionError):
        make_agent(imitation_coef=1.0).learn(12)


def test_critic_values_every_whole_episode() -> None:
    agent = make_agent(TargetEnv(n_steps=3), gamma=1.0)
    assert agent.episode_values().tolist() == []
    agent.learn(10)
    values = agent.episode_values()
    assert agent.replay_buffer is not None and values.shape == (3,)
    states = th.as_tensor(agent.replay_buffer.observations[:3, 0])
    actions = th.as_tensor(agent.replay_buffer.actions[:3, 0])
    with th.no_grad():
        q_values = agent.policy.q_values(states, actions)
        baseline = agent.policy.predict_values(states)
    expected = baseline[0] + (q_values - baseline).sum()
    assert values[0] == pytest.approx(float(expected), abs=1e-5)


def test_critic_learns_to_tell_good_episodes_from_bad_ones() -> None:
    agent = make_agent(
        TargetEnv(n_steps=2), learning_starts=200, gradient_steps=400, target_steps=2, gamma=1.0
    ).learn(202)
    assert agent.replay_buffer is not None
    returns = agent.replay_buffer.rewards[1:202:2, 0]
    assert np.corrcoef(agent.episode_values(), returns)[0, 1] > 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy_delay": 0}, "policy_delay must be at least 1"),
        ({"imitation_coef": -1.0}, "imitation_coef must be at least 0"),
        ({"n_elites": 0}, "n_elites must be at least 1"),
        ({"policy_kwargs": {"n_critics": 0}}, "n_critics must be at least 1"),
    ],
    ids=str,
)
def test_bad_arguments_are_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_agent(**arguments)
