"""What goes wrong while a network is trained: one line, and a folder to go on from."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compress_env.networks.checkpoints import read_safetensors
from compress_env.networks.training import Training
from experiments.common.cli.command import one_line
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
