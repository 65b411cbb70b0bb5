"""The training of a named network: what it leaves, and that it goes on as if never stopped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from compress_env.data.bundle import DataBundle, Preparation, load_data
from compress_env.networks.checkpoints import read_safetensors
from compress_env.networks.training import Training
from compress_env.task.scoring import top_accuracies
from experiments.train import train
from experiments.train.train import Config, draw, run

pytestmark = pytest.mark.usefixtures("blank_figures")

QUIET = Console(quiet=True)
SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 400,
    "bf16": False,
    "channels_last": True,
}


def test_a_training_leaves_weights_and_tables(tmp_path: Path) -> None:
    row = run(Config(out=tmp_path / "run", **SETTINGS), QUIET)
    epochs = pd.read_csv(tmp_path / "run" / "epochs.csv")
    assert epochs["epoch"].tolist() == [1, 2]
    assert epochs["validation_accuracy"].iloc[-1] == row["validation_accuracy"]
    assert row["weight_decay"] == 5e-4 and row["label_smoothing"] == 0.1  # the recipe's
    assert (tmp_path / "run" / "training.png").stat().st_size > 0
    weights = read_safetensors(tmp_path / "run" / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_accuracies_are_of_the_weights_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []

    def watched(
        model: torch.nn.Module, batches: Any, tops: tuple[int, ...], **options: Any
    ) -> list[float]:
        hook = model.register_forward_hook(lambda _, __, ___: seen.append(autocast_type()))
        found = top_accuracies(model, batches, tops, **options)
        hook.remove()
        return found

    monkeypatch.setattr(train, "top_accuracies", watched)
    run(Config(out=tmp_path / "run", **SETTINGS | {"bf16": True, "epochs": 1}), QUIET)
    assert seen and set(seen) == {torch.float32}


def autocast_type() -> torch.dtype:
    """Return what convolutions compute in at this moment, on the CPU."""
    is_reduced = torch.is_autocast_enabled("cpu")
    return torch.get_autocast_dtype("cpu") if is_reduced else torch.float32


def test_a_stopped_training_goes_on_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(Config(out=tmp_path / "whole", **SETTINGS), QUIET)
    once = Training.run_epoch

    def stopping(training: Training) -> float:
        if training.n_done == 1:
            raise OSError("no space left on device")
        return once(training)

    monkeypatch.setattr(Training, "run_epoch", stopping)
    with pytest.raises(OSError, match="no space left"):
        run(Config(out=tmp_path / "stopped", **SETTINGS), QUIET)
    monkeypatch.undo()
    resumed = run(Config(resume=tmp_path / "stopped"), QUIET)
    times = ("seconds", "images_per_second")
    assert {k: v for k, v in resumed.items() if k not in times} == {
        k: v for k, v in whole.items() if k not in times
    }
    first, second = (
        read_safetensors(tmp_path / name / "model.safetensors") for name in ("whole", "stopped")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(ValueError, match="nothing left to measure"):
        run(Config(resume=tmp_path / "stopped"), QUIET)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "resnet20"}, "no recipe for resnet20 on digits: give --epochs"),
        ({"model": "lenet"}, "unknown model 'lenet'.*lenet5"),
        ({"data": "cifar1"}, "unknown data set 'cifar1'.*cifar10"),
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"epochs": 10**30}, r"epochs must be below 2\*\*63"),
        ({"weight_decay": math.inf}, r"weight_decay must be below 2\*\*63"),
        ({"learning_rate": 0.0}, "learning_rate above 0"),
        ({"learning_rate": math.inf}, "finite learning_rate above 0"),
        ({"label_smoothing": 1.5}, r"label_smoothing in \[0, 1\]"),
    ],
)
def test_wrong_settings_leave_nothing(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(Config(out=tmp_path / "run", **settings), QUIET)
    assert not (tmp_path / "run").exists()


def test_other_images_are_no_continuation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(training: Training) -> float:
        raise RuntimeError("stopped")

    monkeypatch.setattr(Training, "run_epoch", failing)
    with pytest.raises(RuntimeError, match="stopped"):
        run(Config(out=tmp_path / "run", **SETTINGS), QUIET)
    monkeypatch.setattr(train, "data_digest", lambda data: "another")
    with pytest.raises(ValueError, match="data"):
        run(Config(resume=tmp_path / "run"), QUIET)


def test_the_figure_has_a_point_for_each_epoch() -> None:
    rows = [{"epoch": n, "loss": 2.0 / n, "validation_accuracy": 0.3 * n} for n in (1, 2, 3)]
    figure = draw(rows, "lenet5 on digits")
    left, right = figure.axes
    assert np.asarray(left.lines[0].get_xdata()).tolist() == [1, 2, 3]
    assert right.lines[0].get_ydata() == pytest.approx([30.0, 60.0, 90.0])


@pytest.mark.parametrize("preparation", ["auto", "imagenet", "timm/mobilenetv1_100"])
def test_images_are_prepared_as_is_said(
    preparation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(name: str, *, preparation: Preparation | None, **options: Any) -> DataBundle:
        asked.append(preparation)
        return load_data("digits")

    pytest.importorskip("timm")
    monkeypatch.setattr(train, "load_data", load)
    settings = SETTINGS | {"data": "folder", "preparation": preparation, "epochs": 1}
    run(Config(out=tmp_path / "run", **settings), QUIET)
    is_timm = preparation.startswith("timm/")
    assert [found and found.mean for found in asked] == [(0.5, 0.5, 0.5) if is_timm else None]
