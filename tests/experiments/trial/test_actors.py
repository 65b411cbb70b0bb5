"""Trials of several environments at once: what is counted, and how they go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.search.resuming import ResumableSearch
from experiments.trial.trial import Config, run
from tests.experiments.trial.runs import interrupt, small
from tests.fakes import quiet


def episodes(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "episodes.csv").drop(columns="seconds")


@pytest.mark.parametrize("agent", ["q_critic_ppo_paper", "random"])
def test_evaluations_are_counted_over_all(agent: str, tmp_path: Path) -> None:
    config = small(tmp_path / "out", algo=agent, evaluations=6, n_envs=3)
    row, found = run(config, quiet()), episodes(tmp_path / "out")
    values = found.filter(like="value:")
    assert row["n_evaluations"] == found["n_evaluations"].iloc[-1] == len(values.drop_duplicates())
    assert row["n_evaluations"] == 6 and row["n_episodes"] == len(found)


def test_episodes_are_counted_over_all(tmp_path: Path) -> None:
    config = small(tmp_path / "out", algo="ddpg", evaluations=None, episodes=5, n_envs=2)
    assert run(config, quiet())["n_episodes"] == 5 == len(episodes(tmp_path / "out"))


def test_the_papers_agent_has_four(tmp_path: Path) -> None:
    for name, n_envs in (("own", None), ("four", 4)):
        config = small(
            tmp_path / name, algo="q_critic_ppo_paper", evaluations=None, episodes=8, n_envs=n_envs
        )
        run(config, quiet())
    own, four = (episodes(tmp_path / name) for name in ("own", "four"))
    pd.testing.assert_frame_equal(own, four)


def test_killed_trial_of_several_ends_as_if_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"algo": "q_critic_ppo_paper", "n_envs": 2, "evaluations": 8}
    whole, killed = (small(tmp_path / name, **settings) for name in ("whole", "killed"))
    run(whole, quiet())
    with monkeypatch.context() as patch:
        patch.setattr(ResumableSearch, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(killed, quiet())
    run(Config(resume=tmp_path / "killed"), quiet())
    for name in ("episodes.csv", "table.csv", "overestimation.csv"):
        then, now = (pd.read_csv(tmp_path / folder / name) for folder in ("whole", "killed"))
        pd.testing.assert_frame_equal(
            then.drop(columns="seconds", errors="ignore"),
            now.drop(columns="seconds", errors="ignore"),
        )


def test_each_draws_orders_of_its_own(tmp_path: Path) -> None:
    config = small(
        tmp_path / "out",
        algo="random",
        evaluations=10,
        n_envs=2,
        env_kwargs='{"transition_noise": true}',
    )
    run(config, quiet())
    orders = episodes(tmp_path / "out")["noise_seed"]
    assert orders.nunique() == len(orders) > 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algo": "l1", "n_envs": 2}, "l1 acts in one environment, got n_envs=2"),
        ({"algo": "ppo", "n_envs": 0}, "n_envs must be 1 or more, got 0"),
    ],
)
def test_wrong_numbers_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(small(tmp_path / "out", **settings), quiet())
    assert not (tmp_path / "out").exists()
