"""Minibatches that do not fit into memory are computed in parts, with the same gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress_env.networks.training import Recipe, Training
from compress_env.seeding import derive_generator
from compress_env.task.finetune import finetune
from compress_env.task.task import CompressionTask
from tests.fakes import PlainNet, make_data, seeded


class Narrow(PlainNet):
    """A network that runs out of memory above some images at once."""

    def __init__(self, largest: int = 1_000) -> None:
        super().__init__()
        self.largest = largest
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            if len(images) > self.largest:
                raise torch.OutOfMemoryError(f"{len(images)} images do not fit")
            self.sizes.append(len(images))
        return super().forward(images)


def make_batches() -> list[tuple[Tensor, Tensor]]:
    order = torch.split(torch.arange(96), 12)
    return list(make_data().train.batches(order))


@pytest.mark.parametrize(
    ("largest", "sizes"), [(12, [12] * 8), (6, [6] * 16), (5, [3] * 32), (2, [2, 2, 2, 2, 2, 2])]
)
@pytest.mark.parametrize("distill", [0.0, 0.5])
def test_parts_teach_what_the_whole_teaches(largest: int, sizes: list[int], distill: float) -> None:
    whole, narrow, teacher = (seeded(Narrow, seed) for seed in (0, 0, 1))
    assert isinstance(narrow, Narrow)
    narrow.largest = largest
    options: dict[str, Any] = {"learning_rate": 0.05, "teacher": teacher, "distill": distill}
    finetune(whole, make_batches(), **options)
    finetune(narrow, make_batches(), halve=True, **options)
    assert narrow.sizes[: len(sizes)] == sizes
    assert sum(narrow.sizes) == 96  # of failed attempts nothing counts
    for expected, got in zip(whole.parameters(), narrow.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    if largest == 12:
        assert all(map(torch.equal, whole.parameters(), narrow.parameters()))


def test_gradients_of_an_attempt_that_failed_later_are_forgotten() -> None:
    class LateNarrow(Narrow):
        """Runs out of memory at its second half first."""

        def forward(self, images: Tensor) -> Tensor:
            self.largest = 6 if len(self.sizes) == 0 else 3
            return super().forward(images)

    whole, narrow = seeded(Narrow), seeded(LateNarrow)
    batches = make_batches()[:1]
    finetune(whole, batches, learning_rate=0.05)
    finetune(narrow, batches, learning_rate=0.05, halve=True)
    assert narrow.sizes == [6, 3, 3, 3, 3]
    for expected, got in zip(whole.parameters(), narrow.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_where_two_images_do_not_fit_it_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="3 images do not fit"):
        finetune(
            Narrow(2),
            [(torch.rand(3, 1, 8, 8), torch.zeros(3).long())],
            learning_rate=0.05,
            halve=True,
        )


def test_a_step_of_an_episode_is_never_halved() -> None:
    task = CompressionTask(seeded(Narrow), make_data(), device="cpu")
    model = copy.deepcopy(task.model)
    assert isinstance(model, Narrow)
    model.largest = 10
    with pytest.raises(torch.OutOfMemoryError, match="64 images do not fit"):
        task.finetune_step(model, 1, derive_generator(0, 0, 0))
    task.finetune(model, 1, derive_generator(0, 0, 0), halve=True)
    assert model.sizes == [8] * 8


def test_a_training_goes_on_in_parts() -> None:
    networks: list[nn.Module] = []
    for largest in (1_000, 10):
        model = seeded(Narrow)
        assert isinstance(model, Narrow)
        model.largest = largest
        Training(model, make_data().train, Recipe(epochs=1, batch_size=32)).run_epoch()
        networks.append(model)
    assert networks[1].sizes == [8] * 12
    for expected, got in zip(*(each.parameters() for each in networks), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
