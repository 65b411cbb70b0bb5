"""Comparison of penalties: that it goes on, and what its report and figures say."""

from __future__ import annotations

import math
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from experiments.common.intervals import iqm_interval, mean_interval
from experiments.control import control
from experiments.ppo_penalties import ppo_penalties
from experiments.ppo_penalties.figures import draw_asymmetry, draw_curves, improvement_by_fifth
from experiments.ppo_penalties.ppo_penalties import Config, run
from experiments.ppo_penalties.report import (
    Results,
    correlations,
    differences,
    format_report,
    with_asymmetry,
)
from tests.fakes import InProcessPool


class PoolHere(InProcessPool):
    """Works on cells in this process, which has imported everything."""

    def __init__(self, *, jobs: int, retries: int) -> None:
        assert jobs >= 1 and retries == 3
        super().__init__(jobs=jobs, retries=retries)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppo_penalties, "LocalPool", PoolHere)


def small(out: Path) -> Config:
    return Config(("CartPole-v1",), ("cim_ppo",), seeds=(0,), total_timesteps=512, out=out)


@pytest.mark.usefixtures("blank_figures")
def test_a_comparison_grows_and_repeats_nothing(tmp_path: Path) -> None:
    text = StringIO()
    run(small(tmp_path), Console(file=text, width=200))
    tables = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/table.csv")}
    results = run(replace(small(tmp_path), seeds=(0, 1)), Console(file=text, width=200))
    assert len(tables) == 1
    assert all(path.stat().st_mtime_ns == time for path, time in tables.items())
    assert "1 of 2 cells were finished before" in text.getvalue()
    assert results.runs[["agent", "seed"]].to_numpy().tolist() == [["cim_ppo", 0], ["cim_ppo", 1]]
    assert set(results.runs["timesteps"]) == {512}
    assert len(results.curves) == 2 * 21 and len(results.updates) == 2 * 2
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert names - {".lock"} == {
        "asymmetry.png",
        "curves.csv.gz",
        "curves.png",
        "ppo_penalties.csv",
        "ppo_penalties.md",
        "sweep.csv",
        "sweep.json",
        "updates.csv.gz",
    }
    for name, table in zip(ppo_penalties.TABLES, results, strict=True):
        stored = pd.read_csv(tmp_path / name)
        pd.testing.assert_frame_equal(stored, table)


