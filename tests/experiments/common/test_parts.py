"""The parts that experiments are made of."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import Random, Uniform
from compress_env.envs.pruning import PruningEnv
from experiments.common.drawing.figures import pareto_front
from experiments.common.drawing.outputs import format_markdown
from experiments.common.run_folder import RunFolder, replacing
from experiments.search.algorithms import LEARNERS, check_algorithm, make_learner
from experiments.search.episodes import (
    EpisodeLog,
    best_episode,
    run_learner,
    run_policy,
)
from experiments.search.playing import play_actions
from tests.fakes import EPISODE, PlainNet, make_data, seeded


def make_env(**options: Any) -> PruningEnv:
    return PruningEnv(seeded(PlainNet), make_data(), finetune_steps=0, device="cpu", **options)


def make_log(env: PruningEnv | None = None, **options: Any) -> EpisodeLog:
    made = env or make_env(**options)
    return EpisodeLog(DummyVecEnv([lambda: made]))


class TestSearch:
    def test_policy_is_run_for_as_many_evaluations(self) -> None:
        log = make_log(reward_at="episode")
        policy = Random(log.observation_space, log.action_space, seed=0)
        run_policy(policy, log, n_episodes=50, n_evaluations=7)
        assert log.episodes[-1].n_evaluations == 7
        assert all(e.n_evaluations < 7 for e in log.episodes[:-1])

    def test_learner_is_run_for_as_many_episodes(self) -> None:
        log = make_log()
        agent = make_learner("q_critic_ppo", log, n_steps=15, seed=0)
        run_learner(agent, log, 5)
        assert [e.index for e in log.episodes] == [0, 1, 2, 3, 4]
        assert all(len(e.actions) == 3 for e in log.episodes)

    @pytest.mark.parametrize("name", ["q_critic_ppo", "ddpg", "td3", "sac"])
    def test_a_short_search_leaves_time_to_learn(self, name: str) -> None:
        agent: Any = make_learner(name, make_log(), n_steps=45, seed=0)
        assert 0 < agent.learning_starts <= 15

    def test_failed_episodes_count_and_are_told_apart(self) -> None:
        scores = iter([0.5, 0.5, float("nan")] + [0.5] * 100)
        log = make_log(scorer=lambda _: next(scores))
        run_learner(make_learner("q_critic_ppo", log, n_steps=12, seed=0), log, 4)
        assert len(log.episodes) == 4
        failed = log.episodes[0]
        assert failed.accuracy is None and failed.error is not None
        assert len(failed.values) == 2
        assert best_episode(log.episodes).index > 0

    def test_replay_gives_the_network_again(self) -> None:
        env = make_env()
        log = make_log(env)
        run_policy(Random(log.observation_space, log.action_space, 1), log, n_episodes=2)
        play_actions(env, log.episodes[0].actions)
        assert env.task.score(env.compressed_model()) == log.episodes[0].accuracy

    def test_replay_of_a_failed_episode_takes_the_actions_before_it_failed(self) -> None:
        scores = iter([0.5, float("nan"), 0.5, 0.5, 0.5])
        env = make_env(scorer=lambda _: next(scores))
        failed = play_actions(env, (0.1, 0.2))
        assert len(failed.actions) == 2 and failed.accuracy is None
        with pytest.raises(ValueError, match="expected 3 actions, one for each layer, got 2"):
            play_actions(env, (0.1, 0.3))

    def test_uniform_prunes_every_layer_alike_and_meets_the_budget(self) -> None:
        env = make_env(flops_budget=0.4)
        log = make_log(env)
        run_policy(Uniform(env.uniform_value()), log, n_episodes=1)
        (episode,) = log.episodes
        assert episode.cost <= 0.4 * env.unpruned.cost_high
        counts = np.array([d.n_channels for d in env._decisions])
        np.testing.assert_allclose(episode.values, env.uniform_value(), atol=1.0 / counts.min())
        assert np.ptp(episode.values) < 0.2

    def test_best_is_by_reward_then_accuracy_then_cost_then_the_first(self) -> None:
        accurate = replace(EPISODE, index=1, accuracy=0.99, cost=1.0, reward=-0.2)
        cheap = replace(EPISODE, index=2, cost=5.0)
        repeated = replace(cheap, index=3)
        failed = replace(EPISODE, index=4, accuracy=None, reward=1.0)
        worse = replace(EPISODE, index=5, accuracy=0.8, cost=1.0)
        for order in permutations([EPISODE, accurate, cheap, repeated, failed, worse]):
            assert best_episode(order) is cheap
        rewarded = replace(worse, reward=-0.05)
        assert best_episode([EPISODE, accurate, cheap, failed, rewarded]) is rewarded
        with pytest.raises(RuntimeError, match="no episode finished"):
            best_episode([failed])

    def test_row_has_a_column_per_layer(self) -> None:
        row = EPISODE.row()
        assert (row["value:a"], row["value:b"], row["actions"]) == (0.25, 0.75, "0.5 -1")
        assert "layers" not in row


class TestAlgorithms:
    def test_unknown_name_is_refused(self) -> None:
        with pytest.raises(ValueError, match="unknown algorithm 'x'; valid: q_critic_ppo, ppo"):
            check_algorithm("x")

    @pytest.mark.parametrize("name", LEARNERS)
    def test_same_seed_same_search(self, name: str) -> None:
        actions = []
        for _ in range(2):
            log = make_log()
            run_learner(make_learner(name, log, n_steps=18, seed=4), log, 6)
            actions.append([episode.actions for episode in log.episodes])
        assert actions[0] == actions[1]
        assert len(set(actions[0])) > 1


def test_pareto_front_by_hand() -> None:
    costs = [3.0, 1.0, 2.0, 2.0, 4.0]
    accuracies = [0.9, 0.5, 0.7, 0.6, 0.9]
    assert pareto_front(costs, accuracies).tolist() == [1, 2, 0]


def test_markdown_table() -> None:
    assert format_markdown(("a", "b"), [("x", "1")]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


@dataclass(frozen=True)
class Settings:
    name: str = "x"


class TestRunFolder:
    def test_config_tells_how_to_repeat_the_run(self, tmp_path: Path) -> None:
        RunFolder(tmp_path / "run", Settings())
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        assert config["name"] == "x"
        assert config["command"].startswith("python -m")
        assert config["versions"]["torch"]

    def test_failed_write_leaves_the_old_file_and_nothing_else(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("old")
        with pytest.raises(RuntimeError, match="broken"), replacing(tmp_path / "a.txt") as path:
            path.write_text("half")
            raise RuntimeError("broken")
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
        assert (tmp_path / "a.txt").read_text() == "old"

    def test_folder_that_cannot_be_made_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match="cannot write to"):
            RunFolder(tmp_path / "file" / "run", Settings())
