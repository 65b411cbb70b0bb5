"""Searches for hyper-parameters: what is tried, kept, chosen, and gone on with."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.search import entrants
from experiments.search.hyperparameters import HYPERPARAMETERS
from experiments.trial import trial
from experiments.tune import config as tune_config
from experiments.tune import study as tune_study
from experiments.tune import tune
from experiments.tune.spaces import SPACES, contains
from experiments.tune.study import Job, anytime_accuracy
from experiments.tune.tune import Config, run
from tests.fakes import TINY, quiet, tiny_tasks

pytestmark = pytest.mark.usefixtures("blank_figures")

Score = Callable[[Job, Mapping[str, Any], str, int], float]


def small(out: Path, **settings: Any) -> Config:
    config = Config(("ars",), 8, TINY, (100,), replay_seeds=(200, 201), jobs=1, out=out)
    return replace(config, **settings)


def made_up(rate: float) -> float:
    """Return an objective that is best at a learning rate of 0.1."""
    return 1.0 / (1.0 + math.log(rate / 0.1) ** 2)


def by_rate(job: Job, settings: Mapping[str, Any], task: str, seed: int) -> float:
    """Play the made-up objective, a tenth less on the last task."""
    return made_up(settings["learning_rate"]) * (0.9 if task == TINY[1] else 1.0)


@pytest.fixture(autouse=True)
def _needs_no_contrib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `ars` stand for an agent where none is built."""
    monkeypatch.setattr(tune_config, "check_packages", lambda _: None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str, int]]:
    """Put the made-up objective in place; what is played is noted."""
    noted: list[tuple[float, str, int]] = []

    def score(job: Job, settings: Mapping[str, Any], task: str, seed: int) -> float:
        noted.append((settings["learning_rate"], task, seed))
        return by_rate(job, settings, task, seed)

    monkeypatch.setattr(tune_study, "score", score)
    monkeypatch.setattr(trial, "make_task", lambda _: None)
    return noted


def test_anytime_accuracy_by_hand() -> None:
    """Best after 1, 2, 3, 4, 5 evaluations: 0.2, 0.2, 0.6, 0.6, 0.6; one failed, one repeated."""
    accuracies, n_evaluations = [0.2, math.nan, 0.6, 0.5, 0.5], [1, 2, 3, 4, 4]
    found = anytime_accuracy(accuracies, accuracies, n_evaluations, 5)
    assert found == pytest.approx(2.2 / 5)


def test_anytime_accuracy_is_that_of_the_best_episode_by_reward() -> None:
    """Accuracy of the best after 1, 2, 3, 4: 0.9, 0.5, 0.6, 0.6; the third is a tie."""
    found = anytime_accuracy([0.9, 0.5, 0.6, 0.8], [-3.0, 1.0, 1.0, 0.0], [1, 2, 3, 4], 4)
    assert found == pytest.approx(2.6 / 4)


def test_anytime_accuracy_begins_with_the_first_episode_and_forgets_what_is_beyond() -> None:
    assert anytime_accuracy([0.8, 1.0], [0.8, 1.0], [2, 4], 3) == pytest.approx(
        (0.0 + 0.8 + 0.8) / 3
    )
    assert anytime_accuracy([math.nan], [-1.0], [1], 4) == 0.0


def test_best_set_is_chosen_after_it_was_played_again(
    tmp_path: Path, calls: list[tuple[float, str, int]]
) -> None:
    (study,) = run(small(tmp_path / "out"), quiet())
    assert study.agent == "ars" and len(study.tried) == 8
    assert study.tried[0].settings == HYPERPARAMETERS["ars"]
    assert all(contains(SPACES["ars"], tried.settings) for tried in study.tried)
    # The present one and the three best of the others, on both tasks with both fresh seeds.
    complete = sorted(
        (tried for tried in study.tried[1:] if tried.state == "complete"),
        key=lambda tried: -(tried.objective or 0.0),
    )
    assert set(study.replays) == {0, *(tried.number for tried in complete[:3])}
    again = [call for call in calls if call[2] != 100]
    assert len(again) == 4 * 2 * 2 and {seed for *_, seed in again} == {200, 201}
    best = max(study.tried, key=lambda tried: tried.objective or 0.0)
    assert study.chosen() == best and best.number > 0
    rate = best.settings["learning_rate"]
    assert study.mean(best.number) == pytest.approx(0.95 * made_up(best.settings["learning_rate"]))
    found = json.loads((tmp_path / "out" / "hyperparameters.json").read_text())
    assert found == HYPERPARAMETERS | {"ars": best.settings}
    table = pd.read_csv(tmp_path / "out" / "tuning.csv")
    assert json.loads(table["settings"][best.number])["learning_rate"] == rate
    chosen = pd.read_csv(tmp_path / "out" / "chosen.csv")
    assert chosen["number"][chosen["chosen"]].tolist() == [best.number]
    assert chosen["mean"].to_numpy() == pytest.approx([study.mean(n) for n in chosen["number"]])
    report = (tmp_path / "out" / "tune.md").read_text()
    assert (
        f"learning_rate {rate:.3g}" in report
        and f"learning_rate {HYPERPARAMETERS['ars']['learning_rate']:.3g}," in report
    )
    assert (tmp_path / "out" / "tune.png").stat().st_size > 0