def test_a_failed_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no luck")

    monkeypatch.setattr(control.Training, "learn", fail)
    with pytest.raises(
        RuntimeError, match=r"1 of 1 runs have failed; control-cim_ppo-Cart.*: no luck"
    ):
        run(small(tmp_path / "out"), Console(file=StringIO()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": ()}, "expected task that differ, at least one"),
        ({"algo": ("ppo", "ppo")}, "expected algo that differ"),
        ({"algo": ("ddpg",)}, "ddpg needs continuous actions"),
        ({"jobs": 0}, "jobs must be 1 or more, got 0"),
    ],
    ids=["no task", "twice", "actions", "jobs"],
)
def test_wrong_settings_leave_nothing(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    config = replace(small(tmp_path / "out"), **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        run(config, Console(file=StringIO()))
    assert not (tmp_path / "out").exists()


def test_quick_needs_no_extra_package_and_keeps_what_is_given() -> None:
    quick = ppo_penalties._quickened(Config(quick=True, seeds=(7,)))
    assert quick.task == ("Pendulum-v1", "CartPole-v1")
    assert (quick.seeds, quick.total_timesteps) == ((7,), 8192)
    assert len(quick.cells()) == 6


def make_runs() -> pd.DataFrame:
    """Final returns of two tasks, in which CIM is above KL, and then neither."""
    finals = {
        ("Pendulum-v1", "kl_ppo"): (-500.0, -510.0, -490.0),
        ("Pendulum-v1", "cim_ppo"): (-200.0, -220.0, -180.0),
        ("CartPole-v1", "kl_ppo"): (100.0, 200.0, 300.0),
        ("CartPole-v1", "cim_ppo"): (300.0, 200.0, 100.0),
    }
    return pd.DataFrame(
        {
            "task": task,
            "agent": agent,
            "seed": seed,
            "timesteps": 1000,
            "final_return": value,
            "mean_return": value / 2,
            "steps_to_threshold": 500.0 if value > -250.0 and task == "Pendulum-v1" else math.nan,
            "seconds": 1.0,
        }
        for (task, agent), values in finals.items()
        for seed, value in enumerate(values)
    )


def make_updates(sign: float, n: int = 10) -> pd.DataFrame:
    """Updates of three seeds whose return change rises or falls with the asymmetry."""
    rows = []
    for seed in range(3):
        for update in range(n):
            forward, backward = 0.01 * (update + 1), 0.005 * (update + 1)
            change = sign * (update + 0.1 * seed)
            rows.append((seed, update, forward, backward, 0.1, change, 0.2 - 0.01 * update))
    names = ["seed", "update", "kl_old_new", "kl_new_old", "clip_fraction", "return_change"]
    table = pd.DataFrame(rows, columns=[*names, "surrogate_improvement"])
    return table.assign(task="Pendulum-v1", agent="kl_ppo")


def test_verdicts_follow_the_intervals() -> None:
    runs = make_runs()
    found = differences(runs, "cim_ppo", "kl_ppo")
    assert found["Pendulum-v1"].tolist() == [300.0, 290.0, 310.0]
    # 300 +- 4.303 * 10 / sqrt(3), and 0 +- much.
    assert [mean_interval(values).side for values in found.values()] == ["above", "undecided"]
    assert mean_interval(-found["Pendulum-v1"]).side == "below"
    report = format_report(Results(runs, pd.DataFrame(), pd.DataFrame()))
    assert "- CIM beats KL: on 1 of 2 tasks; is beaten on 0; undecided on 1." in report
    assert "| CIM minus KL | 300.0 ± 24.8 | 0.0 ± 496.8 |" in report
    # One number of three is trimmed on no side: 0.25 * 3 is less than one.
    assert "| Pendulum-v1, `cim_ppo` | 1,000 | -200.0 [-2" in report
    assert "| -300 | 500, 500 | 3 of 3 | 1 |" in report
    assert "| -300 | - | 0 of 3 | 1 |" in report
    assert "Asymmetry" not in report


def test_correlations_are_within_runs() -> None:
    falling, rising = with_asymmetry(make_updates(-1.0)), with_asymmetry(make_updates(1.0))
    assert falling["gap"].iloc[:2].tolist() == pytest.approx([0.005, 0.010])
    assert falling["share"].to_numpy() == pytest.approx(1.0 / 3.0)
    assert correlations(falling, "gap", "return_change") == pytest.approx([-1.0] * 3)
    assert correlations(rising, "gap", "return_change") == pytest.approx([1.0] * 3)
    unknown = falling.assign(return_change=math.nan)
    assert len(correlations(unknown, "gap", "return_change")) == 0
    assert len(correlations(with_asymmetry(make_updates(-1.0, 4)), "gap", "return_change")) == 0
    mixed = pd.concat([make_updates(-1.0), make_updates(1.0).assign(agent="ppo")])
    report = format_report(Results(make_runs(), pd.DataFrame(), mixed))
    assert "and return change: below 0 in 1 of 2 lines, above in 1, undecided in 0" in report
    assert "| Pendulum-v1, `kl_ppo` | 0.0550 | 0.0275 | 0.333 | -1.00 ± 0.00 |" in report


def test_fifths_are_by_rank() -> None:
    table = improvement_by_fifth(make_updates(1.0))
    assert table.shape == (3, 5) and list(map(int, table.columns)) == [1, 2, 3, 4, 5]
    # Ten changes 0..9: mean 4.5, standard deviation sqrt(82.5 / 9).
    expected = (np.array([0.5, 2.5, 4.5, 6.5, 8.5]) - 4.5) / math.sqrt(82.5 / 9.0)
    np.testing.assert_allclose(table.loc[0], expected)
    assert improvement_by_fifth(make_updates(1.0, 4)).empty


def test_interquartile_mean_leaves_out_the_outer_seeds() -> None:
    values = np.array([0.0, 1.0, 2.0, 3.0, 1000.0])
    interval = iqm_interval(values)
    assert interval.value == 2.0
    assert interval.low < 2.0 < interval.high
    assert iqm_interval(values) == interval
    assert iqm_interval(np.full(5, 3.0)) == (3.0, 3.0, 3.0)
    single = iqm_interval([4.0])
    assert single.value == 4.0 and math.isnan(single.low) and math.isnan(single.high)


def test_figures_have_a_panel_for_each_task() -> None:
    runs = make_runs()
    curves = pd.concat(
        runs.assign(timesteps=steps, mean_return=runs["final_return"] * steps)
        for steps in (0, 1, 2)
    )
    panels = draw_curves(curves).axes
    assert [axes.get_title() for axes in panels] == ["Pendulum-v1", "CartPole-v1"]
    labels = [line.get_label() for line in panels[0].lines]
    assert labels[:2] == ["kl_ppo (KL)", "cim_ppo (CIM)"]
    drawn = np.asarray(panels[0].lines[1].get_ydata(), np.float64)
    np.testing.assert_allclose(drawn, [0.0, -200.0, -400.0])
    few = make_updates(1.0, 2).assign(task="CartPole-v1")
    panels = draw_asymmetry(pd.concat([make_updates(1.0), few])).axes
    assert [axes.get_title() for axes in panels] == ["Pendulum-v1", "CartPole-v1"]
