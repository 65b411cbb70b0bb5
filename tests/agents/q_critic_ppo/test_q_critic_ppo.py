"""QCriticPPO: learning, storage, switches, reproducibility, arguments."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from agents import QCriticPPO
from agents.policies import QCriticPolicy
from agents.q_critic_ppo import Advantage
from tests.agents.fakes import TargetEnv
from tests.agents.q_critic_ppo.fakes import (
    greedy_return,
    make_agent,
    observations,
    parameters_of,
    vectorized,
)
from tests.fakes import slow


@pytest.mark.parametrize("n_envs", [1, *slow(2)], ids=["1 env", "2 envs"])
@pytest.mark.parametrize(
    ("n_steps", "target_steps", "gamma"),
    [
        (1, 1, 0.99),
        pytest.param(2, 10, 0.99, marks=pytest.mark.slow),
        pytest.param(2, 10, 1.0, marks=pytest.mark.slow),
    ],
    ids=["one-step targets", "returns, discounted", "returns, undiscounted"],
)
def test_learns_in_500_steps(n_envs: int, n_steps: int, target_steps: int, gamma: float) -> None:
    env = vectorized(n_envs, n_steps=n_steps)
    agent = QCriticPPO(
        "MlpPolicy", env, target_steps=target_steps, gamma=gamma, seed=0, device="cpu"
    )
    before, after = greedy_return(agent, n_steps), greedy_return(agent.learn(500), n_steps)
    assert before < 0.8 and after > 0.9


def test_raw_q_is_another_advantage_than_q_with_a_baseline() -> None:
    names: tuple[Advantage, Advantage] = ("q", "q_baseline")
    priors = []
    for name in names:
        agent = make_agent(advantage=name, normalize_advantage=False, n_action_samples=3)
        th.manual_seed(1)
        priors.append((agent, agent._sample_prior(observations())))
    (agent, raw), (_, centred) = priors
    assert th.equal(raw.actions, centred.actions) and raw.actions.shape == (15, 1)
    states = observations().repeat(3, 1)
    with th.no_grad():
        q = agent.policy.q_values(states, raw.actions).squeeze(1)
        baseline = agent.policy.q_values(states, agent.policy.actor_target(states)).squeeze(1)
    assert th.allclose(raw.advantages, q)
    assert th.allclose(centred.advantages, q - baseline, atol=1e-6)


@pytest.mark.parametrize("advantage", ["q", "q_baseline"])
def test_either_advantage_trains_the_actor(advantage: Advantage) -> None:
    agent = make_agent(advantage=advantage)
    before = parameters_of(agent)
    agent.learn(40)
    after = parameters_of(agent)
    assert all(
        th.isfinite(after[name]).all() and not th.equal(after[name], before[name])
        for name in ("actor.net.0.weight", "actor.log_std", "critic.qf0.0.weight")
    )


def test_normalized_advantages_have_unit_root_mean_square() -> None:
    prior = make_agent(normalize_advantage=True)._sample_prior(observations())
    assert prior.advantages.square().mean().item() == pytest.approx(1.0, abs=1e-3)


def test_log_probabilities_are_those_of_the_unclipped_action() -> None:
    agent = make_agent(policy_kwargs={"log_std_init": 1.0}, n_action_samples=20)
    prior = agent._sample_prior(observations())
    mean = agent.policy.actor_target(prior.observations)
    deviations = ((prior.actions - mean) / math.e).squeeze(1)  # the standard deviation is e
    expected = -0.5 * deviations.square() - 1.0 - 0.5 * math.log(2.0 * math.pi)
    assert (prior.actions.abs() > 1.0).any()
    assert th.allclose(prior.log_prob, expected, atol=1e-5)


def test_clip_range_limits_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    fractions = {}
    ratios = {}
    for clip_range in (0.05, math.inf):
        agent = make_agent(
            clip_range=clip_range, n_epochs=40, actor_learning_rate=1e-2, max_grad_norm=math.inf
        )
        prior = agent._sample_prior(observations())
        monkeypatch.setattr(agent, "_sample_prior", lambda _, prior=prior: prior)
        agent.set_logger(Logger(folder=None, output_formats=[]))
        agent._update_actor(observations())
        _, log_prob, _ = agent.policy.evaluate_actions(prior.observations, prior.actions)
        ratios[clip_range] = th.exp(log_prob - prior.log_prob).max().item()
        fractions[clip_range] = agent.logger.name_to_value["train/clip_fraction"]
    assert fractions[0.05] > 0.5 and fractions[math.inf] == 0.0
    assert ratios[math.inf] > 1.5 * ratios[0.05]


def test_actor_has_its_own_learning_rate_unless_none() -> None:
    for rate, expected in ((1e-4, 1e-4), (lambda progress: progress, 0.25), (None, 2e-3)):
        agent = make_agent(learning_rate=2e-3, actor_learning_rate=rate).learn(16)
        agent._current_progress_remaining = 0.25
        agent.train()
        assert agent.policy.actor.optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        assert agent.policy.critic.optimizer.param_groups[0]["lr"] == pytest.approx(2e-3)


def test_n_steps_sets_the_steps_per_update() -> None:
    counts = {}
    for n_steps in (1, 4):
        agent = make_agent(n_steps=n_steps, gradient_steps=3, learning_starts=8)
        agent.learn(24)
        counts[n_steps] = agent._n_updates
    assert counts == {1: 3 * 16, 4: 3 * 4}


def test_nothing_is_trained_before_learning_starts() -> None:
    agent = make_agent(learning_starts=20)
    before = parameters_of(agent)
    agent.learn(20)
    after = parameters_of(agent)
    assert all(th.equal(before[name], after[name]) for name in before)


def test_first_actions_are_uniform() -> None:
    env = TargetEnv()
    make_agent(env, learning_starts=300, policy_kwargs={"log_std_init": -5.0}).learn(300)
    executed = np.stack(env.executed)
    assert executed.std() == pytest.approx(1 / 3**0.5, abs=0.06)
    assert np.abs(executed).max() < 1.0


def test_first_actions_are_the_policys_on_request() -> None:
    env = TargetEnv()
    make_agent(
        env, learning_starts=100, random_starts=False, policy_kwargs={"log_std_init": -5.0}
    ).learn(100)
    assert np.abs(np.stack(env.executed)).max() < 0.2


def test_same_seed_same_weights() -> None:
    runs = [parameters_of(make_agent(seed=seed).learn(40)) for seed in (3, 3, 4)]
    assert all(th.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not th.equal(runs[0]["actor.net.0.weight"], runs[2]["actor.net.0.weight"])


def test_save_and_load_give_the_same_actions(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {
        "policy_kwargs": {"net_arch": {"pi": [8], "qf": [16, 16]}},
        "clip_range": 0.3,
    }
    agent = make_agent(**kwargs).learn(40)
    agent.save(tmp_path / "agent")
    loaded = QCriticPPO.load(tmp_path / "agent", env=TargetEnv(), device="cpu")
    inputs = observations().numpy()
    expected, _ = agent.predict(inputs, deterministic=True)
    assert np.array_equal(loaded.predict(inputs, deterministic=True)[0], expected)
    assert loaded.replay_buffer is not None and loaded.replay_buffer.size() == 0
    momentum = agent.policy.critic.optimizer.state_dict()["state"][0]["exp_avg"]
    assert th.equal(loaded.policy.critic.optimizer.state_dict()["state"][0]["exp_avg"], momentum)
    without_env = QCriticPPO.load(tmp_path / "agent", device="cpu")
    assert np.array_equal(without_env.predict(inputs, deterministic=True)[0], expected)


def test_set_parameters_restores_every_network(tmp_path: Path) -> None:
    source, target = make_agent(seed=1).learn(30), make_agent(seed=2)
    source.save(tmp_path / "source")
    target.set_parameters(str(tmp_path / "source"))
    copied, original = parameters_of(target), parameters_of(source)
    assert all(th.equal(copied[name], original[name]) for name in original)


def test_policy_alone_survives_save_and_load(tmp_path: Path) -> None:
    policy = make_agent(policy_kwargs={"net_arch": [8]}).policy
    path = str(tmp_path / "policy.pt")
    policy.save(path)
    loaded = QCriticPolicy.load(path, device="cpu")
    assert th.equal(loaded.actor(observations()), policy.actor(observations()))


def test_replay_buffer_has_its_own_file(tmp_path: Path) -> None:
    agent = make_agent().learn(30)
    agent.save_replay_buffer(tmp_path / "buffer")
    fresh = make_agent()
    fresh.load_replay_buffer(tmp_path / "buffer.pkl")
    assert agent.replay_buffer is not None and fresh.replay_buffer is not None
    assert np.array_equal(fresh.replay_buffer.rewards, agent.replay_buffer.rewards)
    two_envs = make_agent(vectorized(2))
    with pytest.raises(ValueError, match="expected a buffer of 2 envs, got 1"):
        two_envs.load_replay_buffer(tmp_path / "buffer.pkl")
    wider = make_agent(TargetEnv(high=(2.0,)))
    with pytest.raises(ValueError, match=r"^expected a buffer whose action_space is Box\(-1.0, 2"):
        wider.load_replay_buffer(tmp_path / "buffer.pkl")


def test_learning_continues_where_it_stopped() -> None:
    agent = make_agent(TargetEnv(n_steps=3)).learn(10)
    agent.learn(10, reset_num_timesteps=False)
    assert agent.num_timesteps == 20
    assert agent.replay_buffer is not None and agent.replay_buffer.size() == 20
    steps = np.rint(agent.replay_buffer.observations[:20, 0, 0] * 3).astype(int)
    assert steps.tolist() == [i % 3 for i in range(20)]


def test_metrics_reach_the_logger() -> None:
    seen: dict[str, float] = {}

    class Recorder(BaseCallback):
        def _on_step(self) -> bool:
            seen.update(self.logger.name_to_value)
            return True

    make_agent().learn(20, callback=Recorder(), log_interval=1000)
    names = "q_loss q_mean clip_fraction target_action_shift policy_loss std".split()
    assert {f"train/{name}" for name in names} <= seen.keys()
    assert seen["train/learning_rate"] == 3e-3 and seen["train/actor_learning_rate"] == 1e-3
    assert all(math.isfinite(seen[f"train/{name}"]) for name in names)
    assert 0.0 <= seen["train/clip_fraction"] <= 1.0


def test_works_in_several_dimensions_with_uneven_bounds() -> None:
    env = TargetEnv(low=(0.0, -10.0, 5.0), high=(1.0, 10.0, 6.0))
    agent = make_agent(env)
    agent.learn(30)
    space = env.action_space
    assert isinstance(space, spaces.Box)
    actions, _ = agent.predict(observations(50).numpy())
    assert actions.shape == (50, 3) and all(space.contains(action) for action in actions)
    single, _ = agent.predict(observations(1).numpy()[0], deterministic=True)
    assert single.shape == (3,)


def test_mean_spans_the_box_and_starts_in_its_middle() -> None:
    actor = make_agent(TargetEnv(low=(2.0,), high=(10.0,))).policy.actor
    middle = actor(observations())
    assert middle.flatten().tolist() == pytest.approx([6.0] * 5, abs=0.3)
    last = actor.net[-1]
    assert isinstance(last, nn.Linear)
    nn.init.constant_(last.bias, 50.0)
    assert actor(observations()).flatten().tolist() == pytest.approx([10.0] * 5)


def test_networks_are_one_hidden_layer_of_64() -> None:
    policy = make_agent().policy
    assert [p.shape for p in policy.actor.net.parameters()] == [(64, 2), (64,), (1, 64), (1,)]
    assert [p.shape for p in policy.critic.parameters()] == [(64, 3), (64,), (1, 64), (1,)]


def test_normalized_observations_are_stored_raw() -> None:
    env = VecNormalize(vectorized(1, n_steps=3))
    agent = QCriticPPO("MlpPolicy", env, learning_starts=4, batch_size=8, device="cpu", seed=0)
    agent.learn(12)
    assert agent.replay_buffer is not None
    stored = agent.replay_buffer.observations[:12, 0, 0]
    following = agent.replay_buffer.next_observations[:12, 0, 0]
    assert stored == pytest.approx(np.tile([0, 1 / 3, 2 / 3], 4), abs=1e-6)
    assert following == pytest.approx(np.tile([1 / 3, 2 / 3, 1], 4), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("advantage", "gae", "advantage must be one of"),
        ("tau", 0.0, r"tau must be in \(0, 1\]"),
        ("gamma", 1.1, r"gamma must be in \[0, 1\]"),
        ("clip_range", 0.0, "clip_range must be above 0"),
        ("target_policy_noise", -0.1, "target_policy_noise must be at least 0"),
        ("target_noise_clip", -0.1, "target_noise_clip must be at least 0"),
        ("n_steps", 0, "n_steps must be at least 1"),
        ("batch_size", 0, "batch_size must be at least 1"),
        ("buffer_size", 0, "buffer_size must be at least 1"),
        ("n_epochs", 0, "n_epochs must be at least 1"),
        ("n_action_samples", 0, "n_action_samples must be at least 1"),
        ("target_steps", 0, "target_steps must be at least 1"),
        ("gradient_steps", -1, "gradient_steps must be at least 0"),
        ("learning_starts", -1, "learning_starts must be at least 0"),
        ("max_grad_norm", 0.0, "max_grad_norm must be above 0"),
    ],
)
def test_bad_arguments_are_rejected(name: str, value: object, message: str) -> None:
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=message):
        make_agent(**arguments)


def test_policy_rejects_state_dependent_noise() -> None:
    env = TargetEnv()
    assert isinstance(env.action_space, spaces.Box)
    with pytest.raises(ValueError, match="use_sde must be False"):
        QCriticPolicy(env.observation_space, env.action_space, lambda _: 1e-3, use_sde=True)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(3), "must be a Box with finite bounds"),
        (spaces.Box(-np.inf, 1.0, (1,), np.float32), "must be finite"),
        (spaces.Box(1.0, 1.0, (1,), np.float32), "needs low < high"),
    ],
    ids=["discrete", "unbounded", "empty"],
)
def test_other_action_spaces_are_rejected(space: spaces.Space[Any], message: str) -> None:
    env = TargetEnv()
    env.action_space = space
    with pytest.raises(ValueError, match=message):
        make_agent(env)


def test_dict_observations_are_rejected() -> None:
    env = TargetEnv()
    dict_space: spaces.Space[Any] = spaces.Dict({"x": spaces.Box(0.0, 1.0, (2,))})
    env.observation_space = dict_space
    with pytest.raises(ValueError, match="Dict observations are not supported"):
        make_agent(env)
