"""Stability of importance: what is measured, what is compared, and how it goes on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from compress_env.allocation import afie
from experiments.common.training import limit_images, seeded_task, train_epochs, train_with_marks
from experiments.importance_stability.importance_stability import Config, run
from experiments.importance_stability.report import (
    agreement_with_final,
    compare_scores,
    format_report,
    judge,
)
from tests.fakes import make_data, quiet, stop_after_state


def small(out: Path) -> Config:
    return Config(model=("cnn4",), epochs=(0, 1, 2), seeds=(0, 1), n_trials=1, out=out)


@pytest.mark.usefixtures("small_studies")
def test_marks_are_what_one_training_passes_through() -> None:
    tasks = [
        seeded_task("cnn4", make_data(), seed=3, learning_rate=0.05, device="cpu") for _ in range(2)
    ]
    found = train_with_marks(tasks[0], tasks[0].model, (0, 1, 2), 3)
    fresh = seeded_task("cnn4", make_data(), seed=3, learning_rate=0.05, device="cpu").model
    assert all(map(torch.equal, found[0].parameters(), fresh.parameters()))
    train_epochs(tasks[1], tasks[1].model, 2, 3)
    assert all(map(torch.equal, found[2].parameters(), tasks[1].model.parameters()))
    assert not torch.equal(next(found[1].parameters()), next(found[2].parameters()))
    assert not any(network.training for network in found.values())


@pytest.mark.usefixtures("small_studies")
def test_every_layer_is_scored_at_every_epoch(tmp_path: Path) -> None:
    table = run(small(tmp_path / "out"), quiet())
    epochs = table.groupby(["seed", "score"])["epoch"].apply(list).to_dict()
    for seed in (0, 1):
        for score in ("afie", "entropy_ratio", "sbpf", "width_only"):
            assert epochs[seed, score] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert epochs[seed, "sbpf_again"] == [2, 2, 2]
    assert set(table["layer"]) == {"conv1", "conv2", "fc1"}
    width = table[table["score"] == "width_only"].groupby("layer")["value"]
    assert (width.std() == 0).all()
    # conv1 has one input channel and nine kernel elements, but only four filters.
    np.testing.assert_allclose(width.first(), np.log([4, 4, 8]) / [4, 6, 8])
    first = seeded_task("cnn4", make_data(), seed=1, learning_rate=0.02, device="cpu").model
    mine = table[(table["seed"] == 1) & (table["epoch"] == 0) & (table["score"] == "afie")]
    np.testing.assert_allclose(
        mine.set_index("layer")["value"], afie(first).loc[mine["layer"], "afie"]
    )
    assert (table["rate"].isna() == (table["score"] == "entropy_ratio")).all()
    report = (tmp_path / "out" / "importance_stability.md").read_text()
    assert "**AFIE: " in report and "**SBPF: " in report
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "agreement.png",
        "config.json",
        "importance_stability.md",
        "scores.png",
        "table.csv",
    }


@pytest.mark.usefixtures("small_studies", "blank_figures")
def test_a_stopped_comparison_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(small(tmp_path / "whole"), quiet())
    names = stop_after_state(monkeypatch, "cnn4-seed0")
    with pytest.raises(KeyboardInterrupt):
        run(small(tmp_path / "stopped"), quiet())
    run(Config(resume=tmp_path / "stopped"), quiet())
    assert names == ["cnn4-seed0", "cnn4-seed1"]
    whole, stopped = (
        pd.read_csv(tmp_path / name / "table.csv").drop(columns="seconds")
        for name in ("whole", "stopped")
    )
    pd.testing.assert_frame_equal(stopped, whole)


def scores(values: list[float], rates: list[float] | None = None) -> pd.DataFrame:
    layers = [f"layer{i}" for i in range(len(values))]
    return pd.DataFrame(
        {"layer": layers, "value": values, "rate": rates or [math.nan] * len(values)}
    )


def test_agreement_by_hand() -> None:
    first = scores([1.0, 2.0, 4.0, 3.0], [0.1, 0.2, 0.3, 0.4])
    found = compare_scores(first, scores([1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.3, 0.15]))
    assert found.spearman == pytest.approx(1.0 - 6 * 2 / (4 * 15))
    assert found.kendall == pytest.approx((5 - 1) / 6)
    assert found.change == pytest.approx(1 / 3)
    assert found.rate_change == pytest.approx(0.25)
    shuffled = first.iloc[[3, 1, 0, 2]]
    assert compare_scores(shuffled, first) == (1.0, 1.0, 0.0, 0.0)


def test_scores_without_differences_have_no_correlation() -> None:
    found = compare_scores(scores([1.0, 2.0]), scores([0.0, 0.0]))
    assert all(math.isnan(value) for value in found)


@pytest.mark.parametrize(
    ("arguments", "verdict"),
    [
        ((0.8, 0.1, 0.1), "Not stable."),
        ((math.nan, 0.1), "Not stable."),
        ((0.95, 0.1, 0.95), "not because it is informative: the width alone ranks the layers so."),
        ((0.95, 0.9), "not because it is informative: random weights rank the layers so."),
        ((0.95, 0.95, 0.95), "the width alone ranks the layers so and random weights"),
        ((0.95, 0.5, 0.5), "Stable because informative"),
        ((0.95, math.nan), "Stable because informative"),
    ],
)
def test_verdicts(arguments: tuple[float, ...], verdict: str) -> None:
    assert verdict in judge(*arguments)


def test_report_tells_width_from_information() -> None:
    """AFIE as the width has it at every epoch; SBPF that finds its ranking in the first epoch."""
    rows = []
    for seed in (0, 1):
        for epoch in (0, 1, 5):
            values = {
                "afie": [3.0, 2.0, 1.0],
                "width_only": [3.1, 2.1, 1.1],
                "entropy_ratio": [0.9, 0.8, 0.7],
                "sbpf": [1.0, 2.0, 3.0] if epoch else [3.0, 1.0, 2.0],
            }
            if epoch == 5:
                values["sbpf_again"] = [1.1, 2.1, 3.1]
            for score, own in values.items():
                table = scores(own).assign(score=score, epoch=epoch, seed=seed, model="m")
                rows.append(table.assign(accuracy=0.5))
    table = pd.concat(rows)
    assert agreement_with_final(table, "sbpf")["spearman"].tolist() == [-0.5, 1, 1] * 2
    report = format_report(table, "data", 0.5)
    assert "**AFIE: Stable, but not because it is informative: the width alone" in report
    assert "**SBPF: Stable because informative" in report


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": ()}, "expected model that differ, at least one"),
        ({"model": ("lenet6",)}, "unknown model 'lenet6'"),
        ({"seeds": (1, 1)}, "expected seeds that differ"),
        ({"seeds": (-1,)}, "seeds must be 0 or more"),
        ({"epochs": (1, 0, 2)}, "epochs must rise"),
        ({"epochs": (0, 1)}, "two of them be above 0"),
        ({"validation_images": 0}, "validation_images must be 1 or more"),
        ({"data": "none"}, "unknown data set"),
    ],
    ids=["no model", "model", "seeds", "seed", "order", "epochs", "images", "data"],
)
def test_wrong_settings_are_refused(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(Config(out=tmp_path / "out", **settings), quiet())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_limited_images_are_balanced_and_the_same_each_time() -> None:
    data = make_data()
    limited = [limit_images(data, 10, 20) for _ in range(2)]
    assert [len(limited[0].train), len(limited[0].validation)] == [20, 10]
    assert limited[0].train.labels.tolist() == limited[1].train.labels.tolist()
    assert set(limited[0].train.labels.tolist()) == set(data.train.labels.tolist())
    assert limit_images(data, None).train is data.train
