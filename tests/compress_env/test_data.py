"""Tests of the image sources, the bundles and the named data sets."""

import logging
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from compress_env import data as data_module
from compress_env.data import (
    DATASETS,
    DataBundle,
    DatasetSource,
    ImageSource,
    RandomCropFlip,
    TensorSource,
    cache_dir,
    load_data,
    make_data_bundle,
    stratified_split,
)

REAL_DATA = Path(
    os.environ.get("COMPRESS_ENV_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path / "cache"))


def _images(n: int = 6, channels: int = 1, side: int = 4) -> Tensor:
    count = n * channels * side * side
    return (torch.arange(count) % 256).to(torch.uint8).reshape(n, channels, side, side)


def _all(source: ImageSource, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    return next(iter(source.batches([torch.arange(len(source))], generator=generator)))


def _sizes(bundle: DataBundle) -> tuple[int, int, int, int]:
    return (
        len(bundle.train),
        len(bundle.calibration),
        len(bundle.validation),
        len(bundle.test),
    )


def _row_set(source: ImageSource) -> set[bytes]:
    return {image.numpy().tobytes() for image in _all(source)[0]}


class Listed(Dataset[tuple[Any, int]]):
    """A map-style data set without a `targets` attribute."""

    def __init__(self, images: Any, labels: list[int]) -> None:
        """Take indexable images and their labels."""
        self.images, self.labels = images, labels
        self.n_read = 0

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return an image and its label, and count it."""
        self.n_read += 1
        return self.images[index], self.labels[index]


class Targeted(Listed):
    """A map-style data set with `targets`, as torchvision's have."""

    @property
    def targets(self) -> list[int]:
        """The labels."""
        return self.labels


class Noisy(Listed):
    """A map-style data set with a random transform."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return a random image and a label."""
        return torch.rand(1, 2, 2), self.labels[index]


# Image sources


def test_tensor_source_scales_and_normalises_uint8() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
    source = TensorSource(images, torch.tensor([0, 1, 2]), mean=[0.2], std=[0.5])
    batch, labels = _all(source)
    torch.testing.assert_close(batch.flatten(), torch.tensor([-0.4, 0.0, 1.6]))
    assert batch.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_tensor_source_uses_floats_as_they_are() -> None:
    images = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    batch, _ = _all(TensorSource(images, torch.zeros(3, dtype=torch.int32)))
    torch.testing.assert_close(batch, images.float())


def test_tensor_source_yields_the_asked_indices_in_order() -> None:
    source = TensorSource(_images(), torch.arange(6))
    wanted = [torch.tensor([5, 0]), torch.tensor([3])]
    batches = list(source.batches(wanted))
    assert [labels.tolist() for _, labels in batches] == [[5, 0], [3]]
    torch.testing.assert_close(batches[1][0], _images()[3:4] / 255)


def test_tensor_source_subset_keeps_order_and_preprocessing() -> None:
    source = TensorSource(_images(), torch.arange(6), mean=[0.5], std=[2.0])
    subset = source.subset(torch.tensor([4, 1]))
    assert len(subset) == 2
    assert subset.labels.tolist() == [4, 1]
    assert torch.equal(_all(subset)[0], _all(source)[0][[4, 1]])


def test_tensor_source_augments_only_with_a_generator() -> None:
    source = TensorSource(
        _images(), torch.arange(6), mean=[0.5], augment=lambda images, _: images * 0
    )
    assert not torch.equal(_all(source)[0], torch.full((6, 1, 4, 4), -0.5))
    # Augmented before normalisation: 0 - 0.5.
    assert torch.equal(_all(source, torch.Generator())[0], torch.full((6, 1, 4, 4), -0.5))


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (torch.zeros(2, 4, 4), [0, 1], {}, r"\(n, C, H, W\).*\(2, 4, 4\)"),
        (torch.zeros(0, 1, 4, 4), [], {}, r"none of them 0"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.int32), [0, 1], {}, "uint8 or floating.*int32"),
        (torch.full((2, 1, 4, 4), torch.nan), [0, 1], {}, "NaN"),
        (torch.zeros(2, 1, 4, 4), [0.0, 1.0], {}, "1-d and integer.*float32"),
        (torch.zeros(2, 1, 4, 4), [[0, 1]], {}, r"1-d and integer.*\(1, 2\)"),
        (torch.zeros(2, 1, 4, 4), [True, False], {}, "integer.*bool"),
        (torch.zeros(2, 1, 4, 4), [0, 1, 2], {}, "each of 2 images, got 3"),
        (torch.zeros(2, 3, 4, 4), [0, 1], {"mean": [0.5]}, "mean needs 3"),
        (torch.zeros(2, 1, 4, 4), [0, 1], {"std": [0.0]}, "std must be positive"),
    ],
    ids=[
        "3-d", "empty", "int32", "nan", "float-labels", "2-d-labels", "bool-labels", "length",
        "mean", "std",
    ],
)  # fmt: skip
def test_tensor_source_rejects(
    images: Tensor, labels: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TensorSource(images, torch.tensor(labels), **options)


@pytest.mark.parametrize("kind", ["tensor", "dataset"])
def test_empty_subset_is_refused(kind: str) -> None:
    labels = torch.arange(6)
    plain = TensorDataset(_images(), labels)
    source = TensorSource(_images(), labels) if kind == "tensor" else DatasetSource(plain)
    with pytest.raises(ValueError, match="empty"):
        source.subset(torch.tensor([], dtype=torch.int64))


def test_random_crop_yields_crops_of_the_padded_image() -> None:
    images = torch.rand(20, 2, 5, 6)
    crops = RandomCropFlip(padding=2, flip=False)(images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, [2, 2, 2, 2])
    shifts = set()
    for image, crop in zip(padded, crops, strict=True):
        matches = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(image[:, y : y + 5, x : x + 6], crop)
        ]
        assert len(matches) == 1
        shifts.update(matches)
    assert len(shifts) > 5


