"""Verification of benchmarks: what is replayed, and what was tampered with is found out."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.benchmark import benchmark
from experiments.benchmark import verify as benchmark_verify
from experiments.benchmark.benchmark import Config, run
from experiments.benchmark.table import Reference, read_best_known, read_runs, write_best_known
from experiments.benchmark.verify import verify
from experiments.trial import trial
from tests.experiments.benchmark.folders import change_network, folder_of, text_of
from tests.fakes import TINY, quiet

pytestmark = pytest.mark.usefixtures("blank_figures")

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


@pytest.fixture(scope="module")
def reduced(ran: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The benchmark with a trial of PPO alone."""
    out = tmp_path_factory.mktemp("reduced") / "out"
    shutil.copytree(folder_of(ran), out)
    table = pd.read_csv(out / "sweep.csv", dtype=str, keep_default_na=False)
    is_kept = (table["agent"] == "ppo") & (table["task"] == TINY[0]) & (table["seed"] == "0")
    table[is_kept].to_csv(out / "sweep.csv", index=False)
    known = read_best_known(out / "best_known.csv")
    benchmark._write_leaderboard(out, read_runs([out]), known, quiet())
    assert verify(benchmark_verify.Config(out), quiet()) == []
    return out


def test_untouched_folder_is_verified(ran: Config) -> None:
    shown = quiet()
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
    shown = quiet()
    verify(benchmark_verify.Config(out), shown)
    text = " ".join(text_of(shown).split())
    assert text.count("the network is not the one that is trained here") == 1
    assert f"{TINY[0]}: scores are measured by 0.2500 and 0.5000, now known: 0.2500 and" in text


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
    lines = verify(benchmark_verify.Config(out), quiet())
    assert any(re.search(message, line) for line in lines), lines


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


def test_compact_folder_is_verified_with_a_tolerance(ran: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder_of(ran), out, ignore=lambda *_: ["cells", "attempts"])
    tampered = pd.read_csv(out / "sweep.csv", dtype=str, keep_default_na=False)
    tampered["test_accuracy"] = [repr(float(text) + 0.01) for text in tampered["test_accuracy"]]
    tampered.to_csv(out / "sweep.csv", index=False)
    (out / "leaderboard.csv").unlink()
    assert len(verify(benchmark_verify.Config(out), quiet())) == 16
    assert verify(benchmark_verify.Config(out, tolerance=0.02), quiet()) == []


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


def test_informed_agents_are_verified_around_their_rule_and_searches_are_no_learners(
    ran: Config, tmp_path: Path
) -> None:
    out, shown = tmp_path / "out", quiet()
    shutil.copytree(folder_of(ran), out)
    informed = replace(ran, out=out, algo=("ppo+l1", "cma_es+l1"), task=TINY[:1])
    assert run(informed, shown) == []
    assert verify(benchmark_verify.Config(out, algo=("ppo+l1", "cma_es+l1")), shown) == []
    text = (out / "leaderboard.md").read_text()
    verdicts = [line for line in text.splitlines() if " around `l1`: " in line]
    assert [line.partition(": ")[2] for line in verdicts] == ["no verdict without `random+l1`."]


@pytest.mark.parametrize("task", ["foreign_code:X-v0", "CartPole-v1", "compress_env/Tiny-v0"])
def test_only_tasks_of_the_package_are_verified(task: str, foreign: Path) -> None:
    text = (foreign / "sweep.csv").read_text().replace(TINY[0], task)
    (foreign / "sweep.csv").write_text(text)
    marker = (foreign / "sweep.json").read_text().replace(TINY[0], task)
    (foreign / "sweep.json").write_text(marker)
    with pytest.raises(ValueError, match=f"unknown task '{task.removeprefix('compress_env/')}'"):
        verify(benchmark_verify.Config(foreign), quiet())


@pytest.mark.parametrize(
    ("setting", "value"),
    [("task", "foreign_code:X-v0"), ("algo", "foreign_code:A"), ("seed", 9)],
)
def test_rows_and_settings_must_be_of_one_trial(setting: str, value: Any, foreign: Path) -> None:
    rewrite(foreign, lambda cell: cell.update({setting: value}))
    column = "agent" if setting == "algo" else setting
    with pytest.raises(ValueError, match=rf"{column}=.* in sweep\.csv, .* in sweep\.json"):
        verify(benchmark_verify.Config(foreign), quiet())


@pytest.mark.parametrize("cell", ["../out", "cells/../../x", "/etc", "cells/", "x"])
def test_row_of_a_folder_elsewhere_is_refused(cell: str, foreign: Path) -> None:
    table = pd.read_csv(foreign / "sweep.csv", dtype=str, keep_default_na=False)
    table.loc[0, "cell"] = cell
    table.to_csv(foreign / "sweep.csv", index=False)
    with pytest.raises(ValueError, match="holds no finished trials: "):
        verify(benchmark_verify.Config(foreign), quiet())


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
        run(replace(ran, out=foreign, algo=("greedy",)), quiet())


def test_verification_takes_its_own_data_and_says_so(foreign: Path) -> None:
    rewrite(
        foreign, lambda cell: cell.update({"data_root": "/theirs", "store": str(foreign / "s")})
    )
    shown = quiet()
    assert verify(benchmark_verify.Config(foreign), shown) == []
    assert "the trials were run with data in '/theirs', they are verified" in text_of(shown)
    assert not (foreign / "s").exists()


def test_what_a_prior_has_evaluated_counts(tmp_path: Path) -> None:
    config = trial.Config("random+sbpf", TINY[0], evaluations=20, settings='{"spread": 0.5}')
    trial.run(replace(config, out=tmp_path / "out"), quiet())
    (row,) = benchmark_verify._read(tmp_path / "out" / "table.csv")
    assert row["n_evaluations"] == 20
    stored: dict[Hashable, Any] = {**row, "agent": config.algo, "limit": config.evaluations}
    env = trial.make_task(config)
    assert benchmark_verify._check_files(tmp_path / "out", env, stored) == []
