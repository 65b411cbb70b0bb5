"""One agent on one task: what is noted, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control import PendulumEnv
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from agents import QCriticPPO
from agents.penalty_ppo import PenaltyPPO
from experiments.common.run_folder import RunFolder
from experiments.control import agents as control_agents
from experiments.control.agents import AGENTS, TASKS, check_task, make_agent, make_env
from experiments.control.control import Config, Training, run, steps_to_threshold
from experiments.control.records import surrogate_improvement
from experiments.sweep.cells import EXPERIMENTS, make_cell
from experiments.sweep.display import Display
from experiments.sweep.folder import SweepFolder, Task, work
from tests.fakes import quiet

SMALL = Config(task="CartPole-v1", total_timesteps=768, n_points=2, eval_episodes=2)


@pytest.fixture(scope="module")
def clipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of PPO with three updates."""
    out = tmp_path_factory.mktemp("control") / "out"
    run(replace(SMALL, out=out), quiet())
    return out


def test_a_run_leaves_curve_updates_and_table(clipped: Path) -> None:
    names = {path.name for path in clipped.iterdir()}
    assert names == {"config.json", "curve.csv", "updates.csv", "table.csv"}
    curve = pd.read_csv(clipped / "curve.csv")
    assert curve["timesteps"].tolist() == [0, 384, 768]
    # Before the first step nothing has been played, then some episodes have.
    assert curve["train_return"].isna().tolist() == [True, False, False]
    row = pd.read_csv(clipped / "table.csv").iloc[0]
    assert row["timesteps"] == 768
    assert row["final_return"] == curve["mean_return"].iloc[-1]
    assert row["mean_return"] == pytest.approx(curve["mean_return"].iloc[1:].mean())


def test_updates_are_noted_with_what_follows_them(clipped: Path) -> None:
    updates = pd.read_csv(clipped / "updates.csv")
    assert updates["timesteps"].tolist() == [256, 512, 768]
    changes = np.diff(updates["mean_return"])
    np.testing.assert_allclose(updates["return_change"], [*changes, math.nan])
    assert (updates[["kl_old_new", "kl_new_old"]] > 0.0).all(axis=None)
    # A surrogate is maximised on the rollout that it is measured on.
    assert (updates["surrogate_improvement"] > 0.0).all()


