"""The hot loops."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compress_env.finetune import evaluate, finetune, reestimate_batch_norm
from tests.fakes import BranchedNet, PlainNet, make_data, seeded

Batch = tuple[Tensor, Tensor]


def batches(n: int = 6, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    order = [torch.randint(0, 96, (16,), generator=generator) for _ in range(n)]
    return list(make_data().train.batches(order))


def test_finetuning_lowers_the_loss() -> None:
    model = seeded(PlainNet)
    images, labels = batches(1, seed=9)[0]
    before = nn.functional.cross_entropy(model(images), labels)
    finetune(model, batches(40), learning_rate=0.05)
    assert nn.functional.cross_entropy(model(images), labels) < 0.5 * before
    assert not model.training


def test_annealed_steps_move_less() -> None:
    start = seeded(BranchedNet)
    moved = {}
    for anneal in (None, 6):
        model = copy.deepcopy(start)
        finetune(model, batches(6), learning_rate=0.01, anneal_steps=anneal)
        parameters = zip(model.parameters(), start.parameters(), strict=True)
        moved[anneal] = sum(float((a - b).detach().abs().sum()) for a, b in parameters)
    assert moved[6] < 0.8 * moved[None]


def test_loss_that_is_not_finite_raises() -> None:
    model = seeded(BranchedNet)
    with pytest.raises(FloatingPointError, match="loss or weights are not finite"):
        finetune(model, batches(4), learning_rate=1e30)


def test_weights_that_the_last_step_blew_up_raise() -> None:
    with pytest.raises(FloatingPointError, match="loss or weights are not finite"):
        finetune(seeded(BranchedNet), batches(1), learning_rate=float("inf"))


def test_frozen_parameters_stay() -> None:
    model = seeded(PlainNet).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    finetune(model, batches(1), learning_rate=0.1)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_zeros_stay_zero_also_with_momentum_and_decay() -> None:
    model = seeded(BranchedNet)
    weight = model.get_submodule("block2").weight
    assert isinstance(weight, nn.Parameter)
    with torch.no_grad():
        weight[::2] = 0.0
    finetune(model, batches(), learning_rate=0.05, momentum=0.9, weight_decay=0.1)
    assert not weight[::2].any()
    assert weight[1::2].all()


def test_batch_norm_statistics_are_the_average_over_batches() -> None:
    norm = nn.BatchNorm2d(1, momentum=0.3)
    model = nn.Sequential(norm, nn.Dropout(0.9))
    data = batches(5)
    norm.running_mean = torch.full((1,), 100.0)
    reestimate_batch_norm(model, data)
    means = torch.stack([images.mean() for images, _ in data])
    variances = torch.stack([images.var() for images, _ in data])
    torch.testing.assert_close(norm.running_mean, means.mean()[None])
    torch.testing.assert_close(norm.running_var, variances.mean()[None])
    assert norm.momentum == 0.3
    assert not norm.training


def test_network_without_batch_norm_consumes_no_images() -> None:
    untouched = iter(batches(1))
    reestimate_batch_norm(nn.Linear(2, 2), untouched)
    assert next(untouched)


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


def test_logits_that_are_not_finite_raise() -> None:
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        evaluate(Constant([0.0, float("nan")]), [(torch.zeros(1, 1), torch.zeros(1).long())])
