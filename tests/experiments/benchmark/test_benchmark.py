"""Benchmarks: what is run, added, ranked and stored."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from compress_env.store.store import TransitionStore
from compress_env.suite import SUITE
from experiments.benchmark import benchmark
from experiments.benchmark import verify as benchmark_verify
from experiments.benchmark.benchmark import (
    BestConfig,
    Config,
    TableConfig,
    find_best,
    make_table,
    run,
)
from experiments.benchmark.table import read_best_known, read_runs
from experiments.benchmark.verify import verify
from experiments.rival.rival import Config as Rival
from experiments.search.hyperparameters import HYPERPARAMETERS, stored_settings
from experiments.sweep.cells import Cell, make_cell
from experiments.sweep.folder import SweepFolder
from experiments.trial.networks import network_path, save_networks, weights_digest
from experiments.trial.trial import Config as Trial
from experiments.trial.trial import make_task
from experiments.trial.trial import run as run_trial
from experiments.trial.trials import run_trials
from tests.experiments.benchmark.folders import AGENTS, KNOWN, change_network, folder_of, text_of
from tests.fakes import TINY, PlainNet, quiet, seeded

pytestmark = pytest.mark.usefixtures("blank_figures")


def test_same_command_repeats_nothing_and_other_agents_are_added(
    ran: Config, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder_of(ran), out)
    shown = quiet()
    assert run(replace(ran, out=out), shown) == []
    assert "16 of 16 cells were finished before" in text_of(shown)
    assert "started" not in text_of(shown)
    assert run(replace(ran, out=out, algo=("greedy",), task=TINY[:1], seeds=(0,)), shown) == []
    table = pd.read_csv(out / "leaderboard.csv")
    assert set(table["agent"]) == {*AGENTS, "greedy"}
    assert "With fewer trials, their scores do not compare: greedy" in text_of(shown)
    assert "With more evaluations than allowed, their scores do not compare: greedy" in text_of(
        shown
    )
    with pytest.raises(ValueError, match="was made with evaluations=4, got 5"):
        run(replace(ran, out=out, evaluations=5), quiet())
    assert run(replace(ran, out=out, data_root=tmp_path), quiet()) == []  # nothing depends on it


MY_MODULE = """
from stable_baselines3 import PPO

class MyAgent(PPO):
    def __init__(self, policy, env, seed):
        super().__init__(policy, env, n_steps=8, batch_size=8, seed=seed, device="cpu")
