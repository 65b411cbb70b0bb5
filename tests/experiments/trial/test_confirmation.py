"""A trial on a task that draws orders: nominated, confirmed, and gone on with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from agents import QCriticPPO
from experiments.search.playing import play_actions
from experiments.trial import reruns, snapshots
from experiments.trial.confirmation import ORDERS, most_runs
from experiments.trial.reruns import Reruns, rerun_actions
from experiments.trial.trial import Config, make_task, run
from tests.experiments.trial.runs import interrupt
from tests.fakes import NOISY, quiet, slow

EACH = {"env_kwargs": '{"reward_at": "layer"}'}
FILES = ("episodes.csv", "nomination.csv", "confirmation.csv", "table.csv")


def noisy(out: Path, **settings: Any) -> Config:
    config = Config(task=NOISY[0], evaluations=10, out=out)
    return replace(config, **settings)


def read(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / name).drop(columns="seconds", errors="ignore")


def actions_of(text: str) -> list[float]:
    return [float(action) for action in text.split()]


@pytest.fixture(scope="module")
def folder(_tiny_tasks: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trial") / "out"
    run(noisy(out, algo="ppo", evaluations=40), quiet())
    return out


class TestTrial:
    def test_searches_four_fifths_and_nominates_with_the_rest(self, folder: Path) -> None:
        (row,) = read(folder, "table.csv").to_dict("records")
        assert (row["n_episodes"], row["n_fresh"], row["n_evaluations"]) == (32, 8, 40)
        runs = read(folder, "nomination.csv")
        assert runs.groupby("budget").size().to_dict() == {30: 6, 40: 8}
        assert set(runs.loc[runs["budget"] == 30, "source"]) >= {"policy"}
        # what a budget compares was found within its part of the search
        sources = runs.loc[runs["budget"] == 30, "source"].str.extract(r"episode (\d+)")[0]
        assert sources.dropna().astype(int).max() < 24
        searched = read(folder, "episodes.csv")["noise_seed"]
        assert not set(runs["noise_seed"]) & set(searched) and searched.nunique() == 32

    def test_confirms_under_the_same_five_orders(self, folder: Path) -> None:
        (row,) = read(folder, "table.csv").to_dict("records")
        confirmed = read(folder, "confirmation.csv")
        assert confirmed["noise_seed"].tolist() == [*ORDERS, *ORDERS]
        for budget, mine in confirmed.groupby("budget"):
            assert row[f"confirmed_{budget}"] == pytest.approx(mine["test"].mean())
            validation = row[f"confirmed_validation_{budget}"]
            assert validation == pytest.approx(mine["validation"].mean())
        assert row["luck"] == row["validation_accuracy"] - row["confirmed_validation_40"]

    def test_confirms_what_the_final_policy_does(self, folder: Path) -> None:
        (row,) = read(folder, "table.csv").to_dict("records")
        env, actions = make_task(noisy(folder)), actions_of(row["final_actions"])
        found = [play_actions(env, actions, order).accuracy or 0.0 for order in ORDERS]
        assert row["final_confirmed_validation"] == pytest.approx(np.mean(found))
        assert 0.0 <= row["final_confirmed"] <= 1.0

    def test_can_be_replayed_to_the_last_digit(self, folder: Path) -> None:
        env = make_task(noisy(folder))
        assert read(folder, "episodes.csv")["accuracy"].nunique() > 1
        for row in read(folder, "episodes.csv").to_dict("records")[::8]:
            episode = play_actions(env, actions_of(row["actions"]), row["noise_seed"])
            assert (episode.accuracy, episode.cost) == (row["accuracy"], row["cost"])
        for row in read(folder, "confirmation.csv").to_dict("records")[::3]:
            actions = tuple(actions_of(row["actions"]))
            rerun = rerun_actions(env, actions, row["noise_seed"], with_test=True)
            assert rerun[:2] == (row["validation"], row["test"])
        (row,) = read(folder, "table.csv").to_dict("records")
        final = play_actions(env, actions_of(row["final_actions"]), row["final_noise_seed"])
        assert final.accuracy == row["final_accuracy"]

    def test_does_not_run_a_network_twice(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[tuple[Any, int]] = []

        def note(env: Any, actions: Any, order: int, with_test: bool) -> Any:
            made.append((actions, order))
            return rerun_actions(env, actions, order, with_test)

        monkeypatch.setattr(reruns, "rerun_actions", note)
        run(noisy(tmp_path / "out", algo="uniform", evaluations=300), quiet())
        assert len(made) == len(set(made)) == 5 == most_runs(300, is_single=True)
        (row,) = read(tmp_path / "out", "table.csv").to_dict("records")
        assert row["confirmed_30"] == row["confirmed_100"] == row["confirmed_300"]
        assert not (tmp_path / "out" / "nomination.csv").exists()

    def test_of_a_rule_counts_at_the_budgets_that_it_keeps_to(self, tmp_path: Path) -> None:
        row = run(noisy(tmp_path / "out", algo="greedy", evaluations=100, **EACH), quiet())
        assert row["n_evaluations"] > 30 and "confirmed_30" not in row and row["confirmed_100"]

    @pytest.mark.parametrize(("evaluations", "spent"), [(1, 1), (4, 4), (6, 5)])
    def test_may_be_too_small_to_nominate(
        self, evaluations: int, spent: int, tmp_path: Path
    ) -> None:
        row = run(noisy(tmp_path / "out", evaluations=evaluations), quiet())
        assert row["n_evaluations"] == spent and f"confirmed_{evaluations}" in row

    def test_counts_every_layer_where_each_is_scored(self, tmp_path: Path) -> None:
        row = run(noisy(tmp_path / "out", evaluations=40, **EACH), quiet())
        # 3 evaluations an episode: 33 are searched, 2 fresh runs use 6 of the 7 that are left
        assert (row["n_episodes"], row["n_fresh"], row["n_evaluations"]) == (11, 6, 39)

    def test_ends_sooner_with_its_episodes(self, tmp_path: Path) -> None:
        row = run(noisy(tmp_path / "out", algo="ppo", evaluations=30, episodes=9), quiet())
        assert (row["n_episodes"], row["n_fresh"]) == (9, 6)

    def test_needs_evaluations(self, tmp_path: Path) -> None:
        config = noisy(tmp_path / "out", evaluations=None, episodes=3)
        with pytest.raises(ValueError, match=r"an order for each episode: expected evaluations"):
            run(config, quiet())

    def test_from_one_seed_is_the_same_again(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            run(noisy(tmp_path / name), quiet())
        for name in FILES:
            first, second = (read(tmp_path / each, name) for each in ("one", "two"))
            pd.testing.assert_frame_equal(first, second)


def test_a_critic_nominates_what_it_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up critic values late episodes most; the search is the same as without one."""
    by = {}
    monkeypatch.setattr(QCriticPPO, "episode_values", lambda self: np.arange(99.0)[: seen(self)])
    for name in ("accuracy", "critic"):
        config = noisy(tmp_path / name, algo="q_critic_ppo", evaluations=40)
        run(replace(config, nominate_by=name), quiet())
        by[name] = tmp_path / name
    assert read(by["critic"], "episodes.csv").equals(read(by["accuracy"], "episodes.csv"))
    runs = read(by["critic"], "nomination.csv")
    sources = runs[(runs["round"] == 0) & (runs["source"] != "policy")].groupby("budget")["source"]
    found = {
        budget: [int(source.split()[1]) for source in dict.fromkeys(each)]
        for budget, each in sources
    }
    # At 30 the critic has not seen the 24th episode, the last, when it is asked.
    assert found[30][0] == 22 and found[40][0] == 31
    # The latest are the best, but for allocations that a later episode has come to again.
    assert all(each == sorted(each, reverse=True) for each in found.values())
    assert not runs.equals(read(by["accuracy"], "nomination.csv"))


