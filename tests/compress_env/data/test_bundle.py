"""Tests of the named data sets."""

import os
import pickle
import struct
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor
from torch.utils.data import TensorDataset

from compress_env.data import official
from compress_env.data.bundle import (
    DATASETS,
    RandomCropFlip,
    TensorSource,
    cache_dir,
    load_data,
    make_data_bundle,
)
from tests.fakes import DATA_ROOT, gradient_images, image_set, read_all, set_sizes


@pytest.mark.parametrize("size", [16, 32])
def test_digits(size: int) -> None:
    bundle = load_data("digits", size=size)
    assert set_sizes(bundle) == (1079, 512, 359, 359)
    assert (bundle.num_classes, bundle.image_shape) == (10, (1, size, size))
    images, _ = read_all(bundle.train)
    assert abs(float(images.mean())) < 1e-3
    assert abs(float(images.std()) - 1) < 1e-3
    train, validation, test = map(image_set, (bundle.train, bundle.validation, bundle.test))
    assert not (train & validation or train & test or validation & test)
    assert int(torch.bincount(bundle.validation.labels).min()) >= 34


def test_digits16_are_the_digits_at_16x16() -> None:
    named, sized = load_data("digits16"), load_data("digits", size=16)
    assert (named.name, named.image_shape) == ("digits16", (1, 16, 16))
    assert set_sizes(named) == (1079, 128, 359, 359)
    for split in ("train", "validation", "test"):
        assert torch.equal(read_all(getattr(named, split))[0], read_all(getattr(sized, split))[0])


@pytest.mark.parametrize(
    ("name", "side", "n_calibration", "shift"),
    [("digits8", 8, 128, 1), ("digits32", 32, 512, 2)],
    ids=["digits8", "digits32"],
)
def test_more_digits_validate_and_test(
    name: str, side: int, n_calibration: int, shift: int
) -> None:
    bundle = load_data(name)
    assert (bundle.name, bundle.image_shape) == (name, (1, side, side))
    assert set_sizes(bundle) == (719, n_calibration, 539, 539)
    train, validation, test = map(image_set, (bundle.train, bundle.validation, bundle.test))
    assert not (train & validation or train & test or validation & test)
    assert isinstance(bundle.train, TensorSource)
    assert bundle.train._preprocess.augment == RandomCropFlip(padding=shift, flip=False)