"""


def test_an_agent_of_your_own_is_ranked_and_verified(
    ran: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_entrant.py").write_text(MY_MODULE)
    monkeypatch.chdir(tmp_path)
    out, shown = tmp_path / "out", quiet()
    shutil.copytree(folder_of(ran), out)
    assert run(replace(ran, out=out, algo=("my_entrant:MyAgent",)), shown) == []
    table = pd.read_csv(out / "leaderboard.csv").set_index("agent")
    assert set(table.index) == {*AGENTS, "my_entrant:MyAgent"}
    mine = table.loc["my_entrant:MyAgent"]
    assert mine["trials"] == 2 and 0.0 < mine["test_accuracy"] <= 1.0
    assert "| `my_entrant:MyAgent` |" in text_of(shown)
    assert verify(benchmark_verify.Config(out), quiet()) == []
    assert run(replace(ran, out=out, algo=("my_entrant:MyAgent",)), shown) == []
    assert "20 of 20 cells were finished before" in text_of(shown)


def test_leaderboard_shows_costs(ran: Config) -> None:
    text = (folder_of(ran) / "leaderboard.md").read_text()
    head = next(line for line in text.splitlines() if line.startswith("| agent | score"))
    assert head.endswith("| evaluations | cost |")
    trials = read_runs([folder_of(ran)])
    cost = 100.0 * trials[trials["agent"] == "uniform"]["cost_fraction"].mean()
    assert any(
        line.startswith("| `uniform`") and line.endswith(f"| {cost:.2f} |")
        for line in text.splitlines()
    )


def test_a_folder_of_other_evaluations_is_refused_before_anything_is_run(
    ran: Config, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder_of(ran), out)
    before = (out / "sweep.json").read_bytes()
    with pytest.raises(ValueError, match=r"out' holds trials with evaluations=4, got 5; choose"):
        run(replace(ran, out=out, algo=("greedy",), evaluations=5), quiet())
    assert (out / "sweep.json").read_bytes() == before


def test_other_agents_are_added_to_what_is_published(ran: Config, tmp_path: Path) -> None:
    out, shown = tmp_path / "out", quiet()
    out.mkdir()
    for name in ("sweep.json", "sweep.csv"):
        shutil.copy(folder_of(ran) / name, out / name)
    assert run(replace(ran, out=out, algo=("greedy",)), shown) == []
    assert "16 of 20 cells were finished before" in text_of(shown)
    assert {path.name.split("-")[1] for path in (out / "cells").iterdir()} == {"greedy"}
    before, after = (pd.read_csv(path / "sweep.csv", dtype=str) for path in (folder_of(ran), out))
    kept = after[after["agent"] != "greedy"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before, check_like=True)
    (out / "sweep.csv").write_text("agent,task\n")
    with pytest.raises(ValueError, match=r"sweep.csv' is not of a sweep: 'cell'"):
        run(replace(ran, out=out, algo=("greedy",)), quiet())


def test_trials_share_steps_where_each_is_scored(ran: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = SweepFolder(out)
    shared = replace(Trial("random", TINY[0], 0), env_kwargs='{"reward_at": "layer"}')
    cells = [Cell(f"{seed}", "trial", replace(shared, seed=seed)) for seed in (0, 1)]
    cells += [Cell("deep", "trial", Trial("random", TINY[0], 0, evaluations=4))]
    assert run_trials(cells, folder, quiet(), jobs=1) == []
    alone = tmp_path / "alone"
    run_trial(replace(cells[1].config, out=alone), quiet())
    mine, other = (
        pd.read_csv(path / "episodes.csv").drop(columns="seconds")
        for path in (folder.cell("1"), alone)
    )
    pd.testing.assert_frame_equal(mine, other)
    stored = [json.loads((folder.cell(cell.name) / "config.json").read_text()) for cell in cells]
    shared_file = str(out / "transitions.sqlite")
    assert [config["store"] for config in stored] == [shared_file, shared_file, None]
    assert len(TransitionStore(out / "transitions.sqlite")) > 0
    assert str(out) not in (out / "sweep.json").read_text()  # which may be published


FORMER = {"algo": "agent", "evaluations": "n_evaluations", "episodes": "n_episodes"}


def test_folder_from_before_there_were_settings_is_read_and_added_to(
    ran: Config, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder_of(ran), out)
    content = json.loads((out / "sweep.json").read_text())
    for cell in content["cells"].values():
        assert cell.pop("settings") == json.dumps(stored_settings(cell["algo"]))
        for now, then in FORMER.items():
            cell[then] = cell.pop(now)
    (out / "sweep.json").write_text(json.dumps(content))
    assert verify(benchmark_verify.Config(out), quiet()) == []
    assert run(replace(ran, out=out, algo=("random",), seeds=(2,)), quiet()) == []
    assert verify(benchmark_verify.Config(out), quiet()) == []


def test_agent_with_other_hyper_parameters_is_refused(
    ran: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HYPERPARAMETERS, "ppo", HYPERPARAMETERS["ppo"] | {"n_epochs": 1})
    with pytest.raises(ValueError, match=r"made with hyper-parameters \{.*\} of ppo, got \{"):
        run(replace(ran, algo=("ppo",), seeds=(2,)), quiet())
    assert not list((folder_of(ran) / "cells").glob("*seed2"))


def test_leaderboard_is_that_of_the_trials(ran: Config) -> None:
    table = pd.read_csv(folder_of(ran) / "leaderboard.csv").set_index("agent")
    found = read_runs([folder_of(ran)])
    assert len(found) == 16 and set(found["limit"]) == {4.0}
    for agent in AGENTS:
        mine = found[(found["agent"] == agent) & (found["task"] == TINY[0])]
        best = mine["validation_accuracy"].mean()
        assert table.loc[agent, "validation:TinyPrune-v0"] == pytest.approx(best)
        assert table.loc[agent, "score"] == pytest.approx((best - 0.25) / 0.25)  # nothing to trim
        assert table["tasks"][agent] == 1 and table["trials"][agent] == 2
    assert (folder_of(ran) / "leaderboard.png").stat().st_size > 1000
    text = (folder_of(ran) / "leaderboard.md").read_text()
    assert "Nothing better than uniform is known, no score: TinyQuantize-v0." in text
    assert "- TinyPrune-v0: " in text
    assert text.count("| agent | TinyPrune-v0 | TinyQuantize-v0 |") == 3
    assert text.count("\n| score 0 | 25.00 | 50.00 |\n| score 1 | 50.00 | 50.00 |\n") == 1


def test_trials_that_start_from_another_network_are_not_added(ran: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder_of(ran), out)
    change_network(out, TINY[1])
    assert run(replace(ran, out=out), quiet()) == []  # nothing is added
    assert run(replace(ran, out=out, algo=("random",), seeds=(2,), task=TINY[:1]), quiet()) == []
    with pytest.raises(ValueError, match=f"^{TINY[1]} starts from another network here than the"):
        run(replace(ran, out=out, algo=("random",), seeds=(2,)), quiet())
    assert len(list((out / "cells").iterdir())) == 17


def test_a_network_is_stored_once_and_not_if_the_package_has_it(tmp_path: Path) -> None:
    shipped = make_task(Trial(task="PruneLeNet5Digits-v0")).task.model
    own = seeded(PlainNet)
    names = ("PruneLeNet5Digits-v0", "x:Own-v0", "compress_env/Other-v0")
    save_networks(tmp_path, dict(zip(names, (shipped, own, own), strict=True)))
    (file,) = (tmp_path / "networks").iterdir()
    assert file.stem == weights_digest(own)
    assert [network_path(tmp_path, name) for name in names[1:]] == [file, file]
    packaged = network_path(tmp_path, "compress_env/PruneLeNet5Digits-v0")
    assert packaged is not None and tmp_path not in packaged.parents
    assert network_path(tmp_path, "Unknown-v0") is None
    save_file({name: x + 1 for name, x in load_file(file).items()}, file)
    with pytest.raises(ValueError, match="has been changed: it is not the network of x:Own-v0"):
        network_path(tmp_path, "x:Own-v0")
    file.unlink()
    with pytest.raises(ValueError, match=r"Other-v0 starts from a network \(sha256 .* neither in"):
        network_path(tmp_path, "Other-v0")


def test_one_table_of_several_runs(ran: Config, tmp_path: Path) -> None:
    other = tmp_path / "other"
    own = replace(ran, out=other, algo=("tpe",), task=TINY[:1])
    assert run(own, quiet()) == []
    table = tmp_path / "table"
    config = TableConfig((folder_of(ran), other), out=table, best_known=ran.best_known)
    make_table(config, quiet())
    assert set(pd.read_csv(table / "leaderboard.csv")["agent"]) == {*AGENTS, "tpe"}
    make_table(replace(config, task=TINY[1:]), quiet())
    assert set(pd.read_csv(table / "leaderboard.csv")["agent"]) == set(AGENTS)
    assert "TinyPrune" not in (table / "leaderboard.md").read_text()
    with pytest.raises(ValueError, match=r"unknown task of a trial 'x'; valid: Tiny"):
        make_table(replace(config, task=("x",)), quiet())
    with pytest.raises(ValueError, match="expected each trial once, got tpe on"):
        make_table(replace(config, runs=(other, other)), quiet())
    with pytest.raises(ValueError, match="holds no finished trials"):
        make_table(replace(config, runs=(tmp_path,)), quiet())
    path = change_network(other, TINY[0])
    with pytest.raises(ValueError, match=r"TinyPrune-v0 starts from different networks in .*other"):
        make_table(config, quiet())
    path.unlink()  # then there is nothing to compare
    make_table(config, quiet())


def test_best_known_is_written_to_another_file(ran: Config, tmp_path: Path) -> None:
    before = ran.best_known.read_text()
    shown = quiet()
    find_best(BestConfig((folder_of(ran),), tmp_path / "new.csv", ran.best_known), shown)
    new, found = read_best_known(tmp_path / "new.csv"), read_runs([folder_of(ran)])
    assert ran.best_known.read_text() == before
    for task in TINY:
        best = found.loc[found["task"] == task, "validation_accuracy"].max()
        assert new[task].best == max(best, KNOWN[task].best)
        assert new[task].uniform == KNOWN[task].uniform


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algo": ("magic",)}, "unknown algorithm 'magic'"),
        ({"algo": ("ppo", "ppo")}, "expected algo that differ"),
        ({"task": (TINY[0], TINY[0])}, "expected trials that differ, got trial-ppo-"),
        ({"seeds": ()}, "expected seeds that differ"),
        (
            {"algo": ("ppo", "sbpf"), "task": ("compress_env/QuantizeVGG8Digits-v0",)},
            "sbpf chooses pruning rates, .*QuantizeVGG8Digits-v0 asks for bits",
        ),
        ({"evaluations": 0}, "evaluations must be 1 or more, got 0"),
        ({"jobs": 0}, "jobs must be 1 or more, got 0"),
        ({"best_known": Path("none.csv")}, "'none.csv' is no table of best known accuracies"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_bad_input_ends_with_one_line_and_no_folder(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = Config(algo=("ppo",), task=TINY[:1], out=tmp_path / "out")
    with pytest.raises(ValueError, match=message) as caught:
        run(replace(config, **settings), quiet())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "out")
    with folder.open([make_cell("rival", Rival())]):
        before = folder.marker.read_text()
    with pytest.raises(ValueError, match="holds runs of rival, none of which go with those of tri"):
        run(Config(algo=("random",), task=TINY[:1], out=folder.path), quiet())
    assert folder.marker.read_text() == before


def test_task_that_is_not_there_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--task", "compress_env/None-v0", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["benchmark", "--algo", "random", *arguments])
    with pytest.raises(SystemExit, match=r"^error: unknown task 'None-v0'.* valid: "):
        benchmark.main()
    assert not (tmp_path / "out").exists()


def test_several_environments_are_for_those_that_search() -> None:
    config = Config(algo=("l1", "ppo"), task=(TINY[0],), seeds=(0,), n_envs=3)
    assert {trial.algo: trial.n_envs for trial in config.trials()} == {"l1": None, "ppo": 3}
    with pytest.raises(ValueError, match="n_envs must be 1 or more, got 0"):
        replace(config, n_envs=0).trials()


def test_shaping_is_for_learners_around_a_rule(tmp_path: Path) -> None:
    config = Config(
        algo=("l1", "ppo", "tpe+l1", "ppo+l1"), task=(TINY[0],), seeds=(0,), shaping=0.5
    )
    shaped = {trial.algo: trial.shaping for trial in config.trials()}
    assert shaped == {"l1": 0.0, "ppo": 0.0, "tpe+l1": 0.0, "ppo+l1": 0.5}
    with pytest.raises(ValueError, match=r"shaping is for learners around a rule.* got ppo"):
        replace(config, algo=("ppo",)).trials()
    trial = replace(config.trials()[-1], shaping=0.2)
    folder = SweepFolder(tmp_path / "out", rows_suffice=True)
    with folder.open([make_cell("trial", trial)]):
        pass
    with pytest.raises(ValueError, match=r"holds trials with shaping=0\.2, got 0\.5"):
        run(replace(config, algo=("l1", "ppo+l1"), seeds=(1,), out=folder.path), quiet())


def test_agents_around_a_rule_are_run_where_it_is_of_use() -> None:
    trials = Config(algo=("ppo+l1", "random+relative_error", "tpe+uniform"), seeds=(0,)).trials()
    played = {t.algo: {u.task for u in trials if u.algo == t.algo} for t in trials}
    assert {task.partition("/")[2][:5] for task in played["ppo+l1"]} == {"Prune"}
    assert {task.partition("/")[2][:8] for task in played["random+relative_error"]} == {"Quantize"}
    assert played["tpe+uniform"] == {task.id for task in SUITE}


def test_agents_that_know_nothing_of_bits_are_run_on_pruning_alone() -> None:
    trials = Config(algo=("afie", "sbpf", "greedy"), seeds=(0,)).trials()
    played = {agent: [t.task for t in trials if t.algo == agent] for agent in ("afie", "greedy")}
    assert played["greedy"] == [task.id for task in SUITE]
    assert played["afie"] == [task for task in played["greedy"] if "/Prune" in task]
    assert len(trials) == 12 + 2 * 6
