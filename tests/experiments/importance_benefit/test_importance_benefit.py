"""Pruning rates by importance against others: what is measured, and how it goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.importance_benefit.importance_benefit import Config, run
from experiments.importance_benefit.report import compare_with_uniform, format_report
from tests.fakes import quiet, stop_after_state

METHODS = ("uniform", "afie", "sbpf", "random", "q_critic_ppo")


def small(out: Path) -> Config:
    return Config(
        targets=(0.25, 0.5),
        epochs=(1, 2),
        seeds=(0,),
        n_trials=1,
        finetune_steps=1,
        final_finetune_steps=2,
        out=out,
    )


@pytest.mark.usefixtures("small_studies")
def test_every_method_removes_as_many_filters(tmp_path: Path) -> None:
    table = run(replace(small(tmp_path / "out"), epochs=(1,)), quiet())
    assert len(table) == 1 + 2 * len(METHODS)
    assert set(table["method"]) == {"none", *METHODS}
    pruned = table[table["method"] != "none"]
    assert (pruned["filters"] <= 1.0 - pruned["target"]).all()
    fixed = pruned[pruned["method"].isin(["afie", "sbpf"])]
    # 18 filters: a quarter is 4.5, so five go, and nine are half.
    np.testing.assert_allclose(fixed["filters"], fixed["target"].map({0.25: 13 / 18, 0.5: 0.5}))
    spent = pruned.groupby("method")["n_evaluations"].max()
    assert spent[["uniform", "afie", "sbpf"]].tolist() == [0, 0, 1 + 3]
    assert spent[["random", "q_critic_ppo"]].max() == 4
    assert all(len(rates.split()) == 3 for rates in pruned["rates"])
    unpruned = table[table["method"] == "none"]
    assert (unpruned[["filters", "macs", "params"]].to_numpy() == 1.0).all()
    report = (tmp_path / "out" / "importance_benefit.md").read_text()
    assert "## From the network after 1 epoch(s)" in report
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json",
        "errors.png",
        "importance_benefit.md",
        "table.csv",
    }


@pytest.mark.usefixtures("small_studies", "blank_figures")
def test_targets_may_count_macs(tmp_path: Path) -> None:
    config = replace(small(tmp_path / "out"), epochs=(1,), targets=(0.5,), unit="macs")
    table = run(replace(config, algo=("uniform", "afie")), quiet())
    pruned = table[table["method"] != "none"]
    assert (pruned["macs"] <= 0.5).all()
    assert pruned["macs"].min() > 0.25  # half of the filters of every layer leaves about a quarter
    assert "MACs removed" in (tmp_path / "out" / "importance_benefit.md").read_text()


@pytest.mark.usefixtures("small_studies", "blank_figures")
def test_a_stopped_comparison_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(small(tmp_path / "whole"), targets=(0.5,), algo=("uniform", "sbpf"))
    run(config, quiet())
    names = stop_after_state(monkeypatch, "seed0-epochs1-0.5-uniform")
    with pytest.raises(KeyboardInterrupt):
        run(replace(config, out=tmp_path / "stopped"), quiet())
    run(Config(resume=tmp_path / "stopped"), quiet())
    assert len(names) == len(set(names)) == 1 + 2 * 3
    whole, stopped = (
        pd.read_csv(tmp_path / name / "table.csv").drop(columns="search_seconds")
        for name in ("whole", "stopped")
    )
    pd.testing.assert_frame_equal(stopped, whole)


@pytest.mark.usefixtures("small_studies", "blank_figures")
def test_evaluations_can_be_given(tmp_path: Path) -> None:
    config = replace(
        small(tmp_path / "out"),
        targets=(0.5,),
        epochs=(1,),
        algo=("uniform", "random", "q_critic_ppo"),
        selection="random",
        evaluations=6,
    )
    table = run(config, quiet()).set_index("method")
    spent, seconds = table["n_evaluations"], table["search_seconds"]
    assert spent["random"] == 6
    assert 1 <= spent["q_critic_ppo"] <= 6
    assert seconds["random"] > seconds["uniform"]


def test_differences_are_taken_seed_by_seed() -> None:
    rows = pd.DataFrame(
        {
            "seed": seed,
            "epochs": 1,
            "target": target,
            "method": method,
            "test_error": error,
            "filters": 0.5,
            "macs": 0.5,
            "params": 0.5,
            "n_evaluations": 7,
            "search_seconds": 1.5,
        }
        for method, target, errors in (
            ("none", 0.0, (0.01, 0.02)),
            ("uniform", 0.5, (0.10, 0.20)),
            ("afie", 0.5, (0.08, 0.17)),
        )
        for seed, error in enumerate(errors)
    )
    found = compare_with_uniform(rows, "afie")
    assert list(found) == [(1, 0.5)]
    assert found[1, 0.5].value == pytest.approx(-2.5)
    half = 12.706204736 * 0.5  # t(0.975, 1) sd / sqrt(2)
    assert found[1, 0.5].high == pytest.approx(-2.5 + half)
    report = format_report(rows, "net on data", "filters", "magnitude", 10)
    assert "| `afie` | 12.50 ± 57.18 | 7 | 1.50 |" in report
    assert "- `afie`: undecided 1 of 1" in report


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algo": ("uniform", "magic")}, "unknown algorithm 'magic'"),
        ({"algo": ("afie",)}, "algo must hold 'uniform'"),
        ({"algo": ("uniform", "uniform")}, "expected algo that differ"),
        ({"targets": (1.0,)}, r"targets must be in \(0, 1\), got \(1.0,\)"),
        ({"targets": (0.99,), "epochs": (0,), "seeds": (0,)}, "filters_budget must be in"),
        ({"seeds": (-1,)}, r"seeds must be 0 or more, got \(-1,\)"),
        ({"evaluations": 0}, "evaluations must be 1 or more, got 0"),
        (
            {"selection": "variational"},
            "unknown selection .variational.; valid: magnitude",
        ),
        ({"model": "lenet6"}, "unknown model 'lenet6'"),
    ],
    ids=["name", "no base", "twice", "target", "unreachable", "seed", "evals", "method", "model"],
)
@pytest.mark.usefixtures("small_studies")
def test_wrong_settings_are_refused(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(Config(out=tmp_path / "out", **settings), quiet())  # type: ignore[arg-type]
