"""Tests of folders of images: what is listed, and how it is decoded and cached."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress_env.data import bundle as data_module
from compress_env.data.bundle import load_data
from compress_env.data.image_folders import ImageTree, open_image
from tests.fakes import read_all


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "tree" / split / label
            folder.mkdir(parents=True)
            for index in range(3):
                pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.bmp")
    return tmp_path / "tree"


def test_hidden_folders_and_files_are_no_images(tree: Path) -> None:
    image = (tree / "train" / "cat" / "0.bmp").read_bytes()
    expected = load_data("folder", data_root=tree)
    for place in (
        "train/.ipynb_checkpoints/0.bmp",
        "val/.ipynb_checkpoints/x.txt",
        "train/cat/.ipynb_checkpoints/0-checkpoint.bmp",
        "train/dog/._0.bmp",
        "train/__MACOSX/cat/._0.bmp",
        "test/.DS_Store",
    ):
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        (tree / place).write_bytes(image)
    bundle = load_data("folder", data_root=tree)
    assert bundle.num_classes == 2
    assert torch.equal(read_all(bundle.train)[0], read_all(expected.train)[0])
    assert torch.equal(bundle.train.labels, expected.train.labels)


def test_links_lead_to_no_image_twice_and_to_no_other_class(tree: Path) -> None:
    before = ImageTree(tree / "train", allow_empty=False).samples
    assert len(before) == len({path for path, _ in before}) > 0
    dog = tree / "train" / "dog"
    (dog / "more").mkdir()
    (dog / "0.bmp").rename(dog / "more" / "0.bmp")
    for name, target in {"a": ".", "b": ".", "up": "..", "far": "../..", "same": "more"}.items():
        (dog / name).symlink_to(target, target_is_directory=True)
    (tree / "train" / "horse").symlink_to("dog")  # a class of its own
    samples = ImageTree(tree / "train", allow_empty=False).samples
    by_class = [[Path(path).resolve() for path, each in samples if each == n] for n in range(3)]
    n_each = len(before) // 2
    assert [len(paths) for paths in by_class] == [len(set(p)) for p in by_class] == [n_each] * 3
    assert all(path.is_relative_to(dog) for path in by_class[1])


def test_what_was_scaled_is_not_taken_for_the_images_as_they_are(tree: Path) -> None:
    image = Image.new("RGB", (20, 10))
    image.save(tree / "train" / "dog" / "large.png")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"large\.png has shape \(3, 10, 20\)"):
            load_data("folder", data_root=tree)
        assert load_data("folder", data_root=tree, size=8).image_shape == (3, 8, 8)


def test_a_class_without_images_is_named_where_it_is_to_be_learned(tree: Path) -> None:
    for split in ("train", "val", "test"):
        (tree / split / "wolf").mkdir()
    with pytest.raises(ValueError, match=r"train.wolf has no images \(.*: add some or delete it"):
        load_data("folder", data_root=tree)
    (tree / "train" / "wolf" / "0.bmp").write_bytes((tree / "train/cat/0.bmp").read_bytes())
    assert load_data("folder", data_root=tree).num_classes == 3


def test_a_split_without_classes_or_images_is_named(tree: Path) -> None:
    for path in (tree / "val").rglob("*.bmp"):
        path.unlink()
    with pytest.raises(ValueError, match=r"val has no images"):
        load_data("folder", data_root=tree)
    for folder in (tree / "val").iterdir():
        folder.rmdir()
    with pytest.raises(FileNotFoundError, match=r"expected a folder for each class in .*val"):
        load_data("folder", data_root=tree)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_that_is_called_an_image_is_not_waited_for(tree: Path) -> None:
    os.mkfifo(tree / "train" / "dog" / "9.png")
    with pytest.raises(ValueError, match=r"cannot read the image .*9\.png: .*not a regular file"):
        load_data("folder", data_root=tree)


def test_an_image_that_is_a_bomb_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"cannot read the image .*0\.bmp: Image size") as caught:
        load_data("folder", data_root=tree)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(data_module, "_MAX_DECODED_BYTES", 10)
    monkeypatch.setattr(data_module, "_MAX_WORKERS", 0)
    lazy = load_data("folder", data_root=tree)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(OSError, match=r"^cannot read the image .*0\.bmp: Image size"):
        read_all(lazy.train)


WIDE = (np.arange(36, dtype=np.uint16) * 1872).reshape(6, 6)


@pytest.mark.parametrize("name", ["wide.png", "wide.tif", "wide.pgm"])
def test_images_of_16_bits_are_scaled(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith("pgm"):
        path.write_bytes(b"P5 6 6 65535\n" + WIDE.astype(">u2").tobytes())
    else:
        Image.fromarray(WIDE).save(path)
    pixels = np.asarray(open_image(str(path)))
    expected = np.round(WIDE / 257)
    assert pixels.shape == (6, 6, 3) and pixels.dtype == np.uint8
    assert all(np.array_equal(pixels[..., channel], expected) for channel in range(3))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_images_of_an_unknown_range_are_refused(dtype: type, tree: Path) -> None:
    path = tree / "train" / "dog" / "1.tif"
    Image.fromarray(WIDE.astype(dtype)).save(path)
    with pytest.raises(ValueError, match=r"1\.tif: .*range is not known: save it with 8 or 16"):
        load_data("folder", data_root=tree)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_images_of_8_bits_are_converted_as_ever(mode: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "image.tif")
    expected = np.asarray(Image.open(tmp_path / "image.tif").convert("RGB"))
    assert np.array_equal(np.asarray(open_image(str(tmp_path / "image.tif"))), expected)


@pytest.mark.parametrize("is_lazy", [False, True], ids=["decoded", "read when needed"])
def test_a_change_under_the_same_size_and_time_is_seen(
    is_lazy: bool, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_lazy:
        monkeypatch.setattr(data_module, "_MAX_DECODED_BYTES", 10)
        monkeypatch.setattr(data_module, "_MAX_WORKERS", 0)
    before = load_data("folder", data_root=tree)
    first, digest = read_all(before.train)[0][0], before.digest()
    assert load_data("folder", data_root=tree).digest() == digest
    path = tree / "train" / "cat" / "0.bmp"
    old = path.stat()
    Image.new("RGB", (6, 6), (255, 255, 255)).save(path)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)
    after = load_data("folder", data_root=tree)
    assert not torch.equal(read_all(after.train)[0][0], first)
    assert after.digest() != digest


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """CIFAR-10 as files of images: four of each class in each split."""
    rng = np.random.default_rng(1)
    names = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    for split in ("train", "test"):
        for name in names:
            folder = tmp_path / "cifar" / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "cifar"


def test_a_tree_of_files_stands_for_cifar10(cifar: Path) -> None:
    data = load_data("cifar10", data_root=cifar, n_calibration=10)
    assert (data.name, data.num_classes, data.image_shape) == ("cifar10", 10, (3, 32, 32))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [40, 20, 20]
    images, labels = read_all(data.train)
    pixels = np.asarray(Image.open(cifar / "train" / "airplane" / "0.png"))
    expected = (pixels / 255 - (0.4914, 0.4822, 0.4465)) / (0.2470, 0.2435, 0.2616)
    torch.testing.assert_close(images[0], torch.tensor(expected).float().permute(2, 0, 1))
    assert labels.tolist() == [label for label in range(10) for _ in range(4)]


def test_a_tree_that_is_not_cifar10_is_refused(cifar: Path) -> None:
    (cifar / "test" / "truck").rename(cifar / "test" / "train")
    with pytest.raises(ValueError, match=r"train/ has no train, test/ has no truck$"):
        load_data("cifar10", data_root=cifar)
    (cifar / "test" / "train").rename(cifar / "test" / "truck")
    with pytest.raises(ValueError, match=r"expected 100 classes in train/ and test/ of .*, got 10"):
        load_data("cifar100", data_root=cifar)
    Image.new("RGB", (16, 16)).save(cifar / "train" / "bird" / "1.png")
    message = (
        r"^cifar10: .*1\.png has shape \(3, 16, 16\), its images have \(3, 32, 32\): scale it to "
        r"32x32, or load the tree as the data set folder with size= \(--image-size\)$"
    )
    with pytest.raises(ValueError, match=message):
        load_data("cifar10", data_root=cifar)
    assert load_data("folder", data_root=cifar, size=32).image_shape == (3, 32, 32)
    (cifar / "train" / "bird" / "1.png").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"^cifar10: cannot read the image .*1\.png"):
        load_data("cifar10", data_root=cifar)


def test_cifar10_without_its_test_images_is_refused(cifar: Path) -> None:
    (cifar / "test").rename(cifar / "other")
    message = (
        "^cifar10: expected a tree of train/CLASS and test/CLASS in .*, there is no test/; name "
        r"another directory with data_root= \(--data-root\)$"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load_data("cifar10", data_root=cifar)