def test_digits_splits_follow_the_seed() -> None:
    first, again, other = (load_data("digits", seed=seed).test.labels for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("minst", None, "unknown data set 'minst', did you mean 'mnist'.* valid: digits, digits16"),
        ("digits", 0, r"size must be in \[1, 4096\] pixels, got 0"),
        ("folder", 1_000_000, r"size must be in \[1, 4096\] pixels, got 1000000"),
        ("digits", 7, r"in \[8, 256\], got 7"),
        ("digits", 300, r"in \[8, 256\], got 300"),
        ("mnist", 32, "mnist images keep their size"),
    ],
)
def test_load_data_rejects(name: str, size: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(name, size=size)


@pytest.mark.skipif(not (DATA_ROOT / "MNIST").is_dir(), reason="needs the MNIST files")
def test_mnist() -> None:
    bundle = load_data("mnist", data_root=DATA_ROOT)
    assert set_sizes(bundle) == (50_000, 512, 5_000, 5_000)
    assert (bundle.num_classes, bundle.image_shape) == (10, (1, 28, 28))
    validation, test = (torch.bincount(s.labels) for s in (bundle.validation, bundle.test))
    assert int((validation - test).abs().max()) <= 1
    images, _ = next(iter(bundle.train.batches([torch.arange(10_000)])))
    assert abs(float(images.mean())) < 0.02
    assert abs(float(images.std()) - 1) < 0.02


def _write_idx(path: Path, values: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    path.write_bytes(header + values.numpy().tobytes())


def _write_mnist(root: Path, name: str) -> Tensor:
    images = gradient_images(40, 1, 28)[:, 0]
    for split in ("train", "t10k"):
        _write_idx(root / name / "raw" / f"{split}-images-idx3-ubyte", images)
        labels = (torch.arange(40) % 10).to(torch.uint8)
        _write_idx(root / name / "raw" / f"{split}-labels-idx1-ubyte", labels)
    return images[:, None]


def _write_cifar(root: Path, name: str) -> Tensor:
    reader = DATASETS[name].reader  # type: ignore[attr-defined]
    directory = root / reader.base_folder
    directory.mkdir(parents=True)
    per_file = 40 // len(reader.train_list)
    images = gradient_images(40, 3, 32)
    key = "labels" if name == "cifar10" else "fine_labels"
    for start, (file, _) in enumerate(reader.train_list):
        rows = images[start * per_file : (start + 1) * per_file].flatten(1).numpy()
        batch = {"data": rows, key: [i % 10 for i in range(len(rows))]}
        (directory / file).write_bytes(pickle.dumps(batch))
    batch = {"data": images.flatten(1).numpy(), key: [i % 10 for i in range(40)]}
    (directory / reader.test_list[0][0]).write_bytes(pickle.dumps(batch))
    meta = {reader.meta["key"]: [str(i) for i in range(10)]}
    (directory / reader.meta["filename"]).write_bytes(pickle.dumps(meta))
    return images


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_mnist_files(name: str, folder: str, tmp_path: Path) -> None:
    images = _write_mnist(tmp_path, folder)
    bundle = load_data(name, data_root=tmp_path, n_calibration=10)
    assert (bundle.name, set_sizes(bundle)) == (name, (40, 10, 20, 20))
    assert bundle.image_shape == (1, 28, 28)
    builder = DATASETS[name]
    expected = (images / 255 - builder.mean[0]) / builder.std[0]  # type: ignore[attr-defined]
    torch.testing.assert_close(read_all(bundle.train)[0], expected)


@pytest.mark.parametrize(("name", "num_classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_files(
    name: str, num_classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torchvision.datasets.cifar, "check_integrity", lambda path, md5: os.path.isfile(path)
    )
    images = _write_cifar(tmp_path, name)
    bundle = load_data(name, data_root=tmp_path, n_calibration=10)
    assert (bundle.num_classes, set_sizes(bundle)) == (num_classes, (40, 10, 20, 20))
    builder = DATASETS[name]
    mean = torch.tensor(builder.mean)[:, None, None]  # type: ignore[attr-defined]
    std = torch.tensor(builder.std)[:, None, None]  # type: ignore[attr-defined]
    torch.testing.assert_close(read_all(bundle.train)[0], (images / 255 - mean) / std)
    augmented = read_all(bundle.train, torch.Generator().manual_seed(0))[0]
    assert not torch.equal(augmented, read_all(bundle.train)[0])


def test_at_most_50_000_training_images_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(official, "_MAX_TRAIN_IMAGES", 30)
    _write_mnist(tmp_path, "MNIST")
    bundle = load_data("mnist", data_root=tmp_path)
    assert torch.bincount(bundle.train.labels).tolist() == [3] * 10


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_missing_files_are_explained(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPRESS_ENV_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"--download.*--data-root") as caught:
        load_data(name)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_failed_download_is_explained(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise URLError("no route to host")

    for module in (torchvision.datasets.mnist, torchvision.datasets.cifar):
        monkeypatch.setattr(module, "download_and_extract_archive", offline)
    with pytest.raises(ConnectionError, match=f"{name}: cannot download to ") as caught:
        load_data(name, data_root=tmp_path, download=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 3, 8, 100])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_truncated_files_are_explained(file: str, length: int, tmp_path: Path) -> None:
    _write_mnist(tmp_path, "MNIST")
    path = tmp_path / "MNIST" / "raw" / file
    path.write_bytes(path.read_bytes()[: min(length, path.stat().st_size - 1)])
    with pytest.raises(ValueError, match=r"corrupt file in .*raw.*delete") as caught:
        load_data("mnist", data_root=tmp_path)
    assert "\n" not in str(caught.value)


def test_cifar_files_with_another_checksum_are_never_unpickled(tmp_path: Path) -> None:
    _write_cifar(tmp_path, "cifar10")
    with pytest.raises(ValueError, match=r"corrupt file in .*cifar-10-batches-py"):
        load_data("cifar10", data_root=tmp_path)


def test_cache_dir_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("COMPRESS_ENV_CACHE")
    assert cache_dir().name == "compress-env"


def test_images_that_require_gradients_are_taken_without() -> None:
    source = TensorSource(torch.zeros(4, 1, 2, 2, requires_grad=True), torch.arange(4))
    ((images, _),) = source.batches([torch.arange(4)])
    assert not images.requires_grad


def test_one_test_image_is_too_few() -> None:
    many, one = (TensorDataset(torch.zeros(n, 1, 2, 2), torch.zeros(n).long()) for n in (6, 1))
    with pytest.raises(ValueError, match=r"at least 2 images for validation and test, got 1$"):
        make_data_bundle(many, one)
