"""Searches for hyper-parameters of agents around a rule, for what is confirmed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.search.hyperparameters import INFORMED, stored_settings
from experiments.trial import trial
from experiments.tune import study as tune_study
from experiments.tune.spaces import INFORMED_SPACES
from experiments.tune.study import Job
from experiments.tune.tune import Config, run
from tests.experiments.tune.test_tune import small
from tests.fakes import NOISY, quiet, tiny_tasks

pytestmark = pytest.mark.usefixtures("blank_figures")

RULES = ("l1", "relative_error")


def test_informed_agents_are_judged_by_what_is_confirmed(tmp_path: Path) -> None:
    """A task has the rule of its stage; what is found goes into the file of informed agents."""
    with tiny_tasks():
        config = Config(
            ("cma_es",),
            2,
            NOISY[1:],
            (100,),
            replay_seeds=(200,),
            evaluations=5,
            rule=RULES,
            objective="confirmed",
            jobs=1,
            out=tmp_path / "out",
        )
        (study,) = run(config, quiet())
        tried = study.tried[1]
        repeated = trial.Config(
            "cma_es+relative_error",
            NOISY[1],
            100,
            evaluations=5,
            episodes=200,
            settings=json.dumps(tried.settings),
            out=tmp_path / "trial",
        )
        row = trial.run(repeated, quiet())
    assert tried.by_task == {NOISY[1]: row["confirmed_validation_5"]}
    assert study.tried[0].settings == INFORMED["cma_es"] and tried.settings.keys() == {"sigma0"}
    found = json.loads((tmp_path / "out" / "informed.json").read_text())
    assert found == INFORMED | {"cma_es": study.chosen().settings}
    report = (tmp_path / "out" / "tune.md").read_text()
    assert "of what a search stands by under orders that it has not seen (percent" in report
    assert "copied over\n`experiments/search/informed.json`" in report


def test_informed_settings_that_are_not_searched_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Mapping[str, Any]] = []

    def score(job: Job, settings: Mapping[str, Any], task: str, seed: int) -> float:
        seen.append(settings)
        return 0.5

    monkeypatch.setattr(tune_study, "score", score)
    monkeypatch.setattr(trial, "make_task", lambda _: None)
    config = small(tmp_path / "out", algo=("q_critic_ppo",), n_trials=2, rule=RULES)
    (study,) = run(config, quiet())
    stored = stored_settings("q_critic_ppo+l1")
    assert seen[0] == stored and all(each.keys() == stored.keys() for each in seen)
    assert all(each["target_steps"] == stored["target_steps"] for each in seen)
    assert study.tried[1].settings.keys() == INFORMED_SPACES["q_critic_ppo"].keys()
    found = json.loads((tmp_path / "out" / "informed.json").read_text())
    assert found["q_critic_ppo"] == INFORMED["q_critic_ppo"] | study.tried[0].settings
    with pytest.raises(ValueError, match="was made with rule="):
        run(replace(config, rule=RULES[::-1]), quiet())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": ("nonsense",)}, "unknown rule 'nonsense'; valid: uniform"),
        (
            {"algo": ("cma_es",), "rule": ("l1",)},
            "none of the rules l1 is for compress_env/TinyQuantize-v0",
        ),
        ({"algo": ("tqc",), "rule": RULES}, "unknown algorithm 'tqc'; valid: q_critic_ppo, ppo"),
        (
            {"algo": ("cma_es",), "rule": RULES, "objective": "confirmed"},
            "nothing is confirmed on compress_env/TinyPrune-v0, which draws no orders",
        ),
    ],
    ids=["rule", "no rule of the stage", "agent", "one order"],
)
def test_what_cannot_be_informed_or_confirmed_is_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with tiny_tasks(), pytest.raises(ValueError, match=message):
        run(small(tmp_path / "out", **settings), quiet())
    assert not (tmp_path / "out").exists()


def test_a_budget_that_was_not_confirmed_counts_as_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "run", lambda *_: {"confirmed_validation_100": 0.8})
    config = Config(("random",), evaluations=100, rule=RULES, objective="confirmed")
    job = Job("random", tmp_path, config)
    assert tune_study.score(job, {}, "compress_env/PruneVGG8Digits-v1", 100) == 0.4