def test_interruption_is_told_how_to_go_on_and_an_error_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        interruption = KeyboardInterrupt()
        interruption.add_note("go on with: python -m experiments.trial")
        raise interruption

    monkeypatch.setattr(trial, "run", stop)
    monkeypatch.setattr(trial, "make_task", lambda _: None)
    config = small(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(config, quiet())
    notes = [f"go on with the same command and --out {tmp_path / 'out'}"]
    assert stopped.value.__notes__ == notes
    with pytest.raises(ValueError, match="was made with evaluations=") as refused:
        run(replace(config, evaluations=config.evaluations + 1), quiet())
    assert not getattr(refused.value, "__notes__", [])


def test_present_settings_outside_the_ranges_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HYPERPARAMETERS, "ars", HYPERPARAMETERS["ars"] | {"learning_rate": 0.9})
    with pytest.raises(ValueError, match=r"present settings of ars are outside the ranges of"):
        run(small(tmp_path / "out"), quiet())
    assert not (tmp_path / "out").exists()


def test_present_set_stays_where_no_other_is_better(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_study, "score", lambda *_: 0.5)
    (study,) = run(small(tmp_path / "out", n_trials=4), quiet())
    assert study.chosen().number == 0
    assert "| - | 50.00 ± 0.00 |" in (tmp_path / "out" / "tune.md").read_text()
    found = json.loads((tmp_path / "out" / "hyperparameters.json").read_text())
    assert found == HYPERPARAMETERS


