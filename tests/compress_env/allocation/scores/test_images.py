"""Images that rules look at: how many, and labels that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compress_env.allocation import fisher_losses, gate_gradients, hessian_traces
from compress_env.allocation.scores.images import first_images
from compress_env.pruning.graph.surgery import find_walk
from tests.fakes import PlainNet, seeded

IMAGES, LABELS = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2])


def test_so_many_and_no_more_are_read() -> None:
    read = []

    def batches() -> Any:
        for i in range(5):
            read.append(i)
            yield IMAGES, LABELS

    assert [len(images) for images, _ in first_images(batches(), 7)] == [3, 3, 1]
    assert max(read) <= 3


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (
            [IMAGES],
            "images and their labels, two tensors, got Tensor, NoneType",
        ),
        ([(IMAGES, None)], "expected batches of images and their labels, two tensors"),
        ([(IMAGES, LABELS[:2])], r"labels of shape \(3,\), one for each image, got torch.int64 of"),
        ([(IMAGES, LABELS.float())], "whole-numbered labels of shape"),
        ([], "expected at least one image, got none"),
    ],
    ids=["no labels", "None", "too few", "not whole", "nothing"],
)
def test_images_without_labels_are_refused(batches: Any, message: str) -> None:
    model = seeded(PlainNet)
    walk = find_walk(model, IMAGES).decisions
    weight = model.get_parameter("conv1.weight")
    for call in (
        lambda: gate_gradients(model, walk, batches),
        lambda: hessian_traces(model, ["conv1"], batches),
        lambda: fisher_losses(model, ["conv1"], [[weight]], batches),
    ):
        with pytest.raises(ValueError, match=message):
            call()


class Frozen(PlainNet):
    """A network that nothing can be derived through."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return super().forward(images)


def test_networks_without_derivatives_are_refused() -> None:
    model, batches = seeded(Frozen), [(IMAGES, LABELS)]
    walk = find_walk(model, IMAGES).decisions
    weight = model.get_parameter("conv1.weight")
    for call in (
        lambda: gate_gradients(model, walk, batches),
        lambda: hessian_traces(model, ["conv1"], batches),
        lambda: fisher_losses(model, ["conv1"], [[weight]], batches),
    ):
        with pytest.raises(ValueError, match="expected a network whose loss has derivatives, got"):
            call()