def test_same_seed_same_run_and_another_seed_another(clipped: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        run(replace(SMALL, seed=seed, out=tmp_path / str(seed)), quiet())
    first, again, other = (
        (path / "updates.csv").read_text() for path in (clipped, tmp_path / "0", tmp_path / "1")
    )
    assert first == again != other


def test_evaluations_do_not_disturb_the_training(clipped: Path, tmp_path: Path) -> None:
    run(replace(SMALL, n_points=1, eval_episodes=1, out=tmp_path / "out"), quiet())
    assert (tmp_path / "out" / "updates.csv").read_text() == (clipped / "updates.csv").read_text()


def test_a_killed_cell_starts_again(clipped: Path, tmp_path: Path) -> None:
    cell = make_cell("control", SMALL)
    assert cell.name == "control-ppo-CartPole-v1-seed0"
    folder = SweepFolder(tmp_path)
    with folder.open([cell]) as sweep_id:
        path = folder.cell(cell.name)
        (path / "state").mkdir(parents=True)
        for name in ("config.json", "curve.csv"):  # what a killed process leaves
            (path / name).write_text((clipped / name).read_text())
        assert work(Task(cell, EXPERIMENTS["control"], tmp_path, sweep_id, 1)) is None
    assert (path / "updates.csv").read_text() == (clipped / "updates.csv").read_text()
    assert not (path / "progress.json").exists()


def test_a_sweep_shows_the_return_of_a_running_cell(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    path = folder.cell("cell")
    path.mkdir(parents=True)
    progress = {"label": "learning", "episode": 20, "episodes": 40, "note": "mean return 5.0"}
    (path / "progress.json").write_text(json.dumps(progress))
    line = Display(quiet(), folder, 1)._progress_of("cell")
    assert line == {"completed": 20, "total": 40, "note": "learning, mean return 5.0"}


@pytest.mark.parametrize("agent", [name for name in AGENTS if not AGENTS[name].is_ppo])
def test_agents_with_a_replay_buffer_leave_no_updates(agent: str, tmp_path: Path) -> None:
    config = Config(agent, total_timesteps=60, n_points=1, eval_episodes=1, out=tmp_path / "out")
    row = run(config, quiet())
    assert row["timesteps"] == 60
    assert -2000.0 < row["final_return"] < 0.0
    assert not (tmp_path / "out" / "updates.csv").exists()


def test_runs_of_different_seeds_share_no_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin, seen = PendulumEnv.reset, set[int]()

    def note(self: PendulumEnv, *, seed: int | None = None, **kwargs: Any) -> Any:
        if seed is not None:
            seen.add(seed)
        return begin(self, seed=seed, **kwargs)

    monkeypatch.setattr(PendulumEnv, "reset", note)
    used = []
    for number in (0, 1, 2):
        seen.clear()
        out = tmp_path / f"{number}"
        small: dict[str, Any] = {
            "total_timesteps": 8,
            "n_points": 1,
            "eval_episodes": 3,
            "out": out,
        }
        run(Config("ddpg", "Pendulum-v1", number, n_envs=4, **small), quiet())
        used.append(set(seen))
    assert [len(seeds) for seeds in used] == [7, 7, 7]  # four to learn in, three to evaluate in
    assert len(set.union(*used)) == 21


def make_ppo(task: str = "CartPole-v1") -> PenaltyPPO:
    agent = make_agent("ppo", task, make_env(task, n_envs=8, seed=0), 0)
    assert isinstance(agent, PenaltyPPO)
    return agent


def test_surrogate_improvement_by_hand() -> None:
    agent = make_ppo()
    observations = np.zeros((2, 1, 4), np.float32)
    network: Any = agent.policy.action_net
    with torch.no_grad():  # probabilities of 1/4 and 3/4, whatever is observed
        network.weight.zero_()
        network.bias.copy_(torch.tensor([0.0, math.log(3.0)]))
    actions = np.array([[[0.0]], [[1.0]]], np.float32)
    advantages = np.array([[1.0], [3.0]], np.float32)  # standardised: -1 and 1
    even = np.log(np.full((2, 1), 0.5, np.float32))
    # rho - 1 is -1/2 and 1/2.
    found = surrogate_improvement(agent, observations, actions, even, advantages)
    assert found == pytest.approx(0.5, abs=1e-5)
    same = np.log(np.array([[0.25], [0.75]], np.float32))
    found = surrogate_improvement(agent, observations, actions, same, advantages)
    assert found == pytest.approx(0.0, abs=1e-6)


def test_steps_to_threshold() -> None:
    curve = pd.DataFrame({"timesteps": [0, 10, 20], "mean_return": [-500.0, -300.0, -400.0]})
    assert steps_to_threshold(curve, -300.0) == 10
    assert math.isnan(steps_to_threshold(curve, -299.0))
    assert math.isnan(steps_to_threshold(curve, None))


def test_all_penalties_have_the_same_settings() -> None:
    env = make_env("Pendulum-v1", n_envs=4, seed=0)
    made: list[Any] = [
        make_agent(name, "Pendulum-v1", env, 0)
        for name in ("ppo", "kl_ppo", "cim_ppo", "cim_ppo_metric")
    ]
    settings = ("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "ent_coef")
    assert len({tuple(getattr(agent, name) for name in settings) for agent in made}) == 1
    assert made[0].gamma == 0.9 and made[0].n_steps == 1024
    # Updates of the same length.
    assert made[1].kl_target == made[2].kl_target == made[3].kl_target == 0.01
    assert [agent.cim_form for agent in made[2:]] == ["joint", "metric"]


def test_the_papers_agent_has_four_environments(tmp_path: Path) -> None:
    config = replace(SMALL, algo="q_critic_ppo_paper", task="Pendulum-v1")
    agent = Training(config, RunFolder(tmp_path / "out", config))._agent
    assert isinstance(agent, QCriticPPO) and agent.n_envs == 4
    assert (agent.prior_policy, agent.gamma) == ("behavior", 0.95)


def test_totals_are_whole_rollouts() -> None:
    for task in TASKS.values():
        assert task.total_timesteps % (task.n_envs * task.ppo.get("n_steps", 2048)) == 0


def test_evaluation_shares_the_statistics_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "Pendulum-v1", replace(TASKS["Pendulum-v1"], normalize=True))
    training = make_env("Pendulum-v1", n_envs=1, seed=0)
    evaluation = make_env("Pendulum-v1", n_envs=1, seed=1, statistics_of=training)
    assert isinstance(training, VecNormalize) and isinstance(evaluation, VecNormalize)
    training.reset()
    statistics = training.obs_rms
    assert isinstance(statistics, RunningMeanStd)
    assert evaluation.obs_rms is statistics
    before = statistics.count
    evaluation.reset()
    assert statistics.count == before
    assert training.norm_reward and not evaluation.norm_reward


def test_tasks_are_as_gymnasium_has_them() -> None:
    assert set(TASKS) <= set(gym.registry)
    plain = [name for name, task in TASKS.items() if task.package is None]
    assert plain == ["Pendulum-v1", "CartPole-v1"]
    for name in plain:
        with gym.make(name) as env:
            is_discrete = isinstance(env.action_space, spaces.Discrete)
        assert is_discrete == (name in control_agents.DISCRETE)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.package])
