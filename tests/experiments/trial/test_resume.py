"""Trials that were stopped: how they go on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console

from experiments.common.cli.progress import SearchProgress
from experiments.search import algorithms
from experiments.search.hyperparameters import HYPERPARAMETERS, stored_settings
from experiments.search.resuming import ResumableSearch
from experiments.trial import trial
from experiments.trial.trial import Config, run
from tests.experiments.trial.foreign import FOREIGN
from tests.experiments.trial.runs import interrupt, small
from tests.fakes import TINY, quiet, slow


@pytest.mark.parametrize("agent", ["random", f"{FOREIGN}:Stepper", *slow("td3")])
def test_killed_trial_ends_as_if_undisturbed(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (small(tmp_path / name, algo=agent) for name in ("whole", "killed"))
    run(whole, quiet())
    with monkeypatch.context() as patch:
        patch.setattr(ResumableSearch, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(killed, quiet())
    assert {path.name for path in (tmp_path / "killed").iterdir()} >= {"config.json", "state"}
    run(Config(resume=tmp_path / "killed"), quiet())
    for name in ("episodes.csv", "table.csv"):
        then, now = (
            pd.read_csv(tmp_path / folder / name).drop(columns="seconds")
            for folder in ("whole", "killed")
        )
        pd.testing.assert_frame_equal(then, now)


def test_values_of_an_episode_that_was_running_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last save of PPO, whose rollouts have 8 steps, is in the middle of an episode of 3."""
    whole, killed = (
        small(tmp_path / name, algo="ppo", evaluations=None, episodes=4)
        for name in ("whole", "killed")
    )
    run(whole, quiet())
    with monkeypatch.context() as patch:
        patch.setattr(ResumableSearch, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(killed, quiet())
    state = torch.load(tmp_path / "killed" / "state" / "search.pt", weights_only=True)
    assert [len(steps) for steps in state["beside"]["running"]] == [2]
    run(Config(resume=tmp_path / "killed"), quiet())
    then, now = (
        (tmp_path / name / "overestimation.csv").read_text() for name in ("whole", "killed")
    )
    assert then == now


def test_a_stopped_trial_goes_on_with_the_hyper_parameters_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(algo="ppo", evaluations=12, settings='{"n_epochs": 3}')
    whole = run(replace(config, out=tmp_path / "whole"), quiet())
    stored = json.loads((tmp_path / "whole" / "config.json").read_text())["settings"]
    assert json.loads(stored) == stored_settings("ppo") | {"n_epochs": 3}

    add, count = SearchProgress.advance, iter(range(100))

    def stop_at_sixth(*args: Any) -> None:
        if next(count) == 5:
            raise KeyboardInterrupt
        add(*args)

    with monkeypatch.context() as patch:
        patch.setattr(SearchProgress, "advance", stop_at_sixth)
        with pytest.raises(KeyboardInterrupt):
            run(replace(config, out=tmp_path / "out"), quiet())
    other = HYPERPARAMETERS["ppo"] | {"learning_rate": 0.03, "n_epochs": 20}
    monkeypatch.setitem(HYPERPARAMETERS, "ppo", other)
    resumed = run(Config(resume=tmp_path / "out"), quiet())
    names = ("actions", "final_actions", "n_episodes")
    assert [resumed[name] for name in names] == [whole[name] for name in names]


def test_hyperparameters_are_replaced_and_go_on_in_a_stopped_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    make = algorithms.make_agent

    def note(*args: Any, **kwargs: Any) -> Any:
        agent = make(*args, **kwargs)
        rates.append((agent.learning_rate, agent.n_epochs))
        return agent

    monkeypatch.setattr(trial, "make_agent", note)
    stored = HYPERPARAMETERS["ppo"]["n_epochs"]
    config = small(tmp_path / "out", algo="kl_ppo", settings='{"learning_rate": 0.25}')
    with monkeypatch.context() as patch:
        patch.setattr(ResumableSearch, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config, quiet())
    run(Config(resume=tmp_path / "out"), quiet())
    assert rates == [(0.25, stored)] * 2


def test_finished_search_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(trial, "row_of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config, quiet())
    with monkeypatch.context() as patch:
        patch.setattr(trial, "make_agent", interrupt)
        row = run(Config(resume=tmp_path / "out"), quiet())
    assert row["n_evaluations"] == 4
    assert json.loads((tmp_path / "out" / "config.json").read_text())["task"] == TINY[0]


def test_resumed_trial_shows_the_best_of_all_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(tmp_path / "out", evaluations=None, episodes=8)
    stopped: list[None] = []

    def interrupted(self: SearchProgress, episode: Any, log: Any) -> None:
        advance(self, episode, log)
        if episode.index == 5:
            stopped.append(None)
            raise KeyboardInterrupt

    advance = SearchProgress.advance
    with monkeypatch.context() as patch:
        patch.setattr(SearchProgress, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config, quiet())
    shown = StringIO()
    row = run(Config(resume=tmp_path / "out"), Console(file=shown, width=200))
    assert stopped and row["n_episodes"] == 8
    assert f"best validation accuracy {row['validation_accuracy']:.4f}" in shown.getvalue()


FORMER = {"algo": "agent", "evaluations": "n_evaluations", "episodes": "n_episodes"}


def test_a_stopped_trial_whose_settings_had_other_names_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ResumableSearch, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(small(tmp_path / "out"), quiet())
    path = tmp_path / "out" / "config.json"
    content = json.loads(path.read_text())
    names = [field.name for field in fields(Config)]
    stored = {FORMER.get(name, name): value for name, value in content.items()}
    settings = [(FORMER.get(name, name), content[name]) for name in names]
    stored["inputs"]["settings"] = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    path.write_text(json.dumps(stored | {"n_evaluations": 5}))
    with pytest.raises(ValueError, match=r"its config\.json has been changed"):
        run(Config(resume=tmp_path / "out"), quiet())
    path.write_text(json.dumps(stored))
    assert run(Config(resume=tmp_path / "out"), quiet())["n_evaluations"] == 4
