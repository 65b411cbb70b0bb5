"""Accuracies: of the first answer, and of the first five."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compress_env.task.scoring import (
    evaluate,
    find_hits,
    halving,
    largest_batch,
    top_accuracies,
    tops_for,
)


class Constant(nn.Module):
    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def test_accuracy_counts_every_image_once() -> None:
    labels = torch.tensor([0, 1, 1, 1, 2])
    images = torch.zeros(5, 1)
    split = [(images[:3], labels[:3]), (images[3:], labels[3:])]
    assert evaluate(Constant([0.0, 1.0, 0.0]), split) == 3 / 5


def test_accuracies_of_several_answers_count_the_largest_logits() -> None:
    labels = torch.tensor([0, 1, 2, 3, 4, 5])
    split = [(torch.zeros(4, 1), labels[:4]), (torch.zeros(2, 1), labels[4:])]
    model = Constant([0.1, 0.6, 0.5, 0.2, 0.4, 0.3])
    assert top_accuracies(model, split, (1, 2, 5, 6)) == [1 / 6, 2 / 6, 5 / 6, 1.0]


def test_equal_logits_are_no_hits_of_all() -> None:
    hits = find_hits(torch.zeros(20, 20), torch.arange(20), 5)
    assert int(hits.sum()) == 5


def test_five_answers_count_where_there_are_more_than_ten_classes() -> None:
    assert [tops_for(n) for n in (2, 10, 11, 1000)] == [(1,), (1,), (1, 5), (1, 5)]


def test_logits_that_are_not_finite_raise() -> None:
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        evaluate(Constant([0.0, float("nan")]), [(torch.zeros(1, 1), torch.zeros(1).long())])


def test_large_images_are_scored_fewer_at_once() -> None:
    assert largest_batch((3, 32, 32), 500) == 500
    assert largest_batch((3, 224, 224), 500) == 64
    assert largest_batch((3, 9_000, 9_000), 500) == 1


@pytest.mark.parametrize(
    ("largest", "tried"), [(40, [40]), (12, [40, 20, 10]), (1, [40, 20, 10, 5, 2, 1])]
)
def test_scoring_halves_until_it_fits(largest: int, tried: list[int]) -> None:
    sizes = []

    def score(size: int) -> str:
        sizes.append(size)
        if size > largest:
            raise torch.OutOfMemoryError
        return "scored"

    assert halving(score, 40) == ("scored", tried[-1])
    assert sizes == tried
