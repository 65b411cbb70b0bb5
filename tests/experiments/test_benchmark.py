"""Benchmarks: what is run, ranked, stored, and found out when it is tampered with."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from compress_env.store import TransitionStore
from compress_env.suite import SUITE
from experiments import benchmark, benchmark_table, benchmark_verify, trials
from experiments.benchmark import BestConfig, Config, TableConfig, find_best, make_table, run
from experiments.benchmark_figures import draw_scores
from experiments.benchmark_report import beats, format_leaderboard, verdicts
from experiments.benchmark_table import (
    BEST_KNOWN,
    Reference,
    make_leaderboard,
    normalize,
    read_best_known,
    read_runs,
    update_best_known,
    write_best_known,
)
from experiments.benchmark_verify import verify
from experiments.cells import Cell
from experiments.hyperparameters import HYPERPARAMETERS, stored_settings
from experiments.intervals import improvement_interval, iqm_interval
from experiments.sweep_folder import SweepFolder
from experiments.trial import Config as Trial
from experiments.trial import run as run_trial
from experiments.trials import network_path, run_trials
from tests.fakes import TINY, InProcessPool, tiny_tasks

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
        agent=AGENTS,
        tasks=TINY,
        seeds=(0, 1),
        n_evaluations=4,
        out=root / "out",
        best_known=root / "known.csv",
    )
    assert run(config, console()) == []
    return config


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
    assert run(replace(ran, out=out, agent=("greedy",), tasks=TINY[:1], seeds=(0,)), shown) == []
    table = pd.read_csv(out / "leaderboard.csv")
    assert set(table["agent"]) == {*AGENTS, "greedy"}
    assert "With fewer trials, their scores do not compare: greedy" in text_of(shown)
    assert "With more evaluations than allowed, their scores do not compare: greedy" in text_of(
        shown
    )
    with pytest.raises(ValueError, match="was made with n_evaluations=4, got 5"):
        run(replace(ran, out=out, n_evaluations=5), console())
    assert run(replace(ran, out=out, data_root=tmp_path), console()) == []  # nothing depends on it


def test_other_agents_are_added_to_what_is_published(ran: Config, tmp_path: Path) -> None:
    out, shown = tmp_path / "out", console()
    out.mkdir()
    for name in ("sweep.json", "sweep.csv"):
        shutil.copy(folder_of(ran) / name, out / name)
    assert run(replace(ran, out=out, agent=("greedy",)), shown) == []
    assert "16 of 20 cells were finished before" in text_of(shown)
    assert {path.name.split("-")[1] for path in (out / "cells").iterdir()} == {"greedy"}
    before, after = (pd.read_csv(path / "sweep.csv", dtype=str) for path in (folder_of(ran), out))
    kept = after[after["agent"] != "greedy"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before, check_like=True)
    (out / "sweep.csv").write_text("agent,task\n")
    with pytest.raises(ValueError, match=r"sweep.csv' is not of a sweep: 'cell'"):
        run(replace(ran, out=out, agent=("greedy",)), console())


def test_trials_share_steps_where_each_is_scored(ran: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = SweepFolder(out)
    shared = replace(Trial("random", TINY[0], 0), env_kwargs='{"reward_at": "layer"}')
    cells = [Cell(f"{seed}", "trial", replace(shared, seed=seed)) for seed in (0, 1)]
    cells += [Cell("deep", "trial", Trial("random", TINY[0], 0, n_evaluations=4))]
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


def test_folder_from_before_there_were_settings_is_read_and_added_to(
    ran: Config, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder_of(ran), out)
    content = json.loads((out / "sweep.json").read_text())
    for cell in content["cells"].values():
        assert cell.pop("settings") == json.dumps(stored_settings(cell["agent"]))
    (out / "sweep.json").write_text(json.dumps(content))
    assert verify(benchmark_verify.Config(out), console()) == []
    assert run(replace(ran, out=out, agent=("random",), seeds=(2,)), console()) == []
    assert verify(benchmark_verify.Config(out), console()) == []


def test_agent_with_other_hyper_parameters_is_refused(
    ran: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HYPERPARAMETERS, "ppo", HYPERPARAMETERS["ppo"] | {"n_epochs": 1})
    with pytest.raises(ValueError, match=r"made with hyper-parameters \{.*\} of ppo, got \{"):
        run(replace(ran, agent=("ppo",), seeds=(2,)), console())
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
    assert text.count("| agent | TinyPrune-v0 | TinyQuantize-v0 |") == 2
    assert text.count("\n| score 0 | 25.00 | 50.00 |\n| score 1 | 50.00 | 50.00 |\n") == 1


def test_untouched_folder_is_verified(ran: Config) -> None:
    shown = console()
    assert verify(benchmark_verify.Config(folder_of(ran)), shown) == []
    assert "trained here" not in text_of(shown) and "now known" not in text_of(shown)


def test_another_network_and_other_references_are_told(
    ran: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder_of(ran), out)
    path = network_path(out, TINY[0])
    weights = {name: -tensor for name, tensor in load_file(path).items()}
    save_file(weights, path)
    now = tmp_path / "now.csv"
    write_best_known(now, {TINY[0]: Reference(0.25, 0.75, "somebody")})
    monkeypatch.setattr(benchmark_verify, "BEST_KNOWN", now)
    shown = console()
    verify(benchmark_verify.Config(out), shown)
    text = " ".join(text_of(shown).split())
    assert text.count("the network is not the one that is trained here; validation") == 1
    assert f"{TINY[0]}: scores are measured by 0.2500 and 0.5000, now known: 0.2500 and" in text


def test_trials_that_start_from_another_network_are_not_added(ran: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder_of(ran), out)
    path = network_path(out, TINY[1])
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    assert run(replace(ran, out=out), console()) == []  # nothing is added
    assert (
        run(replace(ran, out=out, agent=("random",), seeds=(2,), tasks=TINY[:1]), console()) == []
    )
    with pytest.raises(ValueError, match=f"^{TINY[1]} starts from another network here than the"):
        run(replace(ran, out=out, agent=("random",), seeds=(2,)), console())
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


def test_networks_are_counted_after_each_layer_where_rewards_are() -> None:
    episodes = [{"value:a": "0", "value:b": b, "accuracy": 0.5} for b in ("0.1", "0.2", "0.1")]
    count = benchmark_verify._count_networks
    assert count(episodes, "layer") == 3 and count(episodes, "episode") == 2


def test_verification_looks_for_data_where_it_is_told(tmp_path: Path) -> None:
    settings = Trial(task="compress_env/PruneLeNet5MNIST-v0", data_root=tmp_path / "then")
    config = benchmark_verify.Config(tmp_path, data_root=tmp_path / "now")
    with pytest.raises(FileNotFoundError, match="/now"):
        benchmark_verify._make_task(config, settings)


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
    own = replace(ran, out=other, agent=("tpe",), tasks=TINY[:1])
    assert run(own, console()) == []
    table = tmp_path / "table"
    config = TableConfig((folder_of(ran), other), out=table, best_known=ran.best_known)
    make_table(config, console())
    assert set(pd.read_csv(table / "leaderboard.csv")["agent"]) == {*AGENTS, "tpe"}
    make_table(replace(config, tasks=TINY[1:]), console())
    assert set(pd.read_csv(table / "leaderboard.csv")["agent"]) == set(AGENTS)
    assert "TinyPrune" not in (table / "leaderboard.md").read_text()
    with pytest.raises(ValueError, match=r"no trial of the task 'x'; there are trials of compress"):
        make_table(replace(config, tasks=("x",)), console())
    with pytest.raises(ValueError, match="expected each trial once, got tpe on"):
        make_table(replace(config, runs=(other, other)), console())
    with pytest.raises(ValueError, match="holds no finished trials"):
        make_table(replace(config, runs=(tmp_path,)), console())


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


def rows(**accuracies: list[float]) -> pd.DataFrame:
    """Trials of agents on one task, one for each seed."""
    return pd.DataFrame(
        {
            "agent": agent,
            "task": "compress_env/A-v0",
            "seed": seed,
            "validation_accuracy": accuracy,
            "test_accuracy": accuracy - 0.01,
            "n_evaluations": 7.0,
            "seconds": 1.5,
            "limit": 7.0,
        }
        for agent, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    )


def test_scores_by_hand() -> None:
    reference = Reference(0.8, 0.9, "x")
    np.testing.assert_allclose(normalize([0.8, 0.85, 0.9, 0.95], reference), [0, 0.5, 1, 1.5])
    # Of eight numbers the lowest two and the highest two go: (2 + 3 + 4 + 5) / 4.
    score = iqm_interval([0, 1, 2, 3], [4, 5, 6, 100])
    assert score.value == 3.5
    assert 0.0 < score.low < 3.5 < score.high < 100.0
    assert iqm_interval([1, 1], [3, 3]) == (2.0, 2.0, 2.0)  # seeds are resampled, not tasks
    single = iqm_interval([1.0], [3.0])
    assert single.value == 2.0 and np.isnan(single.low)


def test_probability_of_improvement_by_hand() -> None:
    # First task: of 2 x 3 pairs 3 are better and 1 is a tie. Second task: all are better.
    found = improvement_interval([[2.0, 1.0], [9.0]], [[1.0, 0.0, 3.0], [8.0, 7.0]])
    assert found.value == pytest.approx((3.5 / 6 + 1.0) / 2) and np.isnan(found.low)
    same = improvement_interval([[1.0, 1.0]], [[1.0, 1.0]])
    assert same == (0.5, 0.5, 0.5)
    mixed = improvement_interval([[0.0, 1.0, 2.0]], [[0.0, 1.0, 2.0]])
    assert mixed.value == 0.5 and 0.0 <= mixed.low < 0.4 and 0.6 < mixed.high <= 1.0
    assert np.isnan(improvement_interval([], []).value)


def test_leaderboard_tells_how_likely_an_agent_is_better() -> None:
    found = rows(ppo=[0.93, 0.95, 0.97], random=[0.9, 0.91, 0.94], cma_es=[0.98, 0.99, 0.96])
    known = {"compress_env/A-v0": Reference(0.8, 0.99, "somebody")}
    table = make_leaderboard(found, known).set_index("agent")
    assert table.loc["ppo", "over_random"] == pytest.approx(8 / 9)
    assert table.loc["ppo", "over_cma_es"] == pytest.approx(1 / 9)
    assert table.loc["cma_es", "over_random"] == 1.0 == table.loc["cma_es", "over_random_low"]
    assert table["over_cma_es"].isna()["cma_es"]
    text = format_leaderboard(table.reset_index(), found, known)
    assert "| agent | score | better than random search | better than CMA-ES | tasks |" in text
    scores, _ = text.split("## Does learning win?")
    (line,) = re.findall(r"^\| `ppo` \| .*$", scores, re.M)
    assert re.search(r"\| 0.89 \(\d.\d\d to 1.00\) \| 0.11 \(0.00 to \d.\d\d\) \| 1 \| 3 \|", line)
    (line,) = re.findall(r"^\| `cma_es` \| .*$", scores, re.M)
    assert "| 1.00 (1.00 to 1.00) | - | 1 | 3 |" in line


def test_figure_of_scores_takes_intervals_of_no_width_and_no_scores() -> None:
    # The bootstrap adds these up in another order, which changes the last digit.
    values = np.random.default_rng(1).random((60, 5))[40]
    samples = [np.full(3, value) for value in values]
    interval = iqm_interval(*samples)
    assert interval.low <= interval.value <= interval.high
    columns = ["agent", "score", "low", "high"]
    for rows in ([["greedy", *interval]], [["uniform", np.nan, np.nan, np.nan]]):
        assert draw_scores(pd.DataFrame(rows, columns=columns)).axes


def test_leaderboard_ranks_and_says_what_exceeds_the_best_known() -> None:
    found = rows(good=[0.95, 0.95], bad=[0.85, 0.85])
    known = {"compress_env/A-v0": Reference(0.8, 0.9, "somebody")}
    table = make_leaderboard(found, known)
    assert table["agent"].tolist() == ["good", "bad"]
    np.testing.assert_allclose(table["score"], [1.5, 0.5])
    text = format_leaderboard(table, found, known)
    assert "`good`, seed 0, exceeds the best known of A-v0: 95.00 against 90.00 %" in text
    assert "Not in the table of the best known, without score: A-v0." in format_leaderboard(
        make_leaderboard(found, {}), found, {}
    )


def test_differences_and_verdicts_by_hand() -> None:
    found = rows(ppo=[0.93, 0.95, 0.97], random=[0.9, 0.91, 0.92], cma_es=[0.9, 0.99, 0.9])
    # Differences 3, 4 and 5: mean 4, deviation 1, t = 4.3027 with two degrees of freedom.
    assert beats(found, "ppo", "random") == pytest.approx((4.0, 4.3027 / np.sqrt(3)), rel=1e-4)
    (line,) = verdicts(found)
    assert line.startswith(
        "- A-v0: no learner beats both; random search is beaten by `ppo`, CMA-ES is beaten by "
        "none. The best, `ppo`: +4.00 ± 2.48 over random search, +2.00 ± "
    )
    found = rows(ppo=[0.93, 0.95, 0.97], random=[0.9, 0.91, 0.92], cma_es=[0.91, 0.92, 0.93])
    assert verdicts(found)[0].startswith("- A-v0: `ppo` beats both: +4.00 ± 2.48 over random")
    assert verdicts(rows(ppo=[0.9, 0.9])) == [
        "- A-v0: no verdict without random search and CMA-ES."
    ]
    assert verdicts(rows(random=[0.9], cma_es=[0.9])) == ["- A-v0: no learner was run."]
    assert "no learner beats" in verdicts(rows(ppo=[0.9], random=[0.8], cma_es=[0.8]))[0]


def test_best_known_grows_only() -> None:
    known = {"compress_env/A-v0": Reference(0.8, 0.9, "somebody")}
    assert update_best_known(known, rows(ppo=[0.89])) == known
    updated = update_best_known(known, rows(ppo=[0.89, 0.91]))
    assert updated["compress_env/A-v0"] == Reference(0.8, 0.91, "ppo, seed 1, 7 evaluations")
    fresh = update_best_known({}, rows(ppo=[0.9], uniform=[0.7]))
    assert fresh["compress_env/A-v0"] == Reference(0.7, 0.9, "ppo, seed 0, 7 evaluations")
    with pytest.raises(ValueError, match="expected a trial of uniform on compress_env/A-v0"):
        update_best_known({}, rows(ppo=[0.9]))


def test_shipped_table_is_readable() -> None:
    assert all(reference.found_by for reference in read_best_known(BEST_KNOWN).values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"agent": ("magic",)}, "unknown agent 'magic'; valid: "),
        ({"agent": ("ppo", "ppo")}, "expected agent that differ"),
        ({"tasks": (TINY[0], TINY[0])}, "expected trials that differ, got trial-ppo-"),
        ({"seeds": ()}, "expected seeds that differ"),
        (
            {"agent": ("ppo", "sbpf"), "tasks": ("compress_env/QuantizeVGG8Digits-v0",)},
            "sbpf chooses pruning rates, and no task asks for them",
        ),
        ({"n_evaluations": 0}, "n_evaluations must be 1 or more, got 0"),
        ({"jobs": 0}, "jobs must be 1 or more, got 0"),
        ({"best_known": Path("none.csv")}, "'none.csv' is no table of best known accuracies"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_bad_input_ends_with_one_line_and_no_folder(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = Config(agent=("ppo",), tasks=TINY[:1], out=tmp_path / "out")
    with pytest.raises(ValueError, match=message) as caught:
        run(replace(config, **settings), console())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_task_that_is_not_there_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--tasks", "compress_env/None-v0", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["benchmark", "--agent", "random", *arguments])
    with pytest.raises(SystemExit, match=r"^error: cannot make the task 'compress_env/None-v0'"):
        benchmark.main()
    assert not (tmp_path / "out").exists()


def test_agents_that_know_nothing_of_bits_are_run_on_pruning_alone() -> None:
    trials = Config(agent=("afie", "sbpf", "greedy"), seeds=(0,)).trials()
    played = {agent: [t.task for t in trials if t.agent == agent] for agent in ("afie", "greedy")}
    assert played["greedy"] == [task.id for task in SUITE]
    assert played["afie"] == [task for task in played["greedy"] if "/Prune" in task]
    assert len(trials) == 12 + 2 * 6


def test_tasks_come_in_the_order_of_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["another/Task-v0", *(task.id for task in reversed(SUITE)), "another/Task-v0"]
    table = pd.DataFrame({"agent": "random", "task": names, "seed": range(14), "limit": 300.0})
    monkeypatch.setattr(benchmark_table, "read_trials", lambda _: table)
    found = read_runs([Path("anywhere")])
    assert found["task"].tolist() == [*(task.id for task in SUITE), *["another/Task-v0"] * 2]
    assert found["seed"].tolist() == [*range(12, 0, -1), 0, 13]
