"""One agent, one task, one seed: what is left behind, when it ends, and how it goes on."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from io import StringIO
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch
import tyro
from rich.console import Console
from stable_baselines3 import PPO

from agents import Random
from experiments.common.cli.progress import SearchProgress
from experiments.search import algorithms
from experiments.search.entrants import CONTRIB, ENTRANTS
from experiments.search.hyperparameters import HYPERPARAMETERS, stored_settings
from experiments.search.playing import play_actions
from experiments.search.resuming import ResumableSearch
from experiments.trial import trial
from experiments.trial.trial import Config, make_task, run
from tests.fakes import TINY, tiny_tasks


@pytest.fixture(scope="module", autouse=True)
def _tiny_tasks() -> Iterator[None]:
    with tiny_tasks():
        yield


class Midway:
    """Acts the same everywhere, and knows nothing but `predict`."""

    def __init__(self, policy: str, env: Any, seed: int) -> None:
        assert policy == "MlpPolicy" and env.num_envs == 1
        self.seed = seed

    def predict(self, observation: Any, deterministic: bool = False) -> tuple[Any, None]:
        return np.zeros((len(observation), 1), np.float64), None


class Stepper(Midway):
    """Learns nothing, for as many steps as it is told to, and takes no callbacks."""

    def __init__(self, policy: str, env: Any, seed: int) -> None:
        super().__init__(policy, env, seed)
        self.env = env
        self.policy = Random(env.observation_space, env.action_space, seed)

    def learn(self, total_timesteps: int) -> None:
        observations = self.env.reset()
        for _ in range(total_timesteps):
            actions, _ = self.policy.predict(observations)
            observations, *_ = self.env.step(actions)


class SmallPPO(PPO):
    def __init__(self, policy: str, env: Any, seed: int) -> None:
        super().__init__(policy, env, n_steps=8, batch_size=8, seed=seed, device="cpu")


class Stubborn(Stepper):
    """Takes no exception for an answer."""

    def learn(self, total_timesteps: int) -> None:
        for _ in range(2):
            try:
                super().learn(total_timesteps)
            except Exception:
                continue


class NoSeed:
    def __init__(self, policy: str, env: Any) -> None: ...

    def predict(self, observation: Any, deterministic: bool = False) -> Any: ...


class NoMode(Midway):
    def predict(self, observation: Any) -> Any: ...  # type: ignore[override]


class WrongShape(Midway):
    def predict(self, observation: Any, deterministic: bool = False) -> tuple[Any, None]:
        return np.zeros(1), None


class Failing(Stepper):
    def learn(self, total_timesteps: int) -> None:
        raise KeyError("x")


INSTANCE = Midway("MlpPolicy", type("Env", (), {"num_envs": 1}), 0)


def quiet() -> Console:
    return Console(file=StringIO())


def small(out: Path | None = None, **settings: Any) -> Config:
    return replace(Config(task=TINY[0], evaluations=4, out=out), **settings)


def episodes(folder: Path) -> pd.DataFrame:
    table = pd.read_csv(folder / "episodes.csv", dtype=str)
    return table.astype({name: float for name in ("accuracy", "reward", "n_evaluations")})


@pytest.mark.parametrize("agent", ["random", "q_critic_ppo_q", "sac", "kl_ppo", "cim_ppo"])
def test_search_ends_with_its_evaluations(agent: str, tmp_path: Path) -> None:
    row = run(small(tmp_path / "out", algo=agent), quiet())
    found = episodes(tmp_path / "out")
    values = found.filter(like="value:")
    assert row["n_evaluations"] == found["n_evaluations"].iloc[-1] == len(values.drop_duplicates())
    assert row["n_evaluations"] == 4 and row["n_episodes"] == len(found)
    assert row["validation_accuracy"] == found["accuracy"].max()
    assert row["best_reward"] == found["reward"].max()
    assert row["cost_fraction"] <= 0.4


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


def test_best_network_is_the_one_of_the_stored_actions(tmp_path: Path) -> None:
    config = small(tmp_path / "out", algo="ddpg", task=TINY[1], evaluations=6)
    run(config, quiet())
    (row,) = pd.read_csv(tmp_path / "out" / "table.csv", dtype=str).to_dict("records")
    env = make_task(config)
    for kind, columns in {
        "actions": {"accuracy": "validation_accuracy", "reward": "reward", "cost": "cost"},
        "final_actions": {"accuracy": "final_accuracy", "reward": "final_reward"},
    }.items():
        played = asdict(play_actions(env, [float(action) for action in row[kind].split()]))
        assert {name: played[name] for name in columns} == {
            name: float(row[column]) for name, column in columns.items()
        }


@pytest.mark.parametrize("agent", ["ppo", "kl_ppo", "cim_ppo"])
def test_overestimation_is_that_of_the_later_half(agent: str, tmp_path: Path) -> None:
    row = run(small(tmp_path / "out", algo=agent, evaluations=5), quiet())
    records = pd.read_csv(tmp_path / "out" / "overestimation.csv")
    assert len(records) == row["n_episodes"]
    late = (records["mean_value"] - records["mean_return"])[len(records) // 2 :]
    assert row["q_overestimation"] == pytest.approx(late.mean())
    # The reward comes at the end and is not discounted: all returns of an episode are the same.
    found = episodes(tmp_path / "out")["reward"]
    assert records["mean_return"].to_numpy() == pytest.approx(found.to_numpy(), abs=1e-6)


@pytest.mark.parametrize("name", ["Midway", "Stepper", "Stubborn", "SmallPPO", "INSTANCE"])
def test_anybodys_agent_searches(name: str, tmp_path: Path) -> None:
    agent = f"{__name__}:{name}"
    row = run(small(tmp_path / "out", algo=agent, episodes=5), quiet())
    if name in ("Midway", "INSTANCE"):  # the same network each time
        assert (row["n_episodes"], row["n_evaluations"]) == (5, 1)
        assert row["actions"] == row["final_actions"] == "0 0 0"
    else:
        assert row["n_evaluations"] == 4 or row["n_episodes"] == 5


def test_agents_of_sb3_contrib_search_too(tmp_path: Path) -> None:
    pytest.importorskip("sb3_contrib")
    for agent in CONTRIB:
        row = run(small(tmp_path / agent, algo=agent, evaluations=3), quiet())
        assert row["n_evaluations"] == 3 or row["n_episodes"] == 9  # of the same networks


@pytest.mark.parametrize("agent", ["random", "td3", f"{__name__}:Stepper"])
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


def test_a_task_may_be_named_without_its_namespace(tmp_path: Path) -> None:
    assert Config(task="TinyPrune-v0") == Config(task=TINY[0])
    assert Config(task="x:Y-v0").task == "x:Y-v0"
    with pytest.raises(
        ValueError, match="unknown task 'tinyprune-v0', did you mean 'TinyPrune-v0'"
    ):
        Config(task="tinyprune-v0").check()


@pytest.mark.parametrize(("rule", "task"), [("l1", TINY[0]), ("relative_error", TINY[1])])
def test_rules_choose_without_an_evaluation_of_their_own(
    rule: str, task: str, tmp_path: Path
) -> None:
    row = run(small(tmp_path / "out", algo=rule, task=task), quiet())
    assert (row["n_episodes"], row["n_evaluations"]) == (1, 1)
    assert row["actions"] == row["final_actions"]


def test_help_names_every_agent(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(Config, args=["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(f" {name}" in shown for name in (*ENTRANTS, "my_module:MyAgent"))


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


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


def test_code_of_an_agent_is_run_only_if_it_is_named_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "trial_entrant.py"
    source.write_text("from tests.experiments.trial.test_trial import Stepper as Mine\n")
    monkeypatch.chdir(tmp_path)
    killed = small(tmp_path / "killed", algo="trial_entrant:Mine")
    with monkeypatch.context() as patch:
        patch.setattr(ResumableSearch, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(killed, quiet())
    del sys.modules["trial_entrant"]
    monkeypatch.setattr("sys.argv", ["trial", "--resume", str(tmp_path / "killed")])
    with pytest.raises(SystemExit, match="error: the code of 'trial_entrant:Mine' is run only if"):
        trial.main()
    assert "trial_entrant" not in sys.modules
    source.write_text(source.read_text() + "# other code\n")
    again = Config(resume=tmp_path / "killed", algo="trial_entrant:Mine")
    with pytest.raises(ValueError, match="the agent here is not what"):
        run(again, quiet())
    source.write_text("from tests.experiments.trial.test_trial import Stepper as Mine\n")
    assert run(again, quiet())["n_evaluations"] == 4


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algo": "magic"}, r"unknown algorithm 'magic'; valid: .*, my_module:MyAgent"),
        ({"algo": "no_module:A"}, "cannot import agent 'no_module:A': No module named"),
        ({"algo": "json:A"}, "module 'json' has no 'A'"),
        ({"algo": "json:dumps"}, "agent 'json:dumps' must have a method predict"),
        ({"algo": ":A"}, "cannot import agent ':A': ValueError: Empty module name"),
        ({"algo": f"{__name__}:NoSeed"}, r"__init__ must take seed=..., got \(policy, env\)"),
        ({"algo": f"{__name__}:NoMode"}, "predict must take deterministic=..., got .observation"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"evaluations": 0}, "evaluations must be 1 or more, got 0"),
        ({"evaluations": None}, "expected evaluations or episodes, got neither"),
        ({"env_kwargs": "[1]"}, r"env_kwargs must be a JSON object, got '\[1\]'"),
        ({"settings": "0.1"}, "settings must be a JSON object, got '0.1'"),
        ({"settings": '{"tau": 1.0}'}, "unknown setting 'tau' of random; valid: none"),
        (
            {"algo": "kl_ppo", "settings": '{"clip_range": 0.2}'},
            "unknown setting 'clip_range' of kl_ppo; valid: learning_rate, n_updates",
        ),
        ({"env_kwargs": '{"bits": 3}'}, "cannot make the task .* unexpected keyword"),
        ({"env_kwargs": '{"flops_budget": 2}'}, "flops_budget must be in"),
        (
            {"task": "compress_env/None-v0"},
            "unknown task 'None-v0'.* valid: ",
        ),
        ({"task": "CartPole-v1"}, "task must be one of compress_env's, got 'CartPole-v1'"),
        ({"algo": "afie", "task": TINY[1]}, "afie chooses pruning rates, .* asks for bits$"),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_bad_input_ends_with_one_line(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, ImportError), match=message) as caught:
        run(small(tmp_path / "out", **settings), quiet())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Failing", r"Failing' failed: KeyError: 'x' \(.*test_trial.py, line \d+\)"),
        ("WrongShape", r"WrongShape' failed: ValueError: action must have shape \(1,\), got \(\)"),
    ],
)
def test_what_goes_wrong_in_anybodys_agent_is_told_in_one_line(
    name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=message):
        run(small(tmp_path / "out", algo=f"{__name__}:{name}"), quiet())


def test_missing_packages_are_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"tpe needs optuna: pip install 'compress-env\[bench"):
        Config("tpe").check()
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(ImportError, match=r"tqc, trpo, crossq, ars need sb3-contrib"):
        Config("tqc").check()


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


def test_task_takes_other_arguments(tmp_path: Path) -> None:
    plain, rewarded = (
        run(small(tmp_path / name, algo="uniform", env_kwargs=text), quiet())
        for name, text in (("a", "{}"), ("b", '{"reward": "flops"}'))
    )
    assert plain["reward"] == plain["validation_accuracy"] - 1.0
    assert rewarded["reward"] > 0.0
    assert gym.spec(TINY[0]).kwargs["flops_budget"] == 0.4