def test_random_flip_mirrors_about_half_of_the_images() -> None:
    images = torch.rand(200, 1, 3, 4)
    flipped = RandomCropFlip(padding=0)(images, torch.Generator().manual_seed(0))
    is_mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)]
    is_same = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(is_mirrored, is_same, strict=True))
    assert 60 < sum(is_mirrored) < 140


def test_augmentation_follows_its_generator_and_leaves_the_global_state_alone() -> None:
    source = TensorSource(_images(), torch.arange(6), augment=RandomCropFlip(2))
    before = torch.get_rng_state()
    first, again, other = (_all(source, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_dataset_source_agrees_with_tensor_source(num_workers: int) -> None:
    labels = torch.arange(6)
    options: dict[str, Any] = {"mean": [0.5], "std": [0.3], "augment": RandomCropFlip(1)}
    in_memory = TensorSource(_images(), labels, **options)
    read = DatasetSource(TensorDataset(_images(), labels), num_workers=num_workers, **options)
    batches = [torch.tensor([5, 0]), torch.tensor([3, 2])]
    for a, b in zip(in_memory.batches(batches), read.batches(batches), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_dataset_source_random_transforms_depend_on_the_generator_alone() -> None:
    noisy = Noisy(None, [0, 1, 2, 3])
    batches = [torch.tensor([0, 1]), torch.tensor([2, 3])]

    def images(num_workers: int, seed: int | None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        source = DatasetSource(noisy, num_workers=num_workers)
        return torch.cat([x for x, _ in source.batches(batches, generator=generator)])

    before = torch.get_rng_state()
    assert torch.equal(images(0, 7), images(2, 7))
    assert not torch.equal(images(0, 7), images(0, 8))
    assert torch.equal(images(0, None), images(0, None))
    assert torch.equal(torch.get_rng_state(), before)


def test_dataset_source_reads_the_augmented_view_only_with_a_generator() -> None:
    labels = torch.arange(2)
    plain = TensorDataset(torch.zeros(2, 1, 2, 2), labels)
    augmented = TensorDataset(torch.ones(2, 1, 2, 2), labels)
    source = DatasetSource(plain, augmented=augmented).subset(torch.tensor([1, 0]))
    assert float(_all(source)[0].max()) == 0
    assert float(_all(source, torch.Generator())[0].min()) == 1


def test_dataset_source_takes_labels_from_targets_without_reading() -> None:
    dataset = Targeted(torch.zeros(4, 1, 2, 2), [3, 1, 2, 0])
    assert DatasetSource(Subset(dataset, [2, 0])).labels.tolist() == [2, 3]
    assert dataset.n_read == 1  # the first image, whose shape is checked


def test_dataset_source_reads_labels_where_targets_do_not_tell() -> None:
    listed = Listed(torch.zeros(4, 1, 2, 2), [3, 1, 2, 0])
    transformed = Targeted(torch.zeros(4, 1, 2, 2), [3, 1, 2, 0])
    transformed.target_transform = lambda label: label  # type: ignore[attr-defined]
    assert DatasetSource(listed).labels.tolist() == [3, 1, 2, 0]
    assert DatasetSource(transformed).labels.tolist() == [3, 1, 2, 0]
    assert transformed.n_read == 5


def test_dataset_source_rejects_images_that_are_no_tensors() -> None:
    dataset = Listed([Image.new("L", (4, 4))], [0])
    with pytest.raises(TypeError, match=r"Image.*ToTensor\(\)"):
        DatasetSource(dataset)


def test_dataset_source_rejects_an_augmented_view_of_another_length() -> None:
    short, long = (TensorDataset(_images(n), torch.arange(n)) for n in (2, 3))
    with pytest.raises(ValueError, match="2 images"):
        DatasetSource(short, augmented=long)


# Splits and bundles


@settings(deadline=None, max_examples=50)
@given(
    labels=st.lists(st.integers(0, 4), min_size=3, max_size=60),
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_stratified_split_draws_disjoint_sets_in_proportion(
    labels: list[int], seed: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(1, len(labels) - 1))
    second = data.draw(st.integers(1, len(labels) - first))
    pieces = stratified_split(torch.tensor(labels), [first, second], seed)
    assert [len(piece) for piece in pieces] == [first, second]
    assert len(set(torch.cat(pieces).tolist())) == first + second
    for label in set(labels):
        share = labels.count(label) / len(labels)
        for piece in pieces:
            count = int((torch.tensor(labels)[piece] == label).sum())
            assert abs(count - share * len(piece)) <= 3


def test_stratified_split_of_balanced_classes_is_exact_and_seeded() -> None:
    labels = torch.arange(10).repeat(20)
    first, second = stratified_split(labels, [50, 150], seed=3)
    assert torch.bincount(labels[first]).tolist() == [5] * 10
    assert torch.bincount(labels[second]).tolist() == [15] * 10
    assert torch.equal(first, stratified_split(labels, [50], seed=3)[0])
    assert not torch.equal(first, stratified_split(labels, [50], seed=4)[0])


@pytest.mark.parametrize("sizes", [[0, 2], [3, 3]], ids=["empty", "too-many"])
def test_stratified_split_rejects(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="cannot draw"):
        stratified_split(torch.zeros(5, dtype=torch.int64), sizes, 0)


def _custom(n_train: int = 40, n_test: int = 20, **options: Any) -> DataBundle:
    images = torch.rand(n_train + n_test, 1, 4, 4)
    labels = torch.arange(n_train + n_test) % 4
    train = TensorDataset(images[:n_train], labels[:n_train])
    test = TensorDataset(images[n_train:], labels[n_train:])
    return make_data_bundle(train, test, **options)


def test_make_data_bundle_splits_test_and_draws_calibration_from_train() -> None:
    bundle = _custom(n_calibration=8, validation_fraction=0.4)
    assert _sizes(bundle) == (40, 8, 8, 12)
    assert (bundle.name, bundle.num_classes, bundle.image_shape) == ("custom", 4, (1, 4, 4))
    assert torch.bincount(bundle.calibration.labels).tolist() == [2] * 4
    assert torch.bincount(bundle.validation.labels).tolist() == [2] * 4
    train, calibration, validation, test = map(
        _row_set, (bundle.train, bundle.calibration, bundle.validation, bundle.test)
    )
    assert calibration < train
    assert not (train & validation or train & test or validation & test)


def test_make_data_bundle_reads_map_style_sets_when_needed() -> None:
    images, labels = torch.rand(12, 1, 4, 4), [0, 1] * 6
    bundle = make_data_bundle(
        Targeted(images, labels), Targeted(images, labels), name="mine", num_classes=5
    )
    assert isinstance(bundle.train, DatasetSource)
    assert _sizes(bundle) == (12, 12, 6, 6)
    assert (bundle.name, bundle.num_classes) == ("mine", 5)
    torch.testing.assert_close(_all(bundle.train)[0], images)


def test_make_data_bundle_augments_training_images_only() -> None:
    bundle = _custom(augment=lambda images, _: images * 0)
    assert float(_all(bundle.train, torch.Generator())[0].abs().max()) == 0
    assert float(_all(bundle.test, torch.Generator())[0].abs().max()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 1.0}, r"validation_fraction must be in \(0, 1\), got 1.0"),
        ({"validation_fraction": 0.001}, "cannot draw"),
        ({"n_calibration": 0}, "n_calibration must be at least 1, got 0"),
        ({"num_classes": 3}, r"train labels out of range: expected 0\.\.2, got 3"),
    ],
    ids=["fraction", "empty-validation", "calibration", "classes"],
)
def test_make_data_bundle_rejects(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _custom(**options)


def test_make_data_bundle_rejects_negative_labels() -> None:
    train, test = (TensorDataset(torch.rand(4, 1, 2, 2), torch.arange(4) - 1) for _ in range(2))
    with pytest.raises(ValueError, match=r"out of range: expected 0\.\.2, got -1"):
        make_data_bundle(train, test)


def test_make_data_bundle_rejects_a_tensor_data_set_without_labels() -> None:
    train = TensorDataset(torch.rand(4, 1, 2, 2))
    with pytest.raises(ValueError, match=r"\(images, labels\), got 1"):
        make_data_bundle(train, train)


def test_bundle_rejects_other_image_shapes() -> None:
    train = TensorDataset(torch.rand(4, 1, 2, 2), torch.arange(4))
    test = TensorDataset(torch.rand(4, 1, 3, 3), torch.arange(4))
    with pytest.raises(ValueError, match=r"validation images must have shape \(1, 2, 2\)"):
        make_data_bundle(train, test)


def test_bundle_moves_and_pickles() -> None:
    bundle = _custom(augment=RandomCropFlip(1))
    for copied in (bundle.to("cpu"), pickle.loads(pickle.dumps(bundle))):
        assert _sizes(copied) == _sizes(bundle)
        assert torch.equal(_all(copied.validation)[0], _all(bundle.validation)[0])


@pytest.mark.gpu
def test_bundle_yields_the_same_images_on_the_gpu() -> None:
    bundle = _custom(augment=RandomCropFlip(1))
    on_gpu = bundle.to("cuda")
    images, labels = _all(on_gpu.train, torch.Generator().manual_seed(0))
    assert (images.device.type, labels.device.type) == ("cuda", "cuda")
    expected = _all(bundle.train, torch.Generator().manual_seed(0))[0]
    torch.testing.assert_close(images.cpu(), expected)


# Named data sets


@pytest.mark.parametrize("size", [16, 32])
def test_digits(size: int) -> None:
    bundle = load_data("digits", size=size)
    assert _sizes(bundle) == (1079, 512, 359, 359)
    assert (bundle.num_classes, bundle.image_shape) == (10, (1, size, size))
    images, _ = _all(bundle.train)
    assert abs(float(images.mean())) < 1e-3
    assert abs(float(images.std()) - 1) < 1e-3
    train, validation, test = map(_row_set, (bundle.train, bundle.validation, bundle.test))
    assert not (train & validation or train & test or validation & test)
    assert int(torch.bincount(bundle.validation.labels).min()) >= 34


def test_digits_splits_follow_the_seed() -> None:
    first, again, other = (load_data("digits", seed=seed).test.labels for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("minst", None, "unknown data set 'minst'; valid names: digits, mnist"),
        ("digits", 0, "size must be at least 1, got 0"),
        ("digits", 7, "at least 8, got 7"),
        ("mnist", 32, "mnist images keep their size"),
    ],
)
def test_load_data_rejects(name: str, size: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(name, size=size)


@pytest.mark.skipif(not (REAL_DATA / "MNIST").is_dir(), reason="needs the MNIST files")
def test_mnist() -> None:
    bundle = load_data("mnist", data_root=REAL_DATA)
    assert _sizes(bundle) == (50_000, 512, 5_000, 5_000)
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
    images = _images(40, 1, 28)[:, 0]
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
    images = _images(40, 3, 32)
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
    assert (bundle.name, _sizes(bundle)) == (name, (40, 10, 20, 20))
    assert bundle.image_shape == (1, 28, 28)
    builder = DATASETS[name]
    expected = (images / 255 - builder.mean[0]) / builder.std[0]  # type: ignore[attr-defined]
    torch.testing.assert_close(_all(bundle.train)[0], expected)


@pytest.mark.parametrize(("name", "num_classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_files(
    name: str, num_classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torchvision.datasets.cifar, "check_integrity", lambda path, md5: os.path.isfile(path)
    )
    images = _write_cifar(tmp_path, name)
    bundle = load_data(name, data_root=tmp_path, n_calibration=10)
    assert (bundle.num_classes, _sizes(bundle)) == (num_classes, (40, 10, 20, 20))
    builder = DATASETS[name]
    mean = torch.tensor(builder.mean)[:, None, None]  # type: ignore[attr-defined]
    std = torch.tensor(builder.std)[:, None, None]  # type: ignore[attr-defined]
    torch.testing.assert_close(_all(bundle.train)[0], (images / 255 - mean) / std)
    augmented = _all(bundle.train, torch.Generator().manual_seed(0))[0]
    assert not torch.equal(augmented, _all(bundle.train)[0])


def test_at_most_50_000_training_images_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_module, "_MAX_TRAIN_IMAGES", 30)
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


# Folders and ImageNet


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
    assert _sizes(bundle) == (8, 2, 4, 4)
    assert (bundle.num_classes, bundle.image_shape) == (2, (3, 8, 8))
    assert bundle.train.labels.tolist() == [0] * 4 + [1] * 4
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (data_module._IMAGENET_MEAN, data_module._IMAGENET_STD)
    )
    expected = (_first_pixels(tree / "train" / "dog" / "0.png") / 255 - mean) / std
    torch.testing.assert_close(_all(bundle.train)[0][4], expected)


def test_folder_takes_val_and_test_as_they_are(tmp_path: Path) -> None:
    _write_tree(tmp_path, ("train", "val", "test"), n=3)
    bundle = load_data("folder", data_root=tmp_path)
    assert _sizes(bundle) == (6, 6, 6, 6)


def test_folder_reads_large_trees_when_needed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = load_data("folder", data_root=tree)
    monkeypatch.setattr(data_module, "_MAX_DECODED_BYTES", 100)
    read = load_data("folder", data_root=tree)
    assert isinstance(in_memory.train, TensorSource)
    assert isinstance(read.train, DatasetSource)
    for seed in (None, 3):
        a, b = (
            _all(bundle.train, None if seed is None else torch.Generator().manual_seed(seed))[0]
            for bundle in (in_memory, read)
        )
        assert a.shape == b.shape
        assert seed is not None or torch.equal(a, b)
    assert not torch.equal(_all(read.train, torch.Generator())[0], _all(read.train)[0])


def test_folder_decodes_once(tree: Path) -> None:
    first = load_data("folder", data_root=tree)
    cached = sorted((cache_dir() / "images").glob("*.npy"))
    assert len(cached) == 2
    for path in cached:
        np.save(path, np.zeros_like(np.load(path)))
    second = load_data("folder", data_root=tree)
    assert float(_all(first.train)[0].std()) > 0.5
    assert len(_row_set(second.train)) == 1


def test_folder_decodes_again_when_a_file_changes(tree: Path) -> None:
    load_data("folder", data_root=tree)
    path = tree / "train" / "cat" / "0.png"
    Image.new("RGB", (8, 8), (255, 255, 255)).save(path)
    os.utime(path, ns=(1, 1))
    images, _ = _all(load_data("folder", data_root=tree).train)
    assert float(images[0].min()) > 2


@pytest.mark.parametrize("damage", [b"", b"garbage", None], ids=["empty", "garbage", "truncated"])
def test_folder_decodes_again_when_the_cache_is_corrupt(
    tree: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    expected = _all(load_data("folder", data_root=tree).train)[0]
    for path in (cache_dir() / "images").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-10] if damage is None else damage)
    assert torch.equal(_all(load_data("folder", data_root=tree).train)[0], expected)
    assert "decoding again" in caplog.text


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
    with pytest.raises(ValueError, match="classes in test/ differ"):
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
    assert _sizes(bundle) == (8, 8, 4, 4)
    assert (bundle.num_classes, bundle.image_shape) == (2, (3, 14, 14))
    plain = _all(bundle.train)[0]
    first, again = (_all(bundle.train, torch.Generator().manual_seed(s))[0] for s in (1, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, plain)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda root: (root / "meta.bin").unlink(), FileNotFoundError, "devkit_t12"),
        (lambda root: (root / "val").rename(root / "v"), FileNotFoundError, "img_val.tar"),
        (lambda root: (root / "meta.bin").write_bytes(b"garbage"), ValueError, "corrupt file"),
    ],
    ids=["no-devkit", "no-val", "corrupt"],
)
def test_imagenet_explains_what_is_wrong(
    damage: Callable[[Path], object], error: type[Exception], message: str, imagenet: Path
) -> None:
    damage(imagenet / "imagenet")
    with pytest.raises(error, match=message) as caught:
        load_data("imagenet", data_root=imagenet)
    assert "\n" not in str(caught.value)
