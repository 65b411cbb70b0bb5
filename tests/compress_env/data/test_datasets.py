"""Tests of the image sources, the splits and the bundles."""

import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from compress_env.data.bundle import (
    DataBundle,
    DatasetSource,
    RandomCropFlip,
    TensorSource,
    make_data_bundle,
    stratified_split,
)
from tests.fakes import gradient_images, image_set, read_all, set_sizes


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


class Broken(Targeted):
    """A map-style data set whose image 3 cannot be read."""

    kind: type[Exception] = OSError

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return an image and its label."""
        if index == 3:
            raise self.kind("first\nsecond")
        return super().__getitem__(index)


# Image sources


def test_tensor_source_scales_and_normalises_uint8() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
    source = TensorSource(images, torch.tensor([0, 1, 2]), mean=[0.2], std=[0.5])
    batch, labels = read_all(source)
    torch.testing.assert_close(batch.flatten(), torch.tensor([-0.4, 0.0, 1.6]))
    assert batch.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_tensor_source_uses_floats_as_they_are() -> None:
    images = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    batch, _ = read_all(TensorSource(images, torch.zeros(3, dtype=torch.int32)))
    torch.testing.assert_close(batch, images.float())


def test_tensor_source_yields_the_asked_indices_in_order() -> None:
    source = TensorSource(gradient_images(), torch.arange(6))
    wanted = [torch.tensor([5, 0]), torch.tensor([3])]
    batches = list(source.batches(wanted))
    assert [labels.tolist() for _, labels in batches] == [[5, 0], [3]]
    torch.testing.assert_close(batches[1][0], gradient_images()[3:4] / 255)


def test_tensor_source_subset_keeps_order_and_preprocessing() -> None:
    source = TensorSource(gradient_images(), torch.arange(6), mean=[0.5], std=[2.0])
    subset = source.subset(torch.tensor([4, 1]))
    assert len(subset) == 2
    assert subset.labels.tolist() == [4, 1]
    assert torch.equal(read_all(subset)[0], read_all(source)[0][[4, 1]])


def test_tensor_source_augments_only_with_a_generator() -> None:
    source = TensorSource(
        gradient_images(), torch.arange(6), mean=[0.5], augment=lambda images, _: images * 0
    )
    assert not torch.equal(read_all(source)[0], torch.full((6, 1, 4, 4), -0.5))
    # Augmented before normalisation: 0 - 0.5.
    assert torch.equal(read_all(source, torch.Generator())[0], torch.full((6, 1, 4, 4), -0.5))


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
    plain = TensorDataset(gradient_images(), labels)
    source = TensorSource(gradient_images(), labels) if kind == "tensor" else DatasetSource(plain)
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
    source = TensorSource(gradient_images(), torch.arange(6), augment=RandomCropFlip(2))
    before = torch.get_rng_state()
    first, again, other = (read_all(source, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_dataset_source_agrees_with_tensor_source(num_workers: int) -> None:
    labels = torch.arange(6)
    options: dict[str, Any] = {"mean": [0.5], "std": [0.3], "augment": RandomCropFlip(1)}
    in_memory = TensorSource(gradient_images(), labels, **options)
    read = DatasetSource(
        TensorDataset(gradient_images(), labels), num_workers=num_workers, **options
    )
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
    assert float(read_all(source)[0].max()) == 0
    assert float(read_all(source, torch.Generator())[0].min()) == 1


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
    short, long = (TensorDataset(gradient_images(n), torch.arange(n)) for n in (2, 3))
    with pytest.raises(ValueError, match="2 images"):
        DatasetSource(short, augmented=long)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", [OSError, ValueError, SyntaxError, KeyError, AssertionError])
def test_dataset_source_names_an_image_that_cannot_be_read(
    kind: type[Exception], num_workers: int
) -> None:
    source = DatasetSource(Broken(torch.zeros(4, 1, 2, 2), [0, 1, 2, 3]), num_workers=num_workers)
    source = source.subset(torch.tensor([0, 3, 1]))
    source._dataset.dataset.kind = kind  # type: ignore[attr-defined]
    expected = ValueError if kind is ValueError else OSError
    said = {KeyError: r"KeyError: 'first\\nsecond'", AssertionError: "AssertionError: first"}
    with pytest.raises(expected, match=rf"^cannot read the image 3: {said.get(kind, 'first')}$"):
        list(source.batches([torch.tensor([0]), torch.tensor([1])]))


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
    assert set_sizes(bundle) == (40, 8, 8, 12)
    assert (bundle.name, bundle.num_classes, bundle.image_shape) == ("custom", 4, (1, 4, 4))
    assert torch.bincount(bundle.calibration.labels).tolist() == [2] * 4
    assert torch.bincount(bundle.validation.labels).tolist() == [2] * 4
    train, calibration, validation, test = map(
        image_set, (bundle.train, bundle.calibration, bundle.validation, bundle.test)
    )
    assert calibration < train
    assert not (train & validation or train & test or validation & test)


def test_make_data_bundle_reads_map_style_sets_when_needed() -> None:
    images, labels = torch.rand(12, 1, 4, 4), [0, 1] * 6
    bundle = make_data_bundle(
        Targeted(images, labels), Targeted(images, labels), name="mine", num_classes=5
    )
    assert isinstance(bundle.train, DatasetSource)
    assert set_sizes(bundle) == (12, 12, 6, 6)
    assert (bundle.name, bundle.num_classes) == ("mine", 5)
    torch.testing.assert_close(read_all(bundle.train)[0], images)


def test_make_data_bundle_augments_training_images_only() -> None:
    bundle = _custom(augment=lambda images, _: images * 0)
    assert float(read_all(bundle.train, torch.Generator())[0].abs().max()) == 0
    assert float(read_all(bundle.test, torch.Generator())[0].abs().max()) > 0


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
        assert set_sizes(copied) == set_sizes(bundle)
        assert torch.equal(read_all(copied.validation)[0], read_all(bundle.validation)[0])


@pytest.mark.gpu
def test_bundle_yields_the_same_images_on_the_gpu() -> None:
    bundle = _custom(augment=RandomCropFlip(1))
    on_gpu = bundle.to("cuda")
    images, labels = read_all(on_gpu.train, torch.Generator().manual_seed(0))
    assert (images.device.type, labels.device.type) == ("cuda", "cuda")
    expected = read_all(bundle.train, torch.Generator().manual_seed(0))[0]
    torch.testing.assert_close(images.cpu(), expected)
