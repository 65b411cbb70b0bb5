"""Every form in which people have images leads to the same bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from compress_env.data.bundle import DataBundle, load_data
from compress_env.data.intake import as_bundle


def pair(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.arange(n) % 4


TRAIN, TEST = pair(40, 0), pair(20, 1)


def tree(root: Path, images: torch.Tensor, labels: torch.Tensor) -> Path:
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        folder = root / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return root


def contents(data: DataBundle) -> list[Any]:
    """Images and labels of the four sets, each set sorted, as a tree sorts by class."""
    found = []
    for source in (data.train, data.validation, data.test):
        images, labels = next(iter(source.batches([torch.arange(len(source))])))
        sums = (images * 255).round().sum(dim=(1, 2, 3)).tolist()
        found.append(sorted(zip(labels.tolist(), sums, strict=True)))
    return found


@pytest.mark.parametrize("form", ["tensors", "list", "datasets", "loaders", "bundle"])
def test_forms_lead_to_the_same_images(form: str) -> None:
    datasets = TensorDataset(*TRAIN), TensorDataset(*TEST)
    expected = as_bundle(*datasets)
    given: tuple[Any, ...] = {
        "tensors": (TRAIN, TEST),
        "list": (list(TRAIN), list(TEST)),
        "datasets": datasets,
        "loaders": tuple(DataLoader(each, 7, shuffle=True) for each in datasets),
        "bundle": (expected,),
    }[form]
    found = as_bundle(*given)
    assert contents(found) == contents(expected)
    assert (found.num_classes, found.image_shape) == (4, (3, 8, 8))


BOTH = TensorDataset(torch.cat([TRAIN[0], TEST[0]]), torch.cat([TRAIN[1], TEST[1]]))


@pytest.mark.parametrize("in_batches", [False, True])
def test_loaders_of_two_parts_of_a_data_set_share_no_image(in_batches: bool) -> None:
    parts = []
    for indices in (range(40), range(40, 60)):
        sampler = SubsetRandomSampler(indices)
        options: dict[str, Any] = {"sampler": sampler, "batch_size": 7}
        if in_batches:
            options = {"batch_sampler": BatchSampler(sampler, 7, drop_last=False)}
        parts.append(DataLoader(BOTH, **options))
    assert contents(as_bundle(*parts)) == contents(as_bundle(TRAIN, TEST))


@pytest.mark.parametrize("kind", [RandomSampler, SequentialSampler])
def test_sampler_of_the_first_images_is_of_these_alone(kind: type[Any]) -> None:
    loader = DataLoader(BOTH, 7, sampler=kind(range(40)))
    assert contents(as_bundle(loader, TEST)) == contents(as_bundle(TRAIN, TEST))


@pytest.mark.parametrize(
    "sampler", [SubsetRandomSampler([5, 1000]), SequentialSampler(range(1001))]
)
def test_sampler_of_images_that_are_not_there_is_named(sampler: Any) -> None:
    with pytest.raises(ValueError, match=r"^the sampler of train chooses image (60|1000) of 60$"):
        as_bundle(DataLoader(BOTH, sampler=sampler), TEST)


class Labels(Dataset[Any]):
    """Calls something else its targets."""

    def __init__(self, targets: Any) -> None:
        self.targets = targets

    def __len__(self) -> int:
        """Return the number of images."""
        return len(TRAIN[1])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return an image and its label."""
        return TRAIN[0][index], int(TRAIN[1][index])


@pytest.mark.parametrize("targets", [["cat"] * 40, [None] * 40, {n: 0 for n in range(40)}, 7, "x"])
def test_targets_that_are_no_labels_are_left_alone(targets: Any) -> None:
    assert contents(as_bundle(Labels(targets), TEST)) == contents(as_bundle(TRAIN, TEST))


class Halves(BatchSampler):
    """Chooses the images itself."""


def test_trees_are_two_sets_one_folder_of_splits_or_one_of_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path / "cache"))
    train, test = tree(tmp_path / "a" / "train", *TRAIN), tree(tmp_path / "a" / "test", *TEST)
    two = as_bundle(train, str(test))
    assert contents(two)[0] == contents(as_bundle(TRAIN, TEST))[0]
    splits = as_bundle(tmp_path / "a")
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [40, 10, 10]
    classes = as_bundle(train)
    assert [len(classes.train), len(classes.validation), len(classes.test)] == [32, 4, 4]
    assert classes.num_classes == 4
    assert as_bundle(train, image_size=4).image_shape == (3, 4, 4)


def test_name_is_a_data_set() -> None:
    assert contents(as_bundle("digits")) == contents(load_data("digits"))


class Stream(IterableDataset[Any]):
    """Has neither length nor items."""

    def __iter__(self) -> Any:
        """Yield nothing."""
        return iter(())


def collate(items: list[Any]) -> Any:
    return items


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (TRAIN, None, "expected test images"),
        (TensorDataset(*TRAIN), Stream(), "test must be a map-style data set .* got Stream"),
        (3, TEST, "train must be a map-style data set .* got int"),
        (TRAIN, TEST[:1], "test must be two tensors"),
        (DataLoader(TensorDataset(*TRAIN), collate_fn=collate), TEST, "train has a collate_fn"),
        (
            DataLoader(BOTH, sampler=WeightedRandomSampler([1.0] * 60, 40)),
            TEST,
            r"train has a sampler \(WeightedRandomSampler\) .*: give the data set itself",
        ),
        (
            TRAIN,
            DataLoader(BOTH, batch_sampler=Halves(SequentialSampler(BOTH), 2, drop_last=False)),
            r"test has a batch_sampler \(Halves\)",
        ),
        (DataLoader(Stream()), TEST, "train must be a map-style data set .* got Stream"),
    ],
    ids=["alone", "stream", "number", "one tensor", "collate", "weights", "batches", "loader"],
)
def test_what_is_in_no_form_is_named(train: Any, test: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        as_bundle(train, test)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train has 40 images and 20 labels"):
        as_bundle((TRAIN[0], TEST[1]), TEST)
    with pytest.raises(TypeError, match="leave test out"):
        as_bundle(as_bundle(TRAIN, TEST), TEST)
    with pytest.raises(FileNotFoundError, match="no folder"):
        as_bundle(tmp_path / "missing", TEST)
    with pytest.raises(FileNotFoundError, match="no folder"):
        as_bundle(tmp_path / "missing")
    train = tree(tmp_path / "train", *TRAIN)
    (tree(tmp_path / "test", *TEST) / "class3").rename(tmp_path / "test" / "other")
    with pytest.raises(ValueError, match="different classes, class3, other in one only"):
        as_bundle(train, tmp_path / "test")


def test_workers_of_a_loader_are_taken_over() -> None:
    class Items(Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            return TRAIN[0][index], index % 4

    loaders = [DataLoader(Items(), num_workers=n) for n in (0, 0)]
    assert contents(as_bundle(*loaders))[0] == contents(as_bundle(Items(), Items()))[0]
