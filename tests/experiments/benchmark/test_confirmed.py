"""Benchmarks of tasks that draw orders: what is run, ranked, drawn, replayed and found out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.benchmark import verify as benchmark_verify
from experiments.benchmark.benchmark import (
    BestConfig,
    Config,
    TableConfig,
    find_best,
    make_table,
    run,
)
from experiments.benchmark.confirmed import make_confirmed
from experiments.benchmark.confirmed_report import leaderboard_of
from experiments.benchmark.curves import anytime_points
from experiments.benchmark.replay import Config as ReplayConfig
from experiments.benchmark.replay import replay
from experiments.benchmark.table import Reference, best_found, read_best_known, read_runs
from experiments.benchmark.verify import verify
from tests.experiments.benchmark.folders import text_of
from tests.fakes import NOISY, TINY, quiet

pytestmark = pytest.mark.usefixtures("blank_figures")

AGENTS = ("uniform", "random", "cma_es")


@pytest.fixture
def out(confirmed: Path) -> Path:
    return confirmed


@pytest.fixture
def copy(out: Path, tmp_path: Path) -> Path:
    shutil.copytree(out, tmp_path / "out")
    return tmp_path / "out"


class TestTrials:
    def test_of_agents_that_choose_the_same_come_first_and_once(self) -> None:
        config = Config(algo=("random", "l1", "greedy"), task=(NOISY[0], TINY[0]), seeds=(1, 0))
        found = [(t.algo, t.task[13:18], t.seed) for t in config.trials()]
        assert found[:7] == [
            ("l1", "Noisy", 0), ("greedy", "Noisy", 1), ("greedy", "Noisy", 0),
            ("l1", "TinyP", 1), ("l1", "TinyP", 0), ("greedy", "TinyP", 1), ("greedy", "TinyP", 0),
        ]  # fmt: skip
        assert [seed for *_, seed in found[7:]] == [0, 0, 1, 1]

    def test_are_of_every_rule_by_default(self) -> None:
        assert {"uniform", "l1", "portfolio", "random", "cma_es"} <= set(Config().algo)


class TestLeaderboard:
    def test_ranks_by_what_agents_stand_by(self, out: Path) -> None:
        table = pd.read_csv(out / "leaderboard.csv").set_index("agent")
        found = read_runs([out])
        assert set(table.index) == set(AGENTS) and len(found) == 2 + 4 + 4
        for agent in AGENTS:
            mine = found[found["agent"] == agent]
            by_seed = mine.groupby("seed")["confirmed_10"].mean()
            assert table.loc[agent, "test_10"] == pytest.approx(by_seed.mean())
            assert table.loc[agent, "luck"] == pytest.approx(mine["luck"].mean())
        assert table["test_10_low"].isna().tolist() == [name == "uniform" for name in table.index]
        text = (out / "leaderboard.md").read_text()
        assert "Not in the table of the best known, without score: NoisyPrune-v0" in text
        assert "With fewer" not in text
        for name in ("anytime.png", "anytime-NoisyPrune-v0.png", "anytime-NoisyQuantize-v0.png"):
            assert (out / name).stat().st_size > 1000

    @pytest.mark.parametrize(
        ("budgets", "expected"),
        [((5,), "after 5 evaluations, m"), ((5, 9, 10), "after 5 and 10 evaluations, m")],
        ids=["one", "several"],
    )
    def test_names_each_budget_once(self, budgets: tuple[int, ...], expected: str) -> None:
        rows = [
            {"agent": agent, "task": "t", "seed": 0, "validation_accuracy": 0.9, "luck": 0.1,
             "n_evaluations": 10.0, "seconds": 1.0, "limit": 10.0, "shaping": 0.0}
            | {f"confirmed{of}_{n}": 0.5 for n in budgets for of in ("", "_validation")}
            for agent in ("uniform", "random")
        ]  # fmt: skip
        trials = pd.DataFrame(rows)
        assert expected in leaderboard_of(trials, {"t": Reference(0.5, 0.9, "x")})[1]

    def test_scores_are_between_uniform_and_the_best_known(self) -> None:
        rows = [
            {"agent": agent, "task": task, "seed": seed, "confirmed_30": 0.5 + 0.1 * gain,
             "confirmed_100": 0.5 + 0.2 * gain, "validation_accuracy": 0.9, "luck": 0.1,
             "n_evaluations": 100.0, "seconds": 1.0, "limit": 100.0}
            for agent, gain in (("a", 1.0), ("b", 2.0))
            for task in ("t", "u", "unknown")
            for seed in (0, 1)
        ]  # fmt: skip
        known = {task: Reference(0.5, 0.9, "x") for task in "tu"}
        table = make_confirmed(pd.DataFrame(rows), known)
        assert table["agent"].tolist() == ["b", "a"]
        assert table["score_30"].tolist() == pytest.approx([0.5, 0.25])
        assert table["score_100"].tolist() == pytest.approx([1.0, 0.5])
        assert table["rank_30"].tolist() == [1, 2]
        assert table["test_30:t"].tolist() == pytest.approx([0.7, 0.6])

    def test_ranks_where_agents_are_confirmed_on_all_their_tasks(self) -> None:
        rows = [
            {"agent": agent, "task": task, "seed": seed, "confirmed_30": early,
             "confirmed_100": 0.7, "validation_accuracy": 0.9, "luck": 0.1,
             "n_evaluations": 100.0, "seconds": 1.0}
            for agent, task, seed, early in (
                ("greedy", "t", 0, 0.9), ("greedy", "u", 0, np.nan), ("l1", "t", 0, 0.6),
                ("ppo", "t", 0, 0.7), ("ppo", "u", 0, 0.7),
                ("ppo", "t", 1, 0.9), ("ppo", "u", 1, np.nan),
            )
        ]  # fmt: skip
        trials, known = pd.DataFrame(rows), {task: Reference(0.5, 0.9, "x") for task in "tu"}
        columns = ("rank_30", "score_30", "test_30", "test_30:t", "score_100")
        found = {
            row["agent"]: [row[name] for name in columns]
            for row in make_confirmed(trials, known).to_dict("records")
        }
        nothing = [np.nan] * 3
        assert found["greedy"] == pytest.approx([*nothing, 0.9, 0.5], nan_ok=True)
        assert found["l1"] == pytest.approx([2, 0.25, 0.6, 0.6, 0.5])
        # Of the seed that is confirmed on both tasks; on its own a task has both seeds.
        assert found["ppo"] == pytest.approx([1, 0.5, 0.7, 0.8, 0.5])
        curves = anytime_points(trials[trials["seed"] == 1], "confirmed")
        assert [point.evaluations for point in curves["ppo"]] == [100]

    def test_curves_have_a_point_for_each_budget_and_one_for_a_rule(self) -> None:
        rows = [
            {"agent": agent, "task": "t", "seed": seed, "n_evaluations": spent,
             "confirmed_30": first, "confirmed_100": 0.6 + seed / 10}
            for agent, spent, first in (("ppo", 100, 0.5), ("l1", 1, 0.6), ("greedy", 60, np.nan))
            for seed in (0, 1)
        ]  # fmt: skip
        found = anytime_points(pd.DataFrame(rows), "confirmed")
        moments = {
            agent: [point.evaluations for point in points] for agent, points in found.items()
        }
        assert moments == {"ppo": [30, 100], "l1": [1], "greedy": [60]}
        assert found["ppo"][1].found.value == pytest.approx(0.65)

    def test_does_not_mix_confirmed_tasks_with_others(self, copy: Path) -> None:
        run(
            Config(
                algo=("uniform",), task=TINY[:1], seeds=(0,), evaluations=10, out=copy.parent / "v0"
            ),
            quiet(),
        )
        with pytest.raises(ValueError, match=r"TinyPrune-v0 is without confirmation"):
            read_runs([copy, copy.parent / "v0"])

    def test_goes_between_the_marks_of_a_page(self, out: Path, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        for before in ("old", "older"):
            part = f"<!-- leaderboard -->\n{before}\n<!-- end of leaderboard -->"
            page.write_text(f"# Mine\n\n{part}\nend\n")
            make_table(TableConfig(runs=(out,), out=tmp_path, page=page), quiet())
        shown = page.read_text()
        assert shown.startswith("# Mine\n\n<!-- leaderboard -->\n\n![confirmed scores")
        assert "(anytime.png)" in shown and "## Rules against searches" in shown
        assert "older" not in shown and "# Leaderboard" not in shown
        assert shown.endswith("<!-- end of leaderboard -->\nend\n")
        page.write_text("# Mine\n")
        with pytest.raises(ValueError, match="must hold <!-- leaderboard --> and <!-- end of"):
            make_table(TableConfig(runs=(out,), page=page), quiet())


class TestBestKnown:
    def test_holds_confirmed_allocations_that_can_be_trained_again(
        self, out: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "known.csv"
        find_best(BestConfig(runs=(out,), out=path), quiet())
        known, found = read_best_known(path), read_runs([out])
        for task in NOISY:
            mine = found[found["task"] == task]
            chosen = mine.iloc[int(mine["confirmed_validation_10"].to_numpy().argmax())]
            assert known[task].validation == chosen["confirmed_validation_10"]
            assert known[task].best == max(chosen["confirmed_10"], known[task].uniform)
            assert (
                known[task].uniform == mine.loc[mine["agent"] == "uniform", "confirmed_10"].iloc[0]
            )
            assert all(
                isinstance(value, float | int) for value in json.loads(known[task].values).values()
            )
        shown = quiet()
        assert replay(ReplayConfig(("NoisyPrune-v0", NOISY[1]), best_known=path), shown) == []
        assert f"stored {known[NOISY[0]].best:.4f}" in text_of(shown)
        path.write_text(path.read_text().replace(str(known[NOISY[0]].best), "0.98765"))
        (line,) = replay(ReplayConfig(NOISY[:1], best_known=path), quiet())
        assert "stored 0.9877" in line

    def test_chooses_by_validation_images_and_names_who_found_it(self) -> None:
        rows = {
            "agent": ["uniform", "random"], "seed": [0, 3], "n_evaluations": [1.0, 100.0],
            "confirmed_30": [0.5, 0.7], "confirmed_100": [0.5, 0.9],
            "confirmed_validation_30": [0.6, 0.8], "confirmed_validation_100": [0.6, 0.7],
            "confirmed_values_30": ["{}", '{"a": 2}'], "confirmed_values_100": ["{}", '{"a": 3}'],
        }  # fmt: skip
        found = best_found(pd.DataFrame(rows))
        assert found == Reference(0.5, 0.7, "random, seed 3, 30 evaluations", '{"a": 2}', 0.8)
        rows["confirmed_100"] = [0.75, 0.9]  # worse than uniform on test images: there is no room
        assert not best_found(pd.DataFrame(rows)).has_room

    def test_tells_what_it_cannot_replay(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="unknown task with an allocation 'TinyPrune-v0'"):
            replay(ReplayConfig(TINY[:1]), quiet())
        with pytest.raises(ValueError, match="expected at least one task, got none"):
            replay(ReplayConfig(()), quiet())


class TestVerification:
    def test_finds_everything_as_it_was_stored(self, out: Path) -> None:
        assert verify(benchmark_verify.Config(out), quiet()) == []

    def test_needs_no_more_than_what_is_published(self, copy: Path) -> None:
        shutil.rmtree(copy / "cells")
        assert verify(benchmark_verify.Config(copy, algo=("random",)), quiet()) == []

    @pytest.mark.parametrize(
        ("column", "expected"),
        [
            ("confirmed_10", "confirmed_10 is 0.123, its replay gives"),
            ("confirmed_validation_10", "confirmed_validation_10 is 0.123, its replay gives"),
            ("final_accuracy", "final_accuracy is 0.123, its replay gives"),
            ("best_reward", "best_reward is 0.123, the reward of its episode -"),
            ("luck", "luck is 0.123, its accuracies give"),
            ("confirmed_values_10", "confirmed_values_10 cannot be read: expected a JSON object"),
        ],
    )
    def test_tells_which_number_differs(self, column: str, expected: str, copy: Path) -> None:
        shutil.rmtree(copy / "cells")
        change(copy / "sweep.csv", column, 0.123)
        lines = verify(benchmark_verify.Config(copy, algo=("random",)), quiet())
        assert any(expected in line for line in lines)

    def test_tells_values_that_the_actions_do_not_lead_to(self, copy: Path) -> None:
        shutil.rmtree(copy / "cells")
        rows = pd.read_csv(copy / "sweep.csv")
        text = rows.loc[rows["agent"] == "random", "confirmed_values_10"].iloc[0]
        values = json.loads(text)
        for wrong in (
            {name: 0.5 * value for name, value in values.items()},
            dict(list(values.items())[1:]),
            {f"{name}x": value for name, value in values.items()},
        ):
            change(copy / "sweep.csv", "confirmed_values_10", json.dumps(wrong))
            lines = verify(benchmark_verify.Config(copy, algo=("random",)), quiet())
            assert [line.partition(" is ")[0][-19:] for line in lines] == ["confirmed_values_10"]
            assert lines[0].endswith(f"its replay gives {text!r}")

    def test_tells_which_order_differs(self, copy: Path) -> None:
        cell = next(path for path in (copy / "cells").iterdir() if "random" in path.name)
        change(cell / "confirmation.csv", "test", 0.123)
        lines = verify(benchmark_verify.Config(copy, algo=("random",)), quiet())
        assert lines[0].startswith(
            f"{cell.name}: test at 10, order 2147483648, is 0.123, its replay gives"
        )

    def test_tells_actions_that_cannot_be_taken(self, copy: Path) -> None:
        shutil.rmtree(copy / "cells")
        change(copy / "sweep.csv", "confirmed_actions_10", "0.5")
        lines = verify(benchmark_verify.Config(copy, algo=("random",)), quiet())
        assert any("confirmed_actions_10 cannot be taken: expected" in line for line in lines)


def change(path: Path, column: str, value: Any) -> None:
    """Change a value of the first trial of random search."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    row = 0 if "agent" not in table else table.index[table["agent"] == "random"][0]
    table.loc[row, column] = str(value)
    table.to_csv(path, index=False)


def test_another_seed_is_added(copy: Path) -> None:
    shown = quiet()
    config = Config(algo=AGENTS, task=NOISY, seeds=(0, 1), evaluations=10, out=copy)
    assert run(config, shown) == []
    assert "10 of 10 cells were finished before" in text_of(shown)
    assert run(replace(config, algo=("random",), task=NOISY[:1], seeds=(2,)), shown) == []
    assert "With fewer tasks or trials, their scores do not compare" in text_of(shown)