def seen(agent: QCriticPPO) -> int:
    """Return how many episodes an agent of one environment has stored to their end."""
    assert agent.replay_buffer is not None
    return int(agent.replay_buffer.dones[: agent.replay_buffer.size()].sum())


@pytest.mark.parametrize("algo", ["ppo", "cma_es", *slow("sac", "q_critic_ppo", "tpe", "ppo+l1")])
def test_a_search_goes_on_as_if_its_policy_had_not_been_asked(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(noisy(tmp_path / "asked", algo=algo, evaluations=35), quiet())
    monkeypatch.setattr(snapshots.PolicySnapshots, "note", lambda *_: None)
    run(noisy(tmp_path / "unasked", algo=algo, evaluations=35), quiet())
    asked, unasked = (read(tmp_path / name, "episodes.csv") for name in ("asked", "unasked"))
    assert len(asked) == 28
    pd.testing.assert_frame_equal(asked, unasked)


@pytest.mark.parametrize("algo", ["random", *slow("td3")])
@pytest.mark.parametrize("n_done", [3, 9])
def test_a_stopped_confirmation_goes_on(
    algo: str, n_done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(noisy(tmp_path / "whole", algo=algo, evaluations=35), quiet())
    made: list[tuple[Any, int, bool]] = []

    def note(env: Any, actions: Any, order: int, with_test: bool) -> Any:
        if len(made) == n_done:
            raise KeyboardInterrupt
        made.append((actions, order, with_test))
        return rerun_actions(env, actions, order, with_test)

    with monkeypatch.context() as patch:
        patch.setattr(reruns, "rerun_actions", note)
        with pytest.raises(KeyboardInterrupt):
            run(noisy(tmp_path / "killed", algo=algo, evaluations=35), quiet())
    begun = set(made)
    n_done = 1000
    with monkeypatch.context() as patch:
        patch.setattr(reruns, "rerun_actions", note)
        run(Config(resume=tmp_path / "killed"), quiet())
    assert len(set(made)) == len(made) > len(begun)
    for name in FILES:
        then, now = (read(tmp_path / each, name) for each in ("whole", "killed"))
        pd.testing.assert_frame_equal(then, now)


def test_a_search_that_was_stopped_after_a_snapshot_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = noisy(tmp_path / "whole", algo="ppo", evaluations=40)
    run(config, quiet())
    note = snapshots.PolicySnapshots.note

    def stop(self: Any, policy: Any, episodes: Any) -> None:
        note(self, policy, episodes)
        if len(episodes) == 30:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(snapshots.PolicySnapshots, "note", stop)
        with pytest.raises(KeyboardInterrupt):
            run(replace(config, out=tmp_path / "killed"), quiet())
    run(Config(resume=tmp_path / "killed"), quiet())
    for name in FILES:
        then, now = (read(tmp_path / each, name) for each in ("whole", "killed"))
        pd.testing.assert_frame_equal(then, now)


def test_a_damaged_state_is_told_in_one_line(tmp_path: Path) -> None:
    config = noisy(tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reruns, "shown", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config, quiet())
    torch.save({"reruns": [((0.5,), 3, "x", 0.0, 0.0)]}, tmp_path / "out" / "state" / "reruns.pt")
    with pytest.raises(ValueError, match=r"reruns\.pt' does not fit this run") as caught:
        run(Config(resume=tmp_path / "out"), quiet())
    assert "\n" not in str(caught.value)
