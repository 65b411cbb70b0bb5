"""QCriticPPO with what comes around it: TensorBoard, callbacks, policies' settings, any Box."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from agents import QCriticPPO
from tests.agents.fakes import TargetEnv
from tests.agents.q_critic_ppo.fakes import make_agent, observations, parameters_of, vectorized

NAMES = ("q_loss", "q_mean", "q_overestimation", "clip_fraction", "target_action_shift")


@pytest.mark.parametrize("n_envs", [1, 2], ids=["1 env", "2 envs"])
def test_the_four_points_are_written_for_tensorboard(n_envs: int, tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    agent = make_agent(vectorized(n_envs), tensorboard_log=str(tmp_path))
    agent.learn(24, log_interval=4, tb_log_name="run")
    agent.learn(24, log_interval=4, tb_log_name="run", reset_num_timesteps=False)
    (folder,) = tmp_path.iterdir()
    events = accumulators.EventAccumulator(str(folder)).Reload()
    tags = events.Tags()["scalars"]
    assert folder.name == "run_1" and {f"train/{name}" for name in NAMES} <= set(tags)
    for name in NAMES:
        found = events.Scalars(f"train/{name}")
        assert found[-1].step == 48 and all(math.isfinite(event.value) for event in found)
    records = agent.overestimation.records
    since_last_dump = [r.overestimation for r in records if r.timestep > 48 - 4 * n_envs]
    logged = events.Scalars("train/q_overestimation")[-1].value
    assert logged == pytest.approx(np.mean(since_last_dump), abs=1e-6)


def test_with_every_point_switched_off_it_still_learns() -> None:
    agent = make_agent(
        n_steps=6, clip_range=math.inf, tau=1.0, target_policy_noise=0.0, advantage="q"
    )
    before = parameters_of(agent)
    agent.learn(36, log_interval=1000)
    logged, after = agent.logger.name_to_value, parameters_of(agent)
    assert not th.equal(before["actor.net.0.weight"], after["actor.net.0.weight"])
    assert th.equal(after["actor.net.0.weight"], after["actor_target.net.0.weight"])
    assert logged["train/clip_fraction"] == logged["train/target_action_shift"] == 0.0
    assert all(math.isfinite(logged[f"train/{name}"]) for name in NAMES)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_actions_may_have_any_shape(dtype: Any) -> None:
    env = TargetEnv()
    low = np.array([[0.0, -5.0, 2.0], [-1.0, -1.0, -1.0]], dtype)
    env.action_space = spaces.Box(low, low + np.array([1.0, 10.0, 0.5], dtype), dtype=dtype)
    agent = make_agent(env).learn(30)
    actions, _ = agent.predict(observations(20).numpy())
    assert actions.shape == (20, 2, 3)
    assert all(env.action_space.contains(action.astype(dtype)) for action in actions)
    assert agent.replay_buffer is not None
    stored = agent.replay_buffer.actions[:30, 0].reshape(30, 2, 3)
    np.testing.assert_allclose(stored, np.stack(env.executed), rtol=1e-6)
    assert len(agent.overestimation.records) == 10


class Doubling(BaseFeaturesExtractor):
    """Two features for each entry of the observation."""

    def __init__(self, observation_space: spaces.Box, width: int) -> None:
        super().__init__(observation_space, width)
        self.layer = nn.Linear(observation_space.shape[0], width)

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return self.layer(obs)  # type: ignore[no-any-return]


def test_policy_settings_reach_the_networks(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "net_arch": {"pi": [5], "qf": [6, 7]},
        "activation_fn": nn.Tanh,
        "log_std_init": -2.0,
        "features_extractor_class": Doubling,
        "features_extractor_kwargs": {"width": 4},
        "optimizer_class": th.optim.RMSprop,
        "optimizer_kwargs": {"alpha": 0.5},
    }
    agent = make_agent(policy_kwargs=settings)
    policy = agent.policy
    assert [p.shape[0] for p in policy.actor.net.parameters()] == [5, 5, 1, 1]
    assert [p.shape[0] for p in policy.critic.q_networks[0].parameters()] == [6, 6, 7, 7, 1, 1]
    assert isinstance(policy.actor.net[1], nn.Tanh)
    assert policy.action_std().item() == pytest.approx(math.exp(-2.0))
    for network in (policy.actor, policy.critic):
        assert isinstance(network.features_extractor, Doubling)
        assert isinstance(network.optimizer, th.optim.RMSprop)
        assert network.optimizer.param_groups[0]["alpha"] == 0.5
    before = parameters_of(agent)
    agent.learn(20)
    name = "critic.features_extractor.layer.weight"
    assert not th.equal(parameters_of(agent)[name], before[name])
    agent.save(tmp_path / "agent")
    loaded = parameters_of(QCriticPPO.load(tmp_path / "agent", device="cpu"))
    assert all(th.equal(loaded[key], value) for key, value in parameters_of(agent).items())


def test_callbacks_of_stable_baselines3(tmp_path: Path) -> None:
    """Checkpoints until an evaluation, which is good enough at once, ends it."""
    evaluation = EvalCallback(
        Monitor(TargetEnv()),
        callback_on_new_best=StopTrainingOnRewardThreshold(-100.0),
        best_model_save_path=str(tmp_path / "best"),
        eval_freq=12,
        n_eval_episodes=1,
        verbose=0,
    )
    agent = make_agent()
    agent.learn(100, callback=[CheckpointCallback(5, str(tmp_path / "kept")), evaluation])
    assert agent.num_timesteps == 12
    kept = {path.name for path in (tmp_path / "kept").iterdir()}
    assert kept == {"rl_model_5_steps.zip", "rl_model_10_steps.zip"}
    best = QCriticPPO.load(tmp_path / "best" / "best_model", device="cpu")
    inputs = observations().numpy()
    expected, _ = agent.predict(inputs, deterministic=True)
    assert not np.array_equal(expected, make_agent().predict(inputs, deterministic=True)[0])
    assert np.array_equal(best.predict(inputs, deterministic=True)[0], expected)


def test_a_loaded_agent_with_its_buffer_goes_on_learning(tmp_path: Path) -> None:
    """As the agent itself does, when both start from a reset and from the same random numbers."""
    agent = make_agent(vectorized(2), gamma=1.0, target_steps=3).learn(24)
    agent.save(tmp_path / "agent")
    agent.save_replay_buffer(tmp_path / "buffer")
    loaded = QCriticPPO.load(tmp_path / "agent", env=vectorized(2), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    weights = []
    for each in (agent, loaded):
        each.set_env(vectorized(2))
        each.set_random_seed(5)
        each.learn(24, reset_num_timesteps=False)
        assert each.num_timesteps == 48 and each.replay_buffer is not None
        assert each.replay_buffer.size() == 24
        weights.append(parameters_of(each))
    assert all(th.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("n_envs", [1, 2], ids=["1 env", "2 envs"])
def test_the_same_seed_gives_the_same_weights_undiscounted(n_envs: int) -> None:
    runs = []
    for _ in range(2):
        agent = make_agent(vectorized(n_envs), gamma=1.0, target_steps=3, seed=7)
        agent.learn(20).learn(20, reset_num_timesteps=False)
        runs.append((parameters_of(agent), agent.overestimation.records))
    assert runs[0][1] == runs[1][1]
    assert all(th.equal(runs[0][0][name], runs[1][0][name]) for name in runs[0][0])
