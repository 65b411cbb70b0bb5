"""The PPO of one file: its parts by hand, and that it learns."""

from __future__ import annotations

import math
import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from compress_env.envs.base import LayerwiseCompressionEnv
from examples import plain_ppo
from examples.plain_ppo import (
    Agent,
    Collector,
    Config,
    Rollout,
    advantages_of,
    make_envs,
    train,
    update,
)
from tests.fakes import PlainNet, make_data, seeded

ROOT = Path(__file__).parents[2]


def make_fakes(config: Config, **options: Any) -> gym.vector.VectorEnv[Any, Any, Any]:
    return gym.make_vec(
        "compress_env/Quantization-v0",
        num_envs=config.n_envs,
        vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP},
        model=seeded(PlainNet),
        data=make_data(),
        finetune_steps=0,
        reward_at="episode",
        **options,
    )


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def test_advantages_by_hand() -> None:
    """Two episodes: one of two steps, and one that is not over after its first."""
    empty = torch.zeros(3, 1)
    rollout = Rollout(
        empty, empty, empty, column(0.5, 0.25, 1.0), column(1.0, 2.0, 4.0), column(0.0, 1.0, 0.0)
    )
    found = advantages_of(rollout, torch.tensor([8.0]), Config(gae_lambda=0.5))
    # 4 + 8 - 1; 2 - 0.25; 1 + 0.25 - 0.5 and half of what follows.
    assert found.flatten().tolist() == [0.75 + 1.75 / 2, 1.75, 11.0]


def test_an_update_makes_good_actions_likelier_and_learns_the_returns() -> None:
    torch.manual_seed(0)
    agent = Agent(2, 1)
    observations = torch.rand(8, 4, 2)
    with torch.no_grad():
        policy = agent.policy(observations)
        actions = policy.sample()  # type: ignore[no-untyped-call]
        log_prob = policy.log_prob(actions).sum(-1)  # type: ignore[no-untyped-call]
        values = agent.value(observations)
    rewards = actions.squeeze(-1)
    rollout = Rollout(observations, actions, log_prob, values, rewards, torch.ones(8, 4))
    config = Config(n_epochs=10, batch_size=32)
    gae = advantages_of(rollout, torch.zeros(4), config)
    adam = torch.optim.Adam(agent.parameters(), 0.01)
    with torch.no_grad():
        before = (rewards - agent.value(observations)).square().mean()
        mean_before = agent.actor(observations).mean()
    update(agent, adam, rollout, gae, config)
    with torch.no_grad():
        assert agent.actor(observations).mean() > mean_before + 0.02
        assert (rewards - agent.value(observations)).square().mean() < before


def test_the_collector_keeps_the_best_episode() -> None:
    """Accuracies by hand; 0.75 is the highest, that of the second episode of the first actor."""
    scores = iter([0.5, 0.25, 0.75, math.nan])
    config = Config(n_envs=2)
    collector = Collector(make_fakes(config, scorer=lambda _: next(scores), store=None), 0)
    torch.manual_seed(0)
    rollout, last = collector.collect(Agent(9, 1), 8)
    assert rollout.dones.tolist() == [[0.0] * 2] * 3 + [[1.0] * 2] + [[0.0] * 2] * 3 + [[1.0] * 2]
    assert rollout.rewards[3].tolist() == [-0.5, -0.75] and rollout.rewards[7, 0] == -0.25
    assert rollout.observations.shape == (8, 2, 9) and last.shape == (2,)
    assert collector.best[:2] == (-0.25, 0.75)
    env = collector.envs.envs[0].unwrapped
    assert isinstance(env, LayerwiseCompressionEnv)
    taken = rollout.actions[4:, 0, 0].clamp(-1, 1).tolist()
    env.reset()
    executed = [env.step(np.array([a], np.float32))[-1]["bits"] for a in taken[:3]]
    assert list(collector.best.rates)[:3] == executed


def test_the_best_episode_has_the_highest_reward() -> None:
    """The network that is right least often is the best one for a reward that wants it so."""
    scores = iter([0.5, 0.25, 0.75, 0.3])
    options: dict[str, Any] = {"scorer": lambda _: next(scores), "reward": lambda x: -x.accuracy}
    collector = Collector(make_fakes(Config(n_envs=2), store=None, **options), 0)
    torch.manual_seed(0)
    collector.collect(Agent(9, 1), 8)
    assert collector.best[:2] == (-0.25, 0.25)


def test_it_learns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer bits always pay here, whatever becomes of the network."""
    options: dict[str, Any] = {"scorer": lambda _: 1.0, "reward": lambda x: -x.cost / x.cost_high}
    collected: list[float] = []
    collect = Collector.collect

    def watched(self: Collector, agent: Agent, n_steps: int) -> Any:
        rollout, last = collect(self, agent, n_steps)
        collected.append((rollout.rewards.sum() / rollout.dones.sum()).item())
        return rollout, last

    monkeypatch.setattr(plain_ppo, "make_envs", lambda config: make_fakes(config, **options))
    monkeypatch.setattr(Collector, "collect", watched)
    best = train(Config(total_timesteps=256, learning_rate=5e-3))
    assert len(collected) == 8
    assert np.mean(collected[-2:]) > np.mean(collected[:2]) + 0.02
    assert best.accuracy == 1.0 and len(best.rates) == 4
    assert capsys.readouterr().out.splitlines()[-1] == "256 steps, best accuracy 1.0000"


def test_it_runs_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes = make_fakes(Config(n_envs=1))
    monkeypatch.setattr(gym, "make_vec", lambda *_, **__: fakes)
    monkeypatch.setattr("sys.argv", ["plain_ppo.py", "--n-envs", "1", "--total-timesteps", "16"])
    runpy.run_path(str(ROOT / "examples" / "plain_ppo.py"), run_name="__main__")
    first, last = capsys.readouterr().out.splitlines()
    accuracy, rates = re.fullmatch(r"best episode: accuracy (\S+)%, rates (.*)", last).groups()  # type: ignore[union-attr]
    assert float(first.removeprefix("16 steps, best accuracy ")) * 100 == pytest.approx(
        float(accuracy), abs=0.06
    )
    assert len(rates.split()) == 4 and all(1 <= float(bits) <= 8 for bits in rates.split())


@pytest.mark.slow
def test_worker_processes_step_as_one_process_does(tmp_path: Path) -> None:
    """Gymnasium's `make_vec` starts real processes by spawn."""
    config = Config(n_envs=2, finetune_steps=1, store=str(tmp_path / "transitions.sqlite"))
    actions = np.array([[0.5], [-0.5]], np.float32)
    found = []
    for mode in ("async", "sync"):
        envs = make_envs(replace(config, vectorization_mode=mode))
        first, _ = envs.reset(seed=0)
        second, rewards, *_ = envs.step(actions)
        found.append((first, second, rewards))
        envs.close()
    assert isinstance(found[0][2], np.ndarray)
    for there, here in zip(*found, strict=True):
        np.testing.assert_array_equal(there, here)
