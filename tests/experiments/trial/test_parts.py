"""A trial of one policy for several budgets, and one with a shaped reward."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from compress_env.envs.wrappers.shaping import PotentialReward
from experiments.search.observing import check_shaping, discount_as, sees_context, wrap
from experiments.search.playing import Episode, play_actions
from experiments.trial.confirmation import ORDERS
from experiments.trial.parts import parts_of
from experiments.trial.trial import Config, make_task, run
from tests.experiments.trial.foreign import FOREIGN
from tests.fakes import NOISY, TINY, quiet, stop_after_state

BUDGETS = (0.3, 0.5, 0.8)
ALGO = "q_critic_ppo+l1"


def several(out: Path, **settings: Any) -> Config:
    config = Config(ALGO, NOISY[0], evaluations=30, budgets=BUDGETS, out=out)
    return replace(config, **settings)


def read(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / name).drop(columns="seconds", errors="ignore")


@pytest.fixture(scope="module")
def folder(_tiny_tasks: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("several") / "out"
    run(several(out, settings='{"learning_rate": 0.01}'), quiet())
    return out


def test_each_budget_has_its_part_of_everything(folder: Path) -> None:
    table, episodes = read(folder, "table.csv"), read(folder, "episodes.csv")
    assert table["cost_budget"].tolist() == list(BUDGETS)
    assert episodes.groupby("cost_budget").size().to_dict() == dict.fromkeys(BUDGETS, 8)
    assert table["n_episodes"].tolist() == [8] * 3 and (table["n_fresh"] <= 2).all()
    assert table["n_evaluations"].sum() == 24 + table["n_fresh"].sum() <= 30
    assert (table["cost_fraction"] <= table["cost_budget"]).all()
    runs = read(folder, "nomination.csv")
    assert set(runs["cost_budget"]) <= set(BUDGETS)
    for budget, mine in runs.groupby("cost_budget"):
        numbers = mine["source"].str.extract(r"episode (\d+)")[0].dropna().astype(int)
        assert (episodes.loc[numbers, "cost_budget"] == budget).all()


def test_nominees_and_policies_are_confirmed_at_their_budget(folder: Path) -> None:
    table, rows = read(folder, "table.csv"), read(folder, "confirmation.csv")
    assert len(rows) == 3 * len(ORDERS)
    for _, row in table.iterrows():
        mine = rows[rows["cost_budget"] == row["cost_budget"]]
        assert mine["noise_seed"].tolist() == list(ORDERS)
        assert row["confirmed_30"] == pytest.approx(mine["test"].mean())
        assert 0.0 <= row["final_confirmed"] <= 1.0
        budget = json.dumps({"flops_budget": row["cost_budget"]})
        alone = make_task(Config(ALGO, NOISY[0], env_kwargs=budget))
        actions = [float(a) for a in mine["actions"].iloc[0].split()]
        found = play_actions(alone, actions, ORDERS[0])
        assert found.accuracy == mine["validation"].iloc[0]
        assert found.cost <= row["cost_budget"] * alone.unpruned.cost_high
        final = play_actions(
            alone, [float(a) for a in row["final_actions"].split()], int(row["final_noise_seed"])
        )
        assert final.accuracy == row["final_accuracy"]


def test_a_stopped_search_of_several_budgets_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.search.resuming.SAVING_SHARE", 1e9)
    config = several(tmp_path / "out", settings='{"learning_rate": 0.01}')
    with monkeypatch.context() as patch:
        stop_after_state(patch)
        with pytest.raises(KeyboardInterrupt):
            run(config, quiet())
    run(Config(resume=tmp_path / "out"), quiet())
    for name in ("episodes.csv", "nomination.csv", "confirmation.csv", "table.csv"):
        pd.testing.assert_frame_equal(read(folder, name), read(tmp_path / "out", name))


def test_where_no_order_is_drawn_nothing_is_confirmed(tmp_path: Path) -> None:
    for name in "ab":
        config = several(tmp_path / name, task=TINY[1], algo="ppo", budgets=(0.5, 0.9))
        run(replace(config, evaluations=6), quiet())
    table = read(tmp_path / "a", "table.csv")
    assert table["cost_budget"].tolist() == [0.5, 0.9]
    assert not {"confirmed_6", "n_fresh"} & set(table)
    pd.testing.assert_frame_equal(table, read(tmp_path / "b", "table.csv"))


def test_evaluations_of_a_part_are_those_that_its_episodes_have_added() -> None:
    counts = ((0.3, 2), (0.5, 3), (0.3, 3), (0.5, 7))
    fields = {"layers": (), "actions": (), "values": (), "accuracy": 0.5, "reward": 0.5, "cost": 1}
    costs = dict.fromkeys(["dense_macs", "dense_params", "sparse_macs", "sparse_params"], 1)
    given: dict[str, Any] = fields | costs | {"seconds": 0.0}
    episodes = [
        Episode(index=i, n_evaluations=n, cost_budget=budget, **given)
        for i, (budget, n) in enumerate(counts)
    ]
    first, second = parts_of(episodes, {"by_budget": [{"a": 1}, {"a": 2}]}, (0.5, 0.3))
    assert [(e.index, e.n_evaluations) for e in first.episodes] == [(1, 1), (3, 5)]
    assert [(e.index, e.n_evaluations) for e in second.episodes] == [(0, 2), (2, 2)]
    assert (first.outcome, second.label) == ({"a": 1}, {"cost_budget": 0.3})
    (whole,) = parts_of(episodes, {"a": 3}, ())
    assert whole.episodes is episodes and whole.label == {}


def test_tables_of_a_shaped_search_tell_the_reward_without_it(tmp_path: Path) -> None:
    config = Config(ALGO, NOISY[0], evaluations=10, shaping=0.7, out=tmp_path / "out")
    row = run(config, quiet())
    found = read(tmp_path / "out", "episodes.csv")
    np.testing.assert_allclose(found["reward"], found["accuracy"] - 1.0, atol=1e-12)
    assert row["best_reward"] == found["reward"].max()
    watched = read(tmp_path / "out", "overestimation.csv")["mean_return"]
    assert not np.allclose(watched, found["reward"], atol=1e-3)  # the agent's own are shaped


def test_the_reward_is_shaped_for_those_who_see_the_context_alone() -> None:
    env = make_task(Config(ALGO, TINY[0]))
    assert isinstance(wrap(ALGO, env, shaping=0.5), PotentialReward)
    assert not isinstance(wrap(ALGO, env), PotentialReward)
    for name in ("ppo", "cma_es+l1", "random+l1", "l1"):
        assert not sees_context(name) and wrap(name, env, shaping=0.5) is env
        with pytest.raises(ValueError, match="shaping is for learners around a rule"):
            check_shaping(name, 0.5)
        check_shaping(name, 0.0)


@pytest.mark.parametrize(("algo", "gamma"), [(f"{FOREIGN}:SmallPPO+l1", 0.99), (ALGO, 1.0)])
def test_shaping_is_discounted_as_the_agent_does(
    algo: str, gamma: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, step = set[float](), PotentialReward.step

    def watched(self: PotentialReward, action: Any) -> Any:
        seen.add(self.gamma)
        return step(self, action)

    monkeypatch.setattr(PotentialReward, "step", watched)
    run(Config(algo, TINY[0], evaluations=9, shaping=0.5, out=tmp_path / "out"), quiet())
    assert seen == {gamma}


def test_a_potential_reward_inside_takes_the_gamma_of_an_agent() -> None:
    env = wrap(ALGO, make_task(Config(ALGO, TINY[0])), shaping=0.5, budgets=(0.5, 0.8))
    actors = DummyVecEnv([lambda: env])
    discount_as(SimpleNamespace(gamma=0.9), actors)
    inner = env.env  # type: ignore[attr-defined]
    assert isinstance(inner, PotentialReward) and inner.gamma == 0.9
    discount_as(object(), actors)
    assert inner.gamma == 1.0
    with pytest.raises(ValueError, match=r"gamma is in \[0, 1\], got 1.5"):
        discount_as(SimpleNamespace(gamma=1.5), actors)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algo": "ppo", "shaping": 0.5}, "shaping is for learners around a rule.* got ppo"),
        ({"shaping": -0.5}, "shaping must be 0 or more, got -0.5"),
        ({"budgets": (0.5, 0.5)}, r"expected budgets that differ, got \(0.5, 0.5\)"),
        ({"budgets": (0.5, 1.5)}, "budgets must be above 0 and at most 1, got 1.5"),
        ({"algo": "cma_es+l1"}, r"budgets are for learners.*; cma_es\+l1 does not"),
        ({"algo": "l1"}, "budgets are for learners.*; l1 does not"),
        ({"budgets": (0.0001, 0.5)}, r"flops_budget must be in \[.*got 0.0001"),
        ({"evaluations": 2}, "expected an episode for each of 3 budgets, got 2 in all"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_told_in_a_line(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        run(several(tmp_path / "out", **settings), quiet())
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