def test_the_best_of_the_search_loses_if_it_was_lucky(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lucky(job: Job, settings: Mapping[str, Any], task: str, seed: int) -> float:
        is_present = settings == HYPERPARAMETERS["ars"]
        return (0.4 if seed == 100 else 0.6) if is_present else 0.5

    monkeypatch.setattr(tune_study, "score", lucky)
    (study,) = run(small(tmp_path / "out", n_trials=3), quiet())
    assert study.chosen().number == 0


@pytest.mark.parametrize("n_played", [1, 5, 19])
def test_a_stopped_search_goes_on_as_if_undisturbed(
    n_played: int,
    tmp_path: Path,
    calls: list[tuple[float, str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (whole,) = run(small(tmp_path / "whole"), quiet())
    undisturbed = list(calls)
    calls.clear()
    noting: Score = tune_study.score

    def stopping(*args: Any) -> float:
        if len(calls) == n_played:
            raise KeyboardInterrupt
        return noting(*args)

    with monkeypatch.context() as patch:
        patch.setattr(tune_study, "score", stopping)
        with pytest.raises(KeyboardInterrupt) as caught:
            run(small(tmp_path / "out"), quiet())
    assert caught.value.__notes__ == [f"go on with the same command and --out {tmp_path / 'out'}"]
    (study,) = run(small(tmp_path / "out"), quiet())
    assert study == whole
    # What was played for the set at which it stopped is played again, and nothing else.
    repeated = len(calls) - len(undisturbed)
    assert 0 <= repeated <= 3
    calls.clear()
    assert run(small(tmp_path / "out"), quiet()) == [study] and not calls


def test_failing_sets_are_the_worst_and_hopeless_ones_are_given_up(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: Job, settings: Mapping[str, Any], *rest: Any) -> float:
        if settings["learning_rate"] > 0.1:
            raise ValueError("weights are no\nnumbers")
        return by_rate(job, settings, *rest)

    monkeypatch.setattr(tune_study, "score", fail)
    (study,) = run(small(tmp_path / "out", n_trials=20), quiet())
    by_state = {
        state: [t for t in study.tried if t.state == state]
        for state in ("complete", "pruned", "failed")
    }
    assert sum(map(len, by_state.values())) == 20 and all(by_state.values())
    for tried in by_state["failed"]:
        assert tried.objective == 0.0 and tried.settings["learning_rate"] > 0.1
    for tried in by_state["pruned"]:
        assert tried.by_task.keys() == {TINY[0]} and tried.objective is None
    assert not set(study.replays) & {t.number for t in by_state["failed"] + by_state["pruned"]}
    table = pd.read_csv(tmp_path / "out" / "tuning.csv")
    assert table["state"].tolist() == [tried.state for tried in study.tried]


def test_present_set_must_not_fail(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> float:
        raise ValueError("no such thing")

    monkeypatch.setattr(tune_study, "score", fail)
    with pytest.raises(ValueError, match="no such thing"):
        run(small(tmp_path / "out"), quiet())


def test_folder_takes_more_sets_and_agents_but_no_other_settings(
    tmp_path: Path, calls: list[tuple[float, str, int]]
) -> None:
    (first,) = run(small(tmp_path, n_trials=3), quiet())
    both = run(small(tmp_path, n_trials=4, algo=("td3",)), quiet())
    assert [study.agent for study in both] == ["td3", "ars"]
    assert both[1] == first and len(both[0].tried) == 4
    calls.clear()
    run(small(tmp_path, n_trials=4), quiet())
    assert len({rate for rate, _, seed in calls if seed == 100}) == 1
    with pytest.raises(ValueError, match="was made with evaluations=100, got 50"):
        run(small(tmp_path, evaluations=50), quiet())


@pytest.mark.usefixtures("calls")
def test_a_line_that_was_not_written_to_its_end_is_cut_off(tmp_path: Path) -> None:
    config = small(tmp_path / "out", n_trials=2)
    run(config, quiet())
    log = tmp_path / "out" / "studies" / "ars.log"
    whole = log.read_text()
    log.write_text(f'{whole}{{"op_code": 4, "worker')
    (study,) = run(replace(config, n_trials=3), quiet())
    assert len(study.tried) == 3 and log.read_text().startswith(whole)
    assert len(run(replace(config, n_trials=4), quiet())[0].tried) == 4


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("text", ["no study\n\n", "{}\n", "[]\n", '{"op_code": 0}\n'])
def test_a_damaged_study_is_told_in_one_line(text: str, tmp_path: Path) -> None:
    log = tmp_path / "out" / "studies" / "ars.log"
    log.parent.mkdir(parents=True)
    log.write_text(text)
    with pytest.raises(ValueError, match=r"study '.*ars\.log' cannot be read") as caught:
        run(small(tmp_path / "out"), quiet())
    assert "\n" not in str(caught.value) and log.read_text() == text


@pytest.mark.usefixtures("calls")
def test_a_study_that_was_not_begun_is_no_hindrance_to_others(tmp_path: Path) -> None:
    (tmp_path / "out" / "studies").mkdir(parents=True)
    (tmp_path / "out" / "studies" / "ppo.log").touch()
    (study,) = run(small(tmp_path / "out", n_trials=1), quiet())
    assert study.agent == "ars"


@pytest.mark.usefixtures("calls")
def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("of a trial")
    with pytest.raises(ValueError, match="is not empty, and holds no studies"):
        run(small(tmp_path), quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "of a trial"


def test_real_searches_are_what_a_trial_gives_with_these_settings(tmp_path: Path) -> None:
    with tiny_tasks():
        config = small(tmp_path / "out", algo=("ppo",), n_trials=2, evaluations=3)
        (study,) = run(replace(config, replay_seeds=(200,)), quiet())
        assert len(study.tried) == 2 and set(study.replays) == {0, 1}
        tried = study.tried[1]
        repeated = trial.Config(
            "ppo",
            TINY[1],
            100,
            evaluations=3,
            episodes=200,
            settings=json.dumps(tried.settings),
            out=tmp_path / "trial",
        )
        trial.run(repeated, quiet())
    episodes = pd.read_csv(tmp_path / "trial" / "episodes.csv")
    rewards, n_evaluations = episodes["reward"], episodes["n_evaluations"]
    again = anytime_accuracy(episodes["accuracy"], rewards, n_evaluations, 3)
    assert tried.by_task[TINY[1]] == again
    stored = json.loads((tmp_path / "trial" / "config.json").read_text())
    assert json.loads(stored["settings"]) == tried.settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"algo": ("trpo",)},
            "unknown algorithm 'trpo'; valid: q_critic_ppo, ppo, a2c, ddpg, td3",
        ),
        ({"algo": ()}, "expected algo that differ, at least one"),
        ({"seeds": (3,)}, "seeds must be 100 or more, got"),
        ({"replay_seeds": (99, 200)}, "replay_seeds must be 100 or more, got"),
        ({"replay_seeds": (100,)}, "expected replay_seeds that are not in seeds"),
        ({"n_trials": 0}, "n_trials must be 1 or more, got 0"),
        ({"task": ("CartPole-v1",)}, "task must be one of compress_env's, got 'CartPole-v1'"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_bad_settings_end_with_one_line(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        run(small(tmp_path / "out", **settings), quiet())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_optuna_is_asked_for_only_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    for module in (entrants, tune):
        spec = importlib.util.spec_from_file_location("fresh", str(module.__file__))
        assert spec is not None and spec.loader is not None
        with monkeypatch.context() as patch:
            fresh = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, "fresh", fresh)
            spec.loader.exec_module(fresh)
            assert fresh.main if module is tune else fresh.LEARNERS
    with pytest.raises(ImportError, match=r"needs optuna: pip install 'compress-env\[benchmark\]'"):
        run(small(tmp_path / "out"), quiet())
