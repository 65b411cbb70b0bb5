"""Tests of reading the items of map-style data sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from compress_env.data import items
from compress_env.data.bundle import DataBundle, DatasetSource, TensorSource, make_data_bundle
from compress_env.data.items import item_labels
from tests.fakes import gradient_images, read_all


class Renamed(Dataset[Any]):
    """Lists labels that some of its items do not have."""

    def __init__(self, n: int, start: int = 0, stop: int = 10**6) -> None:
        """Make n items, those of `start` to `stop` with another label than the list says."""
        self.targets = [index % 2 for index in range(n)]
        self.others = range(start, stop)
        self.n_read = 0

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image that shows the number of the item, and its label."""
        self.n_read += 1
        label = self.targets[index] ^ (index in self.others)
        return torch.full((1, 2, 2), float(index)), label

    @property
    def truth(self) -> list[int]:
        """The labels of the items."""
        return [self[index][1] for index in range(len(self))]


class Relabelled(TensorDataset):
    """Changes the labels of its tensors."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """Return an image and another label than that beside it."""
        images, labels = self.tensors
        return images[index], 1 - labels[index]


class RelabelledSubset(Subset[Any]):
    """Changes the labels of the items below."""

    def __getitem__(self, index: Any) -> Any:
        """Return an image and another label than the data set below has."""
        image, label = self.dataset[self.indices[index]]
        return image + 1, 1 - label

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """Return several items."""
        return [self[index] for index in indices]


class Pairs(Dataset[Any]):
    """Yields what it is given."""

    def __init__(self, *pairs: Any) -> None:
        """Take the items."""
        self.pairs = pairs

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        """Return an item."""
        return self.pairs[index]


@given(n=st.integers(2, 40), start=st.integers(0, 40), seed=st.integers(0, 5))
def test_labels_are_those_of_the_items(n: int, start: int, seed: int) -> None:
    dataset = Renamed(n, start)
    indices = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: max(1, n // 2)]
    for view in (dataset, Subset(dataset, indices.tolist())):
        truth = [view[index][1] for index in range(len(view))]
        source = DatasetSource(view)
        assert read_all(source)[1].tolist() == truth
        found = item_labels(view)
        assert found is not None and found.tolist() == truth


def test_bundles_have_the_labels_of_the_items() -> None:
    bundle = make_data_bundle(Renamed(64, 3), Renamed(32, 3), n_calibration=10)
    assert bundle.train.labels.tolist() == Renamed(64, 3).truth
    for source in (bundle.train, bundle.calibration, bundle.validation, bundle.test):
        images, labels = read_all(source)
        truth = [Renamed(64, 3)[int(image[0, 0, 0])][1] for image in images]
        assert labels.tolist() == source.labels.tolist() == truth


@pytest.mark.parametrize("num_workers", [0, 2])
def test_of_many_items_a_sample_is_compared_and_minibatches_have_the_items_labels(
    num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(items, "_N_COMPARED", 8)
    dataset = Renamed(64, 63)  # the sample has the last item: all are read
    found = item_labels(dataset)
    assert found is not None and found.tolist() == Renamed(64, 63).truth
    hidden = Renamed(64, 62, 63)  # the sample misses item 62
    assert item_labels(hidden) is None
    source = DatasetSource(hidden, num_workers=num_workers)
    batches = list(source.batches([torch.tensor([0, 62]), torch.tensor([63])]))
    assert [labels.tolist() for _, labels in batches] == [[0, 1], [1]]
    assert hidden.truth[62:] == [1, 1]


def test_what_only_looks_like_a_known_data_set_is_read() -> None:
    images, labels = torch.rand(8, 1, 2, 2), torch.arange(8) % 2
    derived = Relabelled(images, labels)
    assert make_data_bundle(derived, derived).train.labels.tolist() == (1 - labels).tolist()
    subset = RelabelledSubset(TensorDataset(images, labels), [1, 2])
    assert DatasetSource(subset).labels.tolist() == [0, 1]
    assert read_all(DatasetSource(subset))[1].tolist() == [0, 1]
    below = DatasetSource(Subset(TensorDataset(images, labels), [1, 2]))
    assert DatasetSource(subset).digest() != below.digest()


def test_labels_that_are_given_are_used() -> None:
    source = DatasetSource(Renamed(4), labels=torch.tensor([5, 6, 7, 8]))
    assert read_all(source)[1].tolist() == [5, 6, 7, 8]


IMAGE = torch.zeros(1, 2, 2)


@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        (1.0, ValueError, "labels must be integers.*image 0 is 1.0"),
        ("cat", ValueError, "labels must be integers.*'cat'"),
        (torch.tensor([0, 1]), ValueError, "labels must be integers"),
        (None, ValueError, "labels must be integers.*None"),
    ],
    ids=["float", "name", "one-hot", "none"],
)
def test_labels_that_are_no_integers_are_refused(
    label: Any, error: type[Exception], message: str
) -> None:
    dataset = Pairs((IMAGE, label), (IMAGE, label))
    for make in (DatasetSource, lambda data: make_data_bundle(data, data)):
        with pytest.raises(error, match=message) as caught:
            make(dataset)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("item", [(IMAGE,), {"image": IMAGE}, 3], ids=["alone", "dict", "number"])
def test_items_without_a_label_are_refused(item: Any) -> None:
    with pytest.raises(TypeError, match=r"must yield \(image tensor, label\), got"):
        DatasetSource(Pairs(item))


@pytest.mark.parametrize("label", [np.int64(1), torch.tensor(1), torch.tensor([1]), True], ids=str)
def test_labels_of_any_integer_type_are_taken(label: Any) -> None:
    assert DatasetSource(Pairs((IMAGE, label))).labels.tolist() == [1]


@pytest.mark.parametrize(
    "other",
    [torch.zeros(1, 2, 2, dtype=torch.uint8), torch.zeros(1, 2, 3), torch.zeros(3, 2, 2)],
    ids=["type", "width", "channels"],
)
def test_images_unlike_the_first_are_refused(other: Tensor) -> None:
    source = DatasetSource(Pairs((IMAGE, 0), (other, 1)))
    with pytest.raises(ValueError, match=r"the image 1 is torch\.\w+ of shape .* the first one"):
        read_all(source)


@pytest.mark.parametrize(
    "make",
    [
        lambda images, labels: TensorSource(images, labels),
        lambda images, labels: DatasetSource(TensorDataset(images, labels)),
    ],
    ids=["in memory", "read"],
)
def test_images_of_16_bits_are_scaled(make: Callable[[Tensor, Tensor], Any]) -> None:
    wide = (gradient_images().to(torch.int32) * 257).to(torch.uint16)
    labels = torch.arange(len(wide))
    images, _ = read_all(make(wide, labels))
    assert torch.allclose(images, gradient_images() / 255)
    for unknown in (torch.int16, torch.int32, torch.int64, torch.bool):
        with pytest.raises(ValueError, match=r"images must be uint8 or floating.*not known"):
            make(gradient_images().to(unknown), labels)


def _bundle(labels: Tensor, **options: Any) -> DataBundle:
    dataset = TensorDataset(torch.rand(len(labels), 1, 2, 2), labels)
    return make_data_bundle(dataset, dataset, **options)


def test_labels_from_1_are_explained() -> None:
    labels = torch.arange(40) % 4
    with pytest.raises(ValueError, match=r"no image has label 0.*subtract 1.*num_classes="):
        _bundle(labels + 1)
    with pytest.raises(ValueError, match=r"expected 0\.\.3, got 4; labels count from 0.*subtract"):
        _bundle(labels + 1, num_classes=4)
    assert _bundle(labels + 1, num_classes=5).num_classes == 5
    with pytest.raises(ValueError, match=r"1-d and integer, the number of the class.*float32"):
        _bundle(labels.float())


class Numbered(Dataset[Any]):
    """Images that are read one by one."""

    def __init__(self, images: Tensor) -> None:
        """Take the images, (n, C, H, W)."""
        self.images = images

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image, and its number as its label."""
        return self.images[index], index


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_is_not_finite_is_named(value: float, num_workers: int) -> None:
    images = torch.zeros(4, 1, 2, 2)
    images[2, 0, 1, 1] = value
    source = DatasetSource(Numbered(images), num_workers=num_workers)
    assert len(list(source.batches([torch.tensor([0, 1])]))) == 1
    with pytest.raises(ValueError, match=r"^the image 2 contains NaN or infinite values$"):
        list(source.batches([torch.tensor([3, 2])]))
