"""One agent, one task, one seed: what is left behind, and when it ends."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import pandas as pd
import pytest
import tyro

from experiments.search.entrants import CONTRIB, ENTRANTS
from experiments.search.playing import play_actions
from experiments.trial.trial import Config, make_task, run
from tests.experiments.trial.foreign import FOREIGN
from tests.experiments.trial.runs import small
from tests.fakes import TINY, quiet


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


def test_agents_of_sb3_contrib_search_too(tmp_path: Path) -> None:
    pytest.importorskip("sb3_contrib")
    for agent in CONTRIB:
        row = run(small(tmp_path / agent, algo=agent, evaluations=3), quiet())
        assert row["n_evaluations"] == 3 or row["n_episodes"] == 9  # of the same networks


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"data_root": Path("here"), "env_kwargs": '{"data_root": "there"}'},
            r"^another setting asks for the data_root 'here', env_kwargs for 'there': leave one",
        ),
        (
            {"store": Path("here"), "env_kwargs": '{"store": "memory"}'},
            r"^another setting asks for the store 'here', env_kwargs for 'memory': leave one out$",
        ),
        (
            {"algo": "ppo", "budgets": (0.3, 0.5), "env_kwargs": '{"flops_budget": 0.4}'},
            r"^budgets are in place of the task's own: leave flops_budget out of env_kwargs$",
        ),
        ({"algo": "magic"}, r"unknown algorithm 'magic'; valid: .*, my_module:MyAgent"),
        ({"algo": "no_module:A"}, "cannot import agent 'no_module:A': No module named"),
        ({"algo": "json:A"}, "module 'json' has no 'A'"),
        ({"algo": "json:dumps"}, "agent 'json:dumps' must have a method predict"),
        ({"algo": ":A"}, "cannot import agent ':A': ValueError: Empty module name"),
        (
            {"algo": f"{FOREIGN}:NoSeed"},
            r"__init__ must take seed=..., got \(policy, env\)",
        ),
        (
            {"algo": f"{FOREIGN}:NoMode"},
            "predict must take deterministic=..., got .observation",
        ),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        (
            {"algo": "td3+l1", "nominate_by": "critic"},
            r"whose critic values whole episodes \(q_critic_ppo, q_critic_ppo_q, .*\), got td3\+l1",
        ),
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
            {"algo": "ppo+l1", "env_kwargs": '{"prior": "l2"}'},
            r"ppo\+l1 asks for the prior 'l1', env_kwargs for 'l2': leave one out",
        ),
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
    ("algo", "settings", "message"),
    [
        ("random+l1", '{"spread": -0.1}', "spread of .* must be at least 0"),
        ("q_critic_ppo+l1", '{"ensemble": "highest"}', "ensemble must be one of .*'highest'"),
        ("q_critic_ppo+l1", '{"imitation_coef": -1.0}', "imitation_coef of .* must be at least 0"),
        ("cma_es+l1", '{"sigma0": 0.0}', "sigma0 of .* must be above 0"),
    ],
)
def test_settings_that_an_agent_refuses_leave_nothing(
    algo: str, settings: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        run(small(tmp_path / "out", algo=algo, settings=settings), quiet())
    assert not (tmp_path / "out").exists() and not getattr(caught.value, "__notes__", [])


def test_missing_packages_are_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"tpe needs optuna: pip install 'compress-env\[bench"):
        Config("tpe").check()
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(ImportError, match=r"tqc, trpo, crossq, ars need sb3-contrib"):
        Config("tqc").check()


def test_task_takes_other_arguments(tmp_path: Path) -> None:
    plain, rewarded = (
        run(small(tmp_path / name, algo="uniform", env_kwargs=text), quiet())
        for name, text in (("a", "{}"), ("b", '{"reward": "flops"}'))
    )
    assert plain["reward"] == plain["validation_accuracy"] - 1.0
    assert rewarded["reward"] > 0.0
    assert gym.spec(TINY[0]).kwargs["flops_budget"] == 0.4
