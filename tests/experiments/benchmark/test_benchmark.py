"""Benchmarks: what is run, ranked, stored, and found out when it is tampered with."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
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
from experiments.benchmark.table import (
    Reference,
    read_best_known,
    read_runs,
    write_best_known,
)
from experiments.benchmark.verify import verify
from experiments.search.hyperparameters import HYPERPARAMETERS, stored_settings
from experiments.search.names import short_name
from experiments.sweep.cells import Cell
from experiments.sweep.folder import SweepFolder
from experiments.trial import trials
from experiments.trial.networks import network_path, save_networks, weights_digest
from experiments.trial.trial import Config as Trial
from experiments.trial.trial import make_task
from experiments.trial.trial import run as run_trial
from experiments.trial.trials import run_trials
from tests.fakes import TINY, InProcessPool, PlainNet, seeded, tiny_tasks

AGENTS = ("uniform", "random", "cma_es", "ppo")
KNOWN = {TINY[0]: Reference(0.25, 0.5, "somebody"), TINY[1]: Reference(0.5, 0.5, "uniform")}


@pytest.fixture(scope="module", autouse=True)
def _tiny_tasks() -> Iterator[None]:
    with tiny_tasks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "LocalPool", InProcessPool)
        yield


def console() -> Console:
    return Console(file=StringIO(), width=200)


def text_of(shown: Console) -> str:
    assert isinstance(shown.file, StringIO)
    return shown.file.getvalue()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A benchmark of four agents on two tasks from two seeds."""
    root = tmp_path_factory.mktemp("benchmark")
    write_best_known(root / "known.csv", KNOWN)
    config = Config(
        algo=AGENTS,
        task=TINY,
        seeds=(0, 1),
        evaluations=4,
        out=root / "out",
        best_known=root / "known.csv",
    )
    assert run(config, console()) == []
    return config


def change_network(out: Path, task: str) -> Path:
    """Put another network in a task's place, as earlier folders have them; return its file."""
    path = network_path(out, task)
    assert path is not None
    weights = {name: tensor + 1 for name, tensor in load_file(path).items()}
    listed = json.loads((out / "networks.json").read_text())
    del listed[short_name(task)]
    (out / "networks.json").write_text(json.dumps(listed))
    own = out / "networks" / f"{short_name(task)}.safetensors"
    save_file(weights, own)
    return own


def folder_of(config: Config) -> Path:
    assert config.out is not None
    return config.out


def test_same_command_repeats_nothing_and_other_agents_are_added(
    ran: Config, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder_of(ran), out)
    shown = console()
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
        run(replace(ran, out=out, evaluations=5), console())
    assert run(replace(ran, out=out, data_root=tmp_path), console()) == []  # nothing depends on it


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
    out, shown = tmp_path / "out", console()
    shutil.copytree(folder_of(ran), out)
    assert run(replace(ran, out=out, algo=("my_entrant:MyAgent",)), shown) == []
    table = pd.read_csv(out / "leaderboard.csv").set_index("agent")
    assert set(table.index) == {*AGENTS, "my_entrant:MyAgent"}
    mine = table.loc["my_entrant:MyAgent"]
    assert mine["trials"] == 2 and 0.0 < mine["test_accuracy"] <= 1.0
    assert "| `my_entrant:MyAgent` |" in text_of(shown)
    assert verify(benchmark_verify.Config(out), console()) == []
    assert run(replace(ran, out=out, algo=("my_entrant:MyAgent",)), shown) == []
    assert "20 of 20 cells were finished before" in text_of(shown)


FOREIGN = "open('executed', 'w')\nclass A:\n    def predict(self, *a, **k): ...\n"


