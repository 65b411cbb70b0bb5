"""Tests of folders of images and of ImageNet as data sets."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from compress_env.data import bundle as data_module
from compress_env.data.bundle import (
    DatasetSource,
    Preparation,
    TensorSource,
    cache_dir,
    load_data,
)
from tests.fakes import image_set, read_all, set_sizes


def _write_tree(root: Path, splits: tuple[str, ...], side: int = 8, n: int = 4) -> None:
    rng = np.random.default_rng(0)
    for split in splits:
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for index in range(n):
                pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{index}.png")


def _first_pixels(path: Path) -> Tensor:
    # (H, W, C) -> (C, H, W)
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    _write_tree(tmp_path / "tree", ("train", "test"))
    return tmp_path / "tree"


def test_folder(tree: Path) -> None:
    bundle = load_data("folder", data_root=tree, n_calibration=2)
    assert set_sizes(bundle) == (8, 2, 4, 4)
    assert (bundle.num_classes, bundle.image_shape) == (2, (3, 8, 8))
    assert bundle.train.labels.tolist() == [0] * 4 + [1] * 4
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    expected = (_first_pixels(tree / "train" / "dog" / "0.png") / 255 - mean) / std
    torch.testing.assert_close(read_all(bundle.train)[0][4], expected)


def test_folder_takes_val_and_test_as_they_are(tmp_path: Path) -> None:
    _write_tree(tmp_path, ("train", "val", "test"), n=3)
    bundle = load_data("folder", data_root=tmp_path)
    assert set_sizes(bundle) == (6, 6, 6, 6)


def test_folder_reads_large_trees_when_needed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = load_data("folder", data_root=tree)
    monkeypatch.setattr(data_module, "_MAX_DECODED_BYTES", 100)
    read = load_data("folder", data_root=tree)
    assert isinstance(in_memory.train, TensorSource)
    assert isinstance(read.train, DatasetSource)
    for seed in (None, 3):
        a, b = (
            read_all(bundle.train, None if seed is None else torch.Generator().manual_seed(seed))[0]
            for bundle in (in_memory, read)
        )
        assert a.shape == b.shape
        assert seed is not None or torch.equal(a, b)
    assert not torch.equal(read_all(read.train, torch.Generator())[0], read_all(read.train)[0])


def test_folder_decodes_once(tree: Path) -> None:
    first = load_data("folder", data_root=tree)
    cached = sorted((cache_dir() / "images").glob("*.npy"))
    assert len(cached) == 2
    for path in cached:
        np.save(path, np.zeros_like(np.load(path)))
    second = load_data("folder", data_root=tree)
    assert float(read_all(first.train)[0].std()) > 0.5
    assert len(image_set(second.train)) == 1


def test_folder_decodes_again_when_a_file_changes(tree: Path) -> None:
    load_data("folder", data_root=tree)
    path = tree / "train" / "cat" / "0.png"
    Image.new("RGB", (8, 8), (255, 255, 255)).save(path)
    os.utime(path, ns=(1, 1))
    images, _ = read_all(load_data("folder", data_root=tree).train)
    assert float(images[0].min()) > 2


@pytest.mark.parametrize("damage", [b"", b"garbage", None], ids=["empty", "garbage", "truncated"])
def test_folder_decodes_again_when_the_cache_is_corrupt(
    tree: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    expected = read_all(load_data("folder", data_root=tree).train)[0]
    for path in (cache_dir() / "images").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-10] if damage is None else damage)
    assert torch.equal(read_all(load_data("folder", data_root=tree).train)[0], expected)
    assert "decoding again" in caplog.text


def test_images_in_memory_outlive_their_cache(tree: Path) -> None:
    load_data("folder", data_root=tree)
    bundle = load_data("folder", data_root=tree)  # from the cache
    expected = read_all(bundle.train)[0]
    for path in (cache_dir() / "images").glob("*.npy"):
        os.truncate(path, 0)
    assert torch.equal(read_all(bundle.train)[0], expected)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("length", [None, 0, 100], ids=["deleted", "empty", "truncated"])
def test_an_image_that_breaks_while_it_is_needed_is_named(
    tree: Path, length: int | None, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_module, "_MAX_DECODED_BYTES", 100)
    monkeypatch.setattr(data_module, "_MAX_WORKERS", num_workers)
    train = load_data("folder", data_root=tree).train
    path = tree / "train" / "dog" / "1.png"
    path.unlink() if length is None else os.truncate(path, length)
    batches = train.batches([torch.arange(4), torch.arange(4, 8)])
    assert len(next(batches)[1]) == 4
    with pytest.raises((OSError, ValueError), match=r"^cannot read the image .*1\.png: ") as caught:
        next(batches)
    assert "\n" not in str(caught.value)


def test_folder_works_without_a_writable_cache(
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path / "file"))
    assert len(load_data("folder", data_root=tree).train) == 8
    assert [record.levelno for record in caplog.records].count(logging.WARNING) >= 1


def test_folder_resizes_to_a_common_side(tmp_path: Path) -> None:
    _write_tree(tmp_path, ("train", "val"), side=8)
    Image.new("RGB", (20, 12)).save(tmp_path / "train" / "dog" / "0.png")
    with pytest.raises(ValueError, match=r"dog.0\.png has shape .* size="):
        load_data("folder", data_root=tmp_path)
    assert load_data("folder", data_root=tmp_path, size=6).image_shape == (3, 6, 6)


def test_folder_names_a_broken_image(tree: Path) -> None:
    (tree / "test" / "dog" / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read the image .*2\.png"):
        load_data("folder", data_root=tree)


def test_folder_rejects_other_classes(tree: Path) -> None:
    (tree / "test" / "dog").rename(tree / "test" / "wolf")
    with pytest.raises(ValueError, match=r"train/ has no wolf, test/ has no dog$"):
        load_data("folder", data_root=tree)


@pytest.mark.parametrize("splits", [(), ("train",), ("val", "test")])
def test_folder_explains_the_tree_it_needs(splits: tuple[str, ...], tmp_path: Path) -> None:
    _write_tree(tmp_path, splits)
    with pytest.raises(FileNotFoundError, match=r"expected train/ and val/ or test/.*--data-root"):
        load_data("folder", data_root=tmp_path)


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    root = tmp_path / "imagenet"
    _write_tree(root, ("train", "val"), side=20)
    torch.save(({"cat": ("cat",), "dog": ("dog",)}, []), root / "meta.bin")
    return tmp_path


def test_imagenet(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "_MAX_WORKERS", 0)
    bundle = load_data("imagenet", data_root=imagenet, size=14)
    assert isinstance(bundle.train, DatasetSource)
    # Of the training images a few validate; all others of `val` test.
    assert set_sizes(bundle) == (7, 7, 1, 8)
    assert (bundle.num_classes, bundle.image_shape) == (2, (3, 14, 14))
    assert bundle.test.labels.tolist() == [0] * 4 + [1] * 4
    assert not any(
        torch.equal(read_all(bundle.validation)[0][0], image) for image in read_all(bundle.train)[0]
    )
    plain = read_all(bundle.train)[0]
    first, again = (read_all(bundle.train, torch.Generator().manual_seed(s))[0] for s in (1, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, plain)


HALVES = Preparation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 0.7)


def test_imagenet_is_prepared_as_a_network_wants(
    imagenet: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(data_module, "_MAX_WORKERS", 0)
    for path in (imagenet / "imagenet" / "val").rglob("*.png"):
        Image.open(path).resize((30, 40)).save(path)
    with caplog.at_level("INFO"):
        bundle = load_data("imagenet", data_root=imagenet, size=14, preparation=HALVES)
    assert "imagenet: images with mean (0.5, 0.5, 0.5)" in caplog.text
    image = Image.open(imagenet / "imagenet" / "val" / "cat" / "0.png").convert("RGB")
    # 14 / 0.7 = 20 pixels is the shorter side, of which the middle stays.
    pixels = np.array(image.resize((20, 26), Image.Resampling.BICUBIC))[6:20, 3:17]
    expected = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - 0.5) / 0.5
    torch.testing.assert_close(read_all(bundle.test)[0][0], expected)
    plain = load_data("imagenet", data_root=imagenet, size=14)
    assert bundle.digest() != plain.digest()
    assert not torch.equal(read_all(plain.test)[0][0], expected)


@pytest.mark.parametrize("limit", [100, 2**30], ids=["read", "in-memory"])
def test_folder_is_normalised_as_a_network_wants(
    limit: int, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_module, "_MAX_DECODED_BYTES", limit)
    monkeypatch.setattr(data_module, "_MAX_WORKERS", 0)
    bundle = load_data("folder", data_root=tree, preparation=HALVES)
    expected = _first_pixels(tree / "train" / "cat" / "0.png") / 255 * 2 - 1
    torch.testing.assert_close(read_all(bundle.train)[0][0], expected)


def test_imagenet_validates_on_ten_thousand_images_at_most(
    imagenet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_module, "_MAX_WORKERS", 0)
    _write_tree(imagenet / "more", ("train",), side=20, n=30)
    for label in ("cat", "dog"):
        for path in (imagenet / "more" / "train" / label).iterdir():
            path.rename(imagenet / "imagenet" / "train" / label / path.name)
    assert set_sizes(load_data("imagenet", data_root=imagenet, size=14)) == (54, 54, 6, 8)
    monkeypatch.setattr(data_module, "_N_VALIDATION", 4)
    bundle = load_data("imagenet", data_root=imagenet, size=14)
    assert set_sizes(bundle) == (56, 56, 4, 8)
    assert bundle.validation.labels.tolist() == [0, 0, 1, 1]
    assert load_data("imagenet", data_root=imagenet, size=14).digest() == bundle.digest()
    assert load_data("imagenet", data_root=imagenet, size=14, seed=1).digest() != bundle.digest()


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda root: (root / "meta.bin").unlink(), FileNotFoundError, "devkit_t12"),
        (lambda root: (root / "val").rename(root / "v"), FileNotFoundError, "img_val.tar"),
        (lambda root: (root / "meta.bin").write_bytes(b"garbage"), ValueError, "corrupt file"),
        (
            lambda root: (root / "val" / "cat").rename(root / "cat"),
            ValueError,
            "imagenet: the classes in train/ and val/ differ: val/ has no cat$",
        ),
    ],
    ids=["no-devkit", "no-val", "corrupt", "no-cat-in-val"],
)
def test_imagenet_explains_what_is_wrong(
    damage: Callable[[Path], object], error: type[Exception], message: str, imagenet: Path
) -> None:
    damage(imagenet / "imagenet")
    with pytest.raises(error, match=message) as caught:
        load_data("imagenet", data_root=imagenet)
    assert "\n" not in str(caught.value)
