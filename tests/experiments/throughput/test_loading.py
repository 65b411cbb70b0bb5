"""Images from disk: the same as a bare loader's, and how their times are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from compress_env.data.bundle import stream_folder
from experiments.throughput.loading import CALLS, bare_loader
from experiments.throughput.throughput import Config, run
from tests.fakes import quiet


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "tree" / "train" / label).mkdir(parents=True)
        for index in range(6):
            pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "tree" / "train" / label / f"{index}.jpg")
    return tmp_path / "tree"


@pytest.mark.parametrize("size", [None, 8], ids=["as they are", "scaled"])
def test_images_are_those_of_a_bare_loader(tree: Path, size: int | None) -> None:
    source = stream_folder(tree / "train", size=size)
    order = torch.split(torch.randperm(12, generator=torch.Generator().manual_seed(0)), 5)
    bare = bare_loader(tree / "train", order, size=size, num_workers=0)
    pairs = zip(source.batches(order), bare, strict=True)
    for (images, labels), (expected, targets) in pairs:
        torch.testing.assert_close(images, expected)
        assert torch.equal(labels, targets)


def test_loaders_are_timed_on_the_same_images(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings: dict[str, Any] = {"images": 10, "image_size": 8, "rounds": 1, "device": "cpu"}
    rows = run(Config(parts=("loader",), data_root=tree, out=out, **settings), quiet())["loader"]
    assert [row["calls"] for row in rows] == list(CALLS)
    for row in rows:
        assert row["images"] == 10
        assert row["ratio"] == pytest.approx(row["ours_per_s"] / row["bare_per_s"])
    assert pd.read_csv(out / "loader.csv")["ratio"].tolist() == [row["ratio"] for row in rows]
    heading = "| calls | workers | images/s | bare DataLoader, images/s | ratio |"
    assert heading in (out / "throughput.md").read_text()


def test_a_tree_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the part loader needs --data-root"):
        run(Config(parts=("loader",), out=tmp_path / "out"), quiet())