def rewrite(out: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the settings of the first trial in `sweep.json`."""
    marker = out / "sweep.json"
    content = json.loads(marker.read_text())
    change(next(iter(content["cells"].values())))
    marker.write_text(json.dumps(content))


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: Config) -> Iterator[Path]:
    """A copy of the benchmark, with a module beside it that must not be imported."""
    (tmp_path / "foreign_code.py").write_text(FOREIGN)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    shutil.copytree(folder_of(ran), out)
    yield out
    assert not (tmp_path / "executed").exists() and "foreign_code" not in sys.modules


@pytest.mark.parametrize("task", ["foreign_code:X-v0", "CartPole-v1", "compress_env/Tiny-v0"])
def test_only_tasks_of_the_package_are_verified(task: str, foreign: Path) -> None:
    text = (foreign / "sweep.csv").read_text().replace(TINY[0], task)
    (foreign / "sweep.csv").write_text(text)
    marker = (foreign / "sweep.json").read_text().replace(TINY[0], task)
    (foreign / "sweep.json").write_text(marker)
    with pytest.raises(ValueError, match=f"unknown task '{task.removeprefix('compress_env/')}'"):
        verify(benchmark_verify.Config(foreign), console())


def test_informed_agents_are_verified_around_their_rule_and_searches_are_no_learners(
    ran: Config, tmp_path: Path
) -> None:
    out, shown = tmp_path / "out", console()
    shutil.copytree(folder_of(ran), out)
    informed = replace(ran, out=out, algo=("ppo+l1", "cma_es+l1"), task=TINY[:1])
    assert run(informed, shown) == []
    assert verify(benchmark_verify.Config(out, algo=("ppo+l1", "cma_es+l1")), shown) == []
    text = (out / "leaderboard.md").read_text()
    verdicts = [line for line in text.splitlines() if "random search" in line]
    assert any("ppo+l1" in line for line in verdicts)
    assert not any("cma_es+l1 " in line for line in verdicts)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("task", "foreign_code:X-v0"), ("algo", "foreign_code:A"), ("seed", 9)],
)
def test_rows_and_settings_must_be_of_one_trial(setting: str, value: Any, foreign: Path) -> None:
    rewrite(foreign, lambda cell: cell.update({setting: value}))
    column = "agent" if setting == "algo" else setting
    with pytest.raises(ValueError, match=rf"{column}=.* in sweep\.csv, .* in sweep\.json"):
        verify(benchmark_verify.Config(foreign), console())


@pytest.mark.parametrize("cell", ["../out", "cells/../../x", "/etc", "cells/", "x"])
def test_row_of_a_folder_elsewhere_is_refused(cell: str, foreign: Path) -> None:
    table = pd.read_csv(foreign / "sweep.csv", dtype=str, keep_default_na=False)
    table.loc[0, "cell"] = cell
    table.to_csv(foreign / "sweep.csv", index=False)
    with pytest.raises(ValueError, match="holds no finished trials: "):
        verify(benchmark_verify.Config(foreign), console())


@pytest.mark.parametrize(
    ("setting", "value"), [("algo", "foreign_code:A"), ("task", "foreign_code:X-v0")]
)
def test_unfinished_trial_of_foreign_code_is_not_gone_on_with(
    setting: str, value: str, ran: Config, foreign: Path
) -> None:
    marker = foreign / "sweep.json"
    content = json.loads(marker.read_text())
    cell = next(iter(content["cells"].values()))
    content["cells"]["planted"] = cell | {setting: value}
    marker.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"cell planted of .*; add --{setting} for"):
        run(replace(ran, out=foreign, algo=("greedy",)), console())


def test_verification_takes_its_own_data_and_says_so(foreign: Path) -> None:
    rewrite(
        foreign, lambda cell: cell.update({"data_root": "/theirs", "store": str(foreign / "s")})
    )
    shown = console()
    assert verify(benchmark_verify.Config(foreign), shown) == []
    assert "the trials were run with data in '/theirs', they are verified" in text_of(shown)
    assert not (foreign / "s").exists()


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
        run(replace(ran, out=out, algo=("greedy",), evaluations=5), console())
    assert (out / "sweep.json").read_bytes() == before


def test_other_agents_are_added_to_what_is_published(ran: Config, tmp_path: Path) -> None:
    out, shown = tmp_path / "out", console()
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
        run(replace(ran, out=out, algo=("greedy",)), console())


def test_trials_share_steps_where_each_is_scored(ran: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = SweepFolder(out)
    shared = replace(Trial("random", TINY[0], 0), env_kwargs='{"reward_at": "layer"}')
    cells = [Cell(f"{seed}", "trial", replace(shared, seed=seed)) for seed in (0, 1)]
    cells += [Cell("deep", "trial", Trial("random", TINY[0], 0, evaluations=4))]
    assert run_trials(cells, folder, console(), jobs=1) == []
    alone = tmp_path / "alone"
    run_trial(replace(cells[1].config, out=alone), console())
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
    assert verify(benchmark_verify.Config(out), console()) == []
    assert run(replace(ran, out=out, algo=("random",), seeds=(2,)), console()) == []
    assert verify(benchmark_verify.Config(out), console()) == []


def test_agent_with_other_hyper_parameters_is_refused(
    ran: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HYPERPARAMETERS, "ppo", HYPERPARAMETERS["ppo"] | {"n_epochs": 1})
    with pytest.raises(ValueError, match=r"made with hyper-parameters \{.*\} of ppo, got \{"):
        run(replace(ran, algo=("ppo",), seeds=(2,)), console())
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


def test_untouched_folder_is_verified(ran: Config) -> None:
    shown = console()
    assert verify(benchmark_verify.Config(folder_of(ran)), shown) == []
    assert text_of(shown).count(": 8 trials replayed") == 2
    some = benchmark_verify.Config(
        folder_of(ran), task=("TinyPrune-v0",), algo=("ppo", "random"), seeds=(1,)
    )
    assert verify(some, shown) == []
    assert f"{TINY[0]}: 2 trials replayed" in text_of(shown)
    with pytest.raises(ValueError, match="unknown agent of a trial 'Ppo', did you mean 'ppo'"):
        verify(replace(some, algo=("Ppo",)), shown)
    assert "trained here" not in text_of(shown) and "now known" not in text_of(shown)


def test_another_network_and_other_references_are_told(
    ran: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder_of(ran), out)
    change_network(out, TINY[0])
    now = tmp_path / "now.csv"
    write_best_known(now, {TINY[0]: Reference(0.25, 0.75, "somebody")})
    monkeypatch.setattr(benchmark_verify, "BEST_KNOWN", now)
    shown = console()
    verify(benchmark_verify.Config(out), shown)
    text = " ".join(text_of(shown).split())
    assert text.count("the network is not the one that is trained here") == 1
    assert f"{TINY[0]}: scores are measured by 0.2500 and 0.5000, now known: 0.2500 and" in text


def test_trials_that_start_from_another_network_are_not_added(ran: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder_of(ran), out)
    change_network(out, TINY[1])
    assert run(replace(ran, out=out), console()) == []  # nothing is added
    assert run(replace(ran, out=out, algo=("random",), seeds=(2,), task=TINY[:1]), console()) == []
    with pytest.raises(ValueError, match=f"^{TINY[1]} starts from another network here than the"):
        run(replace(ran, out=out, algo=("random",), seeds=(2,)), console())
    assert len(list((out / "cells").iterdir())) == 17


def replace_cell(table: str, column: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    """Make a function that changes a value of the first PPO trial in one of the CSV files."""

    def tamper(out: Path) -> None:
        (cell,) = (path for path in (out / "cells").glob("trial-ppo-*Prune*-seed0"))
        path = out / table if (out / table).exists() else cell / table
        rows = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
        (row,) = [row for row in rows if row.get("cell") == f"cells/{cell.name}"] or rows[:1]
        row[column] = change(row[column])
        pd.DataFrame(rows).to_csv(path, index=False)

    return tamper


def add(amount: float) -> Callable[[str], str]:
    return lambda text: repr(float(text) + amount)


def both(first: Callable[[Path], None], second: Callable[[Path], None]) -> Callable[[Path], None]:
    def tamper(out: Path) -> None:
        first(out)
        second(out)

    return tamper


def change_text(out: Path) -> None:
    path = out / "leaderboard.md"
    path.write_text(path.read_text().replace("`ppo` | ", "`ppo` | 9"))


BETTER = replace_cell("sweep.csv", "validation_accuracy", add(0.01))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (BETTER, r"validation_accuracy is .* its replay gives"),
        (BETTER, r"validation_accuracy is .* in sweep.csv, .* by table.csv"),
        (BETTER, r"validation_accuracy is .* in sweep.csv, .* by episodes.csv"),
        (BETTER, r"leaderboard.csv: validation:TinyPrune-v0 of ppo is"),
        (
            both(BETTER, replace_cell("table.csv", "validation_accuracy", add(0.01))),
            r"validation_accuracy is .* its replay gives",
        ),
        (replace_cell("sweep.csv", "test_accuracy", add(0.02)), r"test_accuracy is .* its replay"),
        (replace_cell("sweep.csv", "cost", add(-1.0)), r"cost is .* its replay gives"),
        (replace_cell("sweep.csv", "final_reward", add(0.1)), r"final_reward is .* its replay"),
        (
            replace_cell("sweep.csv", "actions", lambda _: "0.1 0.2 0.3"),
            r"actions is '0.1 0.2 0.3' in sweep.csv",
        ),
        (
            replace_cell("sweep.csv", "actions", lambda _: "0.1 0.2"),
            r"actions cannot be taken: expected 3 actions, one for each layer, got 2",
        ),
        (
            replace_cell("sweep.csv", "n_evaluations", add(-1.0)),
            r"n_evaluations is .* by episodes.csv",
        ),
        (replace_cell("episodes.csv", "accuracy", add(1.0)), r"is .* in sweep.csv, .* by episodes"),
        (change_text, r"^leaderboard.md: says something else than the trials lead to$"),
    ],
)
def test_tampering_is_found(
    reduced: Path, tamper: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(reduced, out)
    tamper(out)
    lines = verify(benchmark_verify.Config(out), console())
    assert any(re.search(message, line) for line in lines), lines


@pytest.fixture(scope="module")
def reduced(ran: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The benchmark with a trial of PPO alone."""
    out = tmp_path_factory.mktemp("reduced") / "out"
    shutil.copytree(folder_of(ran), out)
    table = pd.read_csv(out / "sweep.csv", dtype=str, keep_default_na=False)
    is_kept = (table["agent"] == "ppo") & (table["task"] == TINY[0]) & (table["seed"] == "0")
    table[is_kept].to_csv(out / "sweep.csv", index=False)
    known = read_best_known(out / "best_known.csv")
    benchmark._write_leaderboard(out, read_runs([out]), known, console())
    assert verify(benchmark_verify.Config(out), console()) == []
    return out


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


def test_networks_are_counted_after_each_layer_where_rewards_are() -> None:
    episodes: list[dict[Hashable, Any]]
    episodes = [{"value:a": "0", "value:b": b, "accuracy": 0.5} for b in ("0.1", "0.2", "0.1")]
    count = benchmark_verify._count_networks
    assert count(episodes, "layer") == 3 and count(episodes, "episode") == 2
    drawn = [episode | {"noise_seed": n} for n, episode in enumerate(episodes)]
    assert count(drawn, "layer", are_drawn=True) == 6
    assert count(drawn, "episode", are_drawn=True) == 3


def test_verification_looks_for_data_where_it_is_told(tmp_path: Path) -> None:
    config = benchmark_verify.Config(tmp_path, data_root=tmp_path / "now")
    with pytest.raises(FileNotFoundError, match="/now"):
        benchmark_verify._make_task(config, "PruneLeNet5MNIST-v0", "uniform")


def test_compact_folder_is_verified_with_a_tolerance(ran: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder_of(ran), out, ignore=lambda *_: ["cells", "attempts"])
    tampered = pd.read_csv(out / "sweep.csv", dtype=str, keep_default_na=False)
    tampered["test_accuracy"] = [repr(float(text) + 0.01) for text in tampered["test_accuracy"]]
    tampered.to_csv(out / "sweep.csv", index=False)
    (out / "leaderboard.csv").unlink()
    assert len(verify(benchmark_verify.Config(out), console())) == 16
    assert verify(benchmark_verify.Config(out, tolerance=0.02), console()) == []


def test_mismatch_ends_the_command_with_1(
    reduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(reduced, out)
    BETTER(out)
    monkeypatch.setattr("sys.argv", ["benchmark", "verify", str(out)])
    with pytest.raises(SystemExit, match=r"(?s)its replay gives .*\n6 mismatches$") as caught:
        benchmark.main()
    assert isinstance(caught.value.code, str)  # which Python prints, and exits with 1


def test_one_table_of_several_runs(ran: Config, tmp_path: Path) -> None:
    other = tmp_path / "other"
    own = replace(ran, out=other, algo=("tpe",), task=TINY[:1])
    assert run(own, console()) == []
    table = tmp_path / "table"
    config = TableConfig((folder_of(ran), other), out=table, best_known=ran.best_known)
    make_table(config, console())
    assert set(pd.read_csv(table / "leaderboard.csv")["agent"]) == {*AGENTS, "tpe"}
    make_table(replace(config, task=TINY[1:]), console())
    assert set(pd.read_csv(table / "leaderboard.csv")["agent"]) == set(AGENTS)
    assert "TinyPrune" not in (table / "leaderboard.md").read_text()
    with pytest.raises(ValueError, match=r"unknown task of a trial 'x'; valid: Tiny"):
        make_table(replace(config, task=("x",)), console())
    with pytest.raises(ValueError, match="expected each trial once, got tpe on"):
        make_table(replace(config, runs=(other, other)), console())
    with pytest.raises(ValueError, match="holds no finished trials"):
        make_table(replace(config, runs=(tmp_path,)), console())
    path = change_network(other, TINY[0])
    with pytest.raises(ValueError, match=r"TinyPrune-v0 starts from different networks in .*other"):
        make_table(config, console())
    path.unlink()  # then there is nothing to compare
    make_table(config, console())


def test_best_known_is_written_to_another_file(ran: Config, tmp_path: Path) -> None:
    before = ran.best_known.read_text()
    shown = console()
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
        run(replace(config, **settings), console())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_task_that_is_not_there_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--task", "compress_env/None-v0", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["benchmark", "--algo", "random", *arguments])
    with pytest.raises(SystemExit, match=r"^error: unknown task 'None-v0'.* valid: "):
        benchmark.main()
    assert not (tmp_path / "out").exists()


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
