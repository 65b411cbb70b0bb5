"""What goes wrong while a network is trained: one line, and a folder to go on from."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from compress_env.networks.checkpoints import read_safetensors
from compress_env.networks.training import Training
from compress_env.task.scoring import top_accuracies
from experiments.common.cli.command import one_line
from experiments.train import train
from experiments.train.train import Config, run
from tests.fakes import quiet

pytestmark = pytest.mark.usefixtures("blank_figures")

SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 400,
    "bf16": False,
    "channels_last": False,
    "device": "cpu",
}


def in_second_epoch(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Do something before the second epoch, and then let it run."""
    once = Training.run_epoch

    def acting(training: Training) -> float:
        if training.n_done == 1:
            act()
        return once(training)

    monkeypatch.setattr(Training, "run_epoch", acting)


def same_weights(first: Path, second: Path) -> bool:
    one, other = (read_safetensors(path / "model.safetensors") for path in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_full_disk_ends_a_training_which_then_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(Config(out=tmp_path / "whole", **SETTINGS), quiet())
    folder, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:  # enough for the weights, too little for the state beside them
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))

    with monkeypatch.context() as patch:
        in_second_epoch(patch, fill)
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                run(Config(out=folder, **SETTINGS), quiet())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert one_line(caught.value).endswith(f"--resume {folder}")
    assert not list(folder.rglob(".*-*")), "half-written files"
    row = run(Config(resume=folder), quiet())
    assert same_weights(folder, tmp_path / "whole") and row["test_accuracy"] > 0


def without(column: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["rows"][0].pop(column)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state["rows"].clear(), "expected the rows of 1 finished epochs, got 0"),
        (lambda state: state["rows"].append({}), "expected the rows of 1 finished epochs, got 2"),
        (lambda state: state.update(rows=3), "TypeError: "),
        (lambda state: state["training"].update(epochs=3), "expected 0 to 2 finished epochs"),
        (without("seconds"), "KeyError: 'seconds'"),
        (without("validation_accuracy"), "KeyError: 'validation_accuracy'"),
        (lambda state: state["rows"][0].update(seconds="long"), "a finite number, got 'long'"),
    ],
    ids=["no-rows", "more-rows", "a-number", "epochs", "no-seconds", "no-accuracy", "a-text"],
)
def test_damaged_state_is_told_in_one_line(
    damage: Callable[[dict[str, Any]], None], message: str, stopped: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    state = torch.load(folder / "state" / "training.pt", weights_only=True)
    damage(state)
    torch.save(state, folder / "state" / "training.pt")
    with pytest.raises(ValueError, match=r"training\.pt' does not fit this run: ") as caught:
        run(Config(resume=folder), quiet())
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training that was stopped after its first epoch."""

    def fail() -> None:
        raise OSError("stopped")

    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        in_second_epoch(patch, fail)
        with pytest.raises(OSError, match="stopped"):
            run(Config(out=folder, **SETTINGS), quiet())
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, n_images in (("train", 8), ("test", 4)):
        for label in range(2):
            folder = tmp_path / "tree" / split / str(label)
            folder.mkdir(parents=True)
            for number in range(n_images):
                pixels = rng.integers(0, 120, (8, 8, 3)) + 60 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "tree"


OF_A_TREE = SETTINGS | {"model": "lenet5", "data": "folder", "batch_size": 4}


def test_truncated_image_ends_a_training_which_then_goes_on(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress_env.data.bundle._MAX_DECODED_BYTES", 0)
    monkeypatch.setattr("compress_env.data.bundle._MAX_WORKERS", 0)
    run(Config(out=tmp_path / "whole", data_root=tree, **OF_A_TREE), quiet())
    image, folder = tree / "train" / "1" / "3.png", tmp_path / "run"
    content = image.read_bytes()
    with monkeypatch.context() as patch:
        in_second_epoch(patch, lambda: os.truncate(image, 60))
        with pytest.raises(
            (OSError, ValueError), match=r"cannot read the image .*3\.png"
        ) as caught:
            run(Config(out=folder, data_root=tree, **OF_A_TREE), quiet())
    assert one_line(caught.value).endswith(f"--resume {folder}")
    image.write_bytes(content)
    run(Config(resume=folder), quiet())
    assert same_weights(folder, tmp_path / "whole")


def test_class_that_a_split_lacks_is_named_and_nothing_is_left(tree: Path, tmp_path: Path) -> None:
    (tree / "test" / "1").rename(tmp_path / "away")
    with pytest.raises(ValueError, match=r"^folder: .* differ: test/ has no 1$"):
        run(Config(out=tmp_path / "run", data_root=tree, **OF_A_TREE), quiet())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_an_end_before_the_first_epoch_leaves_nothing(
    kind: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*args: Any, **options: Any) -> None:
        raise kind

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train, "load_data", end)
        with pytest.raises(kind) as caught:
            run(Config(out=folder, **SETTINGS), quiet())
    assert "--resume" not in one_line(caught.value) and not folder.exists()


def test_a_stop_while_a_training_is_taken_up_says_how_to_go_on(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    shutil.copytree(stopped, tmp_path / "run")
    monkeypatch.setattr(train, "load_data", stop)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(Config(resume=tmp_path / "run"), quiet())
    assert one_line(caught.value).endswith(f"--resume {tmp_path / 'run'}")
    assert not (tmp_path / "run" / ".lock").exists()


def test_scoring_takes_fewer_images_where_they_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(Config(out=tmp_path / "whole", **SETTINGS), quiet())
    once = top_accuracies

    def narrow(model: nn.Module, batches: Any, *rest: Any, **options: Any) -> list[float]:
        kept = list(batches)
        if max(len(images) for images, _ in kept) > 130:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return once(model, kept, *rest, **options)

    monkeypatch.setattr(train, "top_accuracies", narrow)
    row = run(Config(out=tmp_path / "run", **SETTINGS), quiet())
    assert row["test_accuracy"] == whole["test_accuracy"]