def test_tasks_of_other_packages_can_be_made(name: str) -> None:
    pytest.importorskip(str(TASKS[name].package))
    env = make_env(name, n_envs=1, seed=0)
    observations = env.reset()
    assert isinstance(observations, np.ndarray) and np.isfinite(observations).all()
    is_discrete = isinstance(env.action_space, spaces.Discrete)
    assert is_discrete == (name in control_agents.DISCRETE)
    for _ in range(3):
        _, rewards, *_ = env.step(np.array([env.action_space.sample()]))
        assert np.isfinite(rewards).all()
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LunarLander-v3", "Hopper-v5"])
def test_an_agent_learns_tasks_of_other_packages(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    pytest.importorskip(str(task.package))
    steps = task.n_envs * task.ppo.get("n_steps", 2048)
    config = replace(SMALL, algo="cim_ppo", task=name, total_timesteps=steps, eval_episodes=1)
    row = run(replace(config, out=tmp_path / "out"), quiet())
    assert row["timesteps"] == steps and math.isfinite(row["final_return"])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_agents, "find_spec", lambda _: None)
    with pytest.raises(
        ImportError, match=r"Hopper-v5 needs mujoco: pip install 'compress-env\[con"
    ):
        check_task("Hopper-v5")
    check_task("Pendulum-v1")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config("dqn"), "unknown agent 'dqn'.* valid: ppo, kl_ppo, cim_ppo"),
        (Config(task="Pong"), "unknown task 'Pong'; valid: Pendulum-v1, "),
        (Config("ddpg", "CartPole-v1"), "ddpg needs continuous actions, those of CartPole-v1"),
        (Config(n_envs=0), "n_envs must be 1 or more, got 0"),
        (Config(seed=-1), "seed must be 0 or more, got -1"),
    ],
    ids=["agent", "task", "actions", "environments", "seed"],
)
def test_wrong_settings_leave_nothing(config: Config, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(replace(config, out=tmp_path / "out"), quiet())
    assert not (tmp_path / "out").exists()


def test_environments_draw_nothing() -> None:
    made = make_env("Pendulum-v1", n_envs=2, seed=0)
    assert made.get_attr("render_mode") == [None, None]
    made.close()
