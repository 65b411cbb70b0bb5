"""Digests of image sets: equal for equal content, different for anything else."""

from __future__ import annotations

import functools
import pickle
import re
import subprocess
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from compress_env.data.bundle import DatasetSource, RandomCropFlip, TensorSource, make_data_bundle
from compress_env.store.digests import Code, digest
from tests.fakes import gradient_images, make_data

ROOT = Path(__file__).resolve().parents[3]
STRENGTH = 0.5


def augmentation(images: Tensor, _: torch.Generator) -> Tensor:
    return images * STRENGTH


def stronger(by: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    return lambda images, _: images * by


@dataclass(frozen=True)
class Scale:
    by: float
    shift: Tensor = field(default_factory=lambda: torch.zeros(2000))

    def __call__(self, images: Tensor, _: torch.Generator) -> Tensor:
        return images * self.by + self.shift[0]


class Blur(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(width, 1, width // 2)

    def forward(self, images: Tensor, _: torch.Generator) -> Tensor:
        return self.pool(images)  # type: ignore[no-any-return]


def tensor_source(**changes: Any) -> TensorSource:
    settings: dict[str, Any] = {
        "images": gradient_images(),
        "labels": torch.arange(6),
        "mean": [0.5],
        "std": [0.3],
        "augment": RandomCropFlip(2),
    }
    return TensorSource(**settings | changes)


def shifted_zeros(at: int) -> Tensor:
    shift = torch.zeros(2000)
    shift[at] = 1.0  # not in the tensor's repr
    return shift


@given(
    pixel=st.integers(0, 6 * 16 - 1),
    by=st.integers(1, 255),
    image=st.integers(0, 5),
    data=st.data(),
)
def test_any_change_changes_the_digest(
    pixel: int, by: int, image: int, data: st.DataObject
) -> None:
    images, labels = gradient_images(), torch.arange(6)
    images.view(-1)[pixel] += by
    labels[image] += by
    other = data.draw(st.floats(0.01, 0.99).filter(lambda x: np.float32(x) not in (0.5, 0.3)))
    changes: list[dict[str, Any]] = [
        {"images": images}, {"labels": labels}, {"mean": [other]}, {"std": [other]},
        {"mean": [other], "std": [other]},
        {"augment": None}, {"augment": RandomCropFlip(3)}, {"augment": RandomCropFlip(2, False)},
    ]  # fmt: skip
    digests = {tensor_source(**change).digest() for change in [{}, *changes]}
    assert len(digests) == len(changes) + 1


def test_equal_content_has_an_equal_digest() -> None:
    first, again = tensor_source(), tensor_source()
    assert len(first.digest()) == 64
    assert first.digest() == again.digest() == first.to(torch.device("cpu")).digest()
    pickle.loads(pickle.dumps(first))  # leaves a note on the class of the augmentation
    assert first.digest() == again.digest()


def test_shape_and_dtype_count() -> None:
    images = gradient_images()
    variants = [images, images.reshape(6, 1, 2, 8), images.float(), images.reshape(6, 16, 1, 1)]
    digests = {TensorSource(images, torch.arange(6)).digest() for images in variants}
    assert len(digests) == len(variants)


def test_subset_has_the_digest_of_its_images_in_their_order() -> None:
    source = tensor_source()
    before = source.digest()
    subset = source.subset(torch.tensor([4, 1]))
    images, labels = gradient_images()[[4, 1]], torch.tensor([4, 1])
    assert subset.digest() == tensor_source(images=images, labels=labels).digest()
    assert subset.digest() != source.subset(torch.tensor([1, 4])).digest()
    assert source.digest() == before


def test_fifty_thousand_images_take_less_than_half_a_second() -> None:
    images = torch.randint(256, (50_000, 1, 28, 28), dtype=torch.uint8)
    source = TensorSource(images, torch.zeros(50_000, dtype=torch.int64))
    start = process_time()
    first = source.digest()
    middle = process_time()
    assert source.digest() == first
    assert middle - start < 0.5
    assert process_time() - middle < 0.01


CALLABLES: list[Callable[[], Any]] = [
    lambda: augmentation,
    lambda: stronger(2.0),
    lambda: stronger(3.0),
    lambda: Scale(2.0),
    lambda: Scale(3.0),
    lambda: Scale(2.0, shifted_zeros(1000)),
    lambda: Scale(2.0, shifted_zeros(1001)),
    lambda: Blur(3),
    lambda: Blur(5),
    lambda: functools.partial(Scale, 2.0),
    lambda: Scale(2.0).__call__,
    lambda: v2.RandomHorizontalFlip(0.3),
    lambda: v2.RandomHorizontalFlip(0.4),
    lambda: v2.Compose([v2.RandomCrop(3, padding=1), v2.Resize(4)]),
    lambda: v2.Compose([v2.RandomCrop(3, padding=1), v2.Resize(5)]),
    lambda: torch.relu,
    lambda: torch.nn.functional.relu,
    lambda: lambda images, _: images + 1,
    lambda: lambda images, _: images + 2,
    lambda: lambda images, _: images.abs(),
    lambda: {"a": {1, 2, "three"}, "b": (None, 1.5)},
    lambda: {"a": {1, 2, "four"}, "b": (None, 1.5)},
]


def test_code_is_told_apart_and_found_again() -> None:
    digests = [digest(Code(make())) for make in CALLABLES]
    assert len(set(digests)) == len(digests)
    assert digests == [digest(Code(make())) for make in CALLABLES]


def test_code_follows_the_globals_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = tensor_source(augment=augmentation).digest()
    assert tensor_source(augment=augmentation).digest() == before
    monkeypatch.setattr(sys.modules[__name__], "STRENGTH", 0.6)
    assert tensor_source(augment=augmentation).digest() != before


def recursive(n: int) -> int:
    return n and recursive(n - 1)


def test_code_may_refer_to_itself() -> None:
    assert digest(Code(recursive)) == digest(Code(recursive))


class Slotted:
    __slots__ = ("x",)


def _opaque() -> list[Any]:
    module = types.ModuleType("unversioned")
    return [
        torch.Generator(),
        object(),
        re.compile("a"),
        defaultdict(int),
        Slotted(),
        lambda images, _: eval("images"),
        lambda images, _: __import__("unversioned"),
        functools.partial(module.__getattribute__, "x"),
        module,
        np.array([object()]),
        iter([1]),
        torch.eye(2).to_sparse(),
    ]


@pytest.mark.parametrize("number", range(len(_opaque())))
def test_what_cannot_be_identified_differs_each_time(number: int) -> None:
    value = _opaque()[number]
    assert digest(Code(value)) != digest(Code(value))
    source = tensor_source(augment=value)
    assert source.digest() != source.digest()


def test_an_import_of_code_without_a_version_cannot_be_identified() -> None:
    def imports(images: Tensor, _: torch.Generator) -> Tensor:
        import tests.fakes

        return images * len(tests.fakes.__name__)

    assert digest(Code(imports)) != digest(Code(imports))


def test_a_part_that_is_not_marked_as_code_must_be_identifiable() -> None:
    with pytest.raises(TypeError, match="Generator cannot be identified"):
        digest(torch.Generator())


# Data sets that are read when needed


class Listed(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: Tensor, transform: Any = None) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image and its label."""
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), index


def test_dataset_source_follows_images_transforms_and_normalisation() -> None:
    other = gradient_images()
    other[3, 0, 1, 1] += 1
    sources = [
        DatasetSource(Listed(gradient_images())),
        DatasetSource(Listed(other)),
        DatasetSource(Listed(gradient_images(), transform=v2.RandomHorizontalFlip(0.0))),
        DatasetSource(Listed(gradient_images()), augmented=Listed(other)),
        DatasetSource(Listed(gradient_images()), mean=[0.5]),
        DatasetSource(Listed(gradient_images()), labels=torch.arange(6).flip(0)),
        DatasetSource(Listed(gradient_images()), augment=RandomCropFlip(1)),
        DatasetSource(Listed(gradient_images())).subset(torch.tensor([0, 2])),
        DatasetSource(TensorDataset(gradient_images(), torch.arange(6))),
    ]
    digests = [source.digest() for source in sources]
    assert len(set(digests)) == len(digests)
    assert digests[0] == DatasetSource(Listed(gradient_images()), num_workers=2).digest()
    assert digests[0] == sources[0].to(torch.device("cpu")).digest()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for index in range(3):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / label / f"{index}.png")
    return tmp_path


def folder_source(tree: Path, size: int = 4) -> DatasetSource:
    transform = v2.Compose([v2.Resize(size), v2.PILToTensor()])
    return DatasetSource(ImageFolder(tree, transform=transform))


def test_files_are_told_apart_by_path_size_and_time(tree: Path) -> None:
    source = folder_source(tree)
    assert source.digest() == folder_source(tree).digest()
    assert source.digest() != folder_source(tree, size=5).digest()
    part, other = (source.subset(torch.tensor(chosen)) for chosen in ([0, 1], [0, 2]))
    before = source.digest(), part.digest(), other.digest()
    assert len(set(before)) == 3
    (tree / "cat" / "2.png").touch()
    assert folder_source(tree).digest() != before[0]
    assert folder_source(tree).subset(torch.tensor([0, 1])).digest() == before[1]
    assert folder_source(tree).subset(torch.tensor([0, 2])).digest() != before[2]


def test_files_below_a_subset_are_found(tree: Path) -> None:
    folder = ImageFolder(tree, transform=v2.PILToTensor())
    below = DatasetSource(Subset(Subset(folder, [5, 4, 3]), [2, 0]))
    assert below.digest() == DatasetSource(folder).subset(torch.tensor([3, 5])).digest()


# Bundles and processes


def test_bundle_digest_covers_all_but_the_test_set_and_the_name() -> None:
    bundle = make_data()
    before = bundle.digest()
    assert before == make_data().digest()
    assert before == replace(bundle, name="other", test=bundle.validation).digest()
    changed = [
        make_data(seed=1).digest(),
        replace(bundle, train=bundle.validation).digest(),
        replace(bundle, calibration=bundle.validation).digest(),
        replace(bundle, validation=bundle.train).digest(),
        replace(bundle, num_classes=4).digest(),
    ]
    assert len({before, *changed}) == 6


@pytest.mark.slow
def test_processes_agree() -> None:
    script = (
        "import torch\n"
        "from compress_env.store.digests import Code, digest\n"
        "from tests.compress_env.store.test_digests import CALLABLES, tensor_source\n"
        "print(tensor_source().digest(), digest(*(Code(make()) for make in CALLABLES)))\n"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        for _ in range(2)
    ]
    assert [output.returncode for output in outputs] == [0, 0], outputs[0].stderr
    assert outputs[0].stdout == outputs[1].stdout
    assert outputs[0].stdout.split()[0] == tensor_source().digest()


@pytest.mark.gpu
def test_devices_agree() -> None:
    bundle = make_data_bundle(
        TensorDataset(gradient_images(), torch.arange(6)),
        TensorDataset(gradient_images(), torch.arange(6)),
        augment=RandomCropFlip(1),
    )
    assert bundle.to("cuda").digest() == bundle.digest()
