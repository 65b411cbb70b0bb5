"""The hot loops."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress_env.data.bundle import RandomCropFlip, TensorSource
from compress_env.task.finetune import (
    Carry,
    Penalty,
    compute_logits,
    finetune,
    reestimate_batch_norm,
    step_share,
)
from compress_env.task.layout import use_channels_last
from compress_env.task.scoring import evaluate
from tests.fakes import BranchedNet, PlainNet, make_data, read_all, seeded

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


def test_steps_rise_to_their_full_size_and_fall() -> None:
    assert [step_share(i, None, 4) for i in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    shares = [step_share(i, 8, 2) for i in range(9)]
    assert shares[:2] == [0.5, pytest.approx((1 + math.cos(math.pi / 8)) / 2)]
    assert shares[4] == pytest.approx(0.5) and shares[8] == 0.0


def test_warm_up_scales_the_first_steps() -> None:
    model, expected = seeded(PlainNet), seeded(PlainNet)
    finetune(model, batches(1), learning_rate=0.1, anneal_steps=9, warmup_steps=4)
    finetune(expected, batches(1), learning_rate=0.025)
    for got, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, wanted)


def test_loss_that_is_not_finite_raises() -> None:
    model = seeded(BranchedNet)
    with pytest.raises(FloatingPointError, match="loss or weights are not finite"):
        finetune(model, batches(4), learning_rate=1e30)


def test_weights_that_the_last_step_blew_up_raise() -> None:
    with pytest.raises(FloatingPointError, match="loss or weights are not finite"):
        finetune(seeded(BranchedNet), batches(1), learning_rate=float("inf"))


class Exploding(PlainNet):
    def forward(self, images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no memory left")


def test_a_loop_that_fails_leaves_the_network_in_evaluation_mode() -> None:
    model = seeded(Exploding)
    with pytest.raises(torch.OutOfMemoryError):
        finetune(model, batches(1), learning_rate=0.1)
    assert not any(module.training for module in model.modules())


def reference(model: nn.Module, data: list[Batch]) -> None:
    """SGD with momentum and weight decay, written out."""
    velocity = {p: torch.zeros_like(p) for p in model.parameters()}
    model.train()
    for images, labels in data:
        model.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for p, v in velocity.items():
                assert p.grad is not None
                v.mul_(0.9).add_(p.grad + 5e-4 * p)
                p.sub_(0.05 * v)
    model.eval()


@pytest.mark.parametrize("channels_last", [False, True])
def test_finetuning_is_sgd(channels_last: bool) -> None:
    model, expected = seeded(BranchedNet), seeded(BranchedNet)
    if channels_last:
        use_channels_last(model)
    finetune(model, batches(), learning_rate=0.05, channels_last=channels_last)
    reference(expected, batches())
    for got, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_parameters_with_gaps_are_updated_too() -> None:
    model, expected = seeded(PlainNet), seeded(PlainNet)
    weight = model.get_submodule("fc1").weight
    assert isinstance(weight, nn.Parameter)
    wide = torch.full((weight.shape[0], 2 * weight.shape[1]), 7.0)
    wide[:, ::2] = weight.detach()
    weight.data = wide[:, ::2]
    finetune(model, batches(), learning_rate=0.05)
    reference(expected, batches())
    for got, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert bool((wide[:, 1::2] == 7.0).all())


@pytest.mark.parametrize("options", [{"bf16": True}, {"bf16": True, "channels_last": True}])
def test_bfloat16_finetunes_and_scores_like_float32(options: dict[str, Any]) -> None:
    model, exact = seeded(BranchedNet), seeded(BranchedNet)
    finetune(model, batches(200), learning_rate=0.05, **options)
    finetune(exact, batches(200), learning_rate=0.05)
    reestimate_batch_norm(model, batches(8), **options)
    reestimate_batch_norm(exact, batches(8))
    assert {p.dtype for p in (*model.parameters(), *model.buffers())} <= {
        torch.float32,
        torch.int64,
    }
    logits = compute_logits(model, batches(1)[0][0], bf16=True)
    assert logits.dtype == torch.float32
    held_out = batches(64, seed=5)
    assert evaluate(model, held_out, **options) == pytest.approx(evaluate(exact, held_out), abs=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("bf16", [False, True])
def test_minibatches_do_not_wait_for_the_gpu(bf16: bool) -> None:
    device = torch.device("cuda")
    data = make_data(channels=1)
    source = TensorSource(
        read_all(data.train)[0], data.train.labels, mean=[0.5], augment=RandomCropFlip(1)
    ).to(device)
    model = seeded(BranchedNet).to(device)
    with torch.no_grad():
        next(model.get_submodule("block2").parameters())[::2] = 0.0

    def watched() -> Iterator[Batch]:
        order = torch.arange(96).split(16)  # type: ignore[no-untyped-call]
        drawn = source.batches(order, generator=torch.Generator().manual_seed(0))
        try:
            for number, batch in enumerate(drawn):
                if number == 1:  # kernels are chosen and loaded in the first minibatch
                    torch.cuda.set_sync_debug_mode("error")
                yield batch
        finally:
            torch.cuda.set_sync_debug_mode("default")

    finetune(model, watched(), learning_rate=0.01, anneal_steps=6, bf16=bf16)
    assert torch.cuda.get_sync_debug_mode() == 0
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


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


def test_statistics_of_a_batch_norm_that_does_not_run_stay() -> None:
    norm, other = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    other.running_mean, other.num_batches_tracked = torch.full((1,), 3.0), torch.tensor(7)
    model = nn.Sequential(norm)
    model.unused = other
    model.forward = norm.forward  # type: ignore[method-assign]
    reestimate_batch_norm(model, batches(3))
    assert float(other.running_mean) == 3.0 and int(other.num_batches_tracked) == 7
    assert not other.training and other.momentum == 0.1
    assert norm.running_mean is not None and float(norm.running_mean) != 0.0


def test_network_without_batch_norm_consumes_no_images() -> None:
    untouched = iter(batches(1))
    reestimate_batch_norm(nn.Linear(2, 2), untouched)
    assert next(untouched)


class Shifted(PlainNet):
    """A network with a parameter that only a penalty wants to move."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_penalty_steps_its_own_parameters_with_its_own_optimizer(is_frozen: bool) -> None:
    models = [seeded(Shifted) for _ in range(2)]
    for model in models:
        model.requires_grad_(not is_frozen)
        model.shift.requires_grad_(True)
    shift = models[0].shift
    assert isinstance(shift, nn.Parameter)
    penalty = Penalty(lambda: 3.0 * shift.sum(), torch.optim.SGD([shift], 0.1))
    finetune(models[0], batches(2), learning_rate=0.05, penalty=penalty)
    torch.testing.assert_close(shift.detach(), torch.full((2,), 1.0 - 2 * 0.1 * 3.0))
    if not is_frozen:
        finetune(models[1], batches(2), learning_rate=0.05)
    for name, parameter in models[1].named_parameters():
        if name != "shift":
            assert torch.equal(parameter, models[0].get_parameter(name))


def test_a_penalty_ends_training_once_it_is_settled() -> None:
    models, seen = [seeded(PlainNet) for _ in range(2)], []

    def is_settled() -> bool:
        seen.append(1)
        return len(seen) == 3

    penalty = Penalty(lambda: torch.zeros(()), is_settled=is_settled)
    finetune(models[0], batches(6), learning_rate=0.05, penalty=penalty)
    finetune(models[1], batches(6)[:3], learning_rate=0.05)
    assert len(seen) == 3
    for left, right in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("warmup_steps", [0, 2])
def test_parts_teach_what_one_piece_teaches(warmup_steps: int) -> None:
    whole, parts = seeded(PlainNet), seeded(PlainNet)
    options = {"anneal_steps": 6, "warmup_steps": warmup_steps, "learning_rate": 0.05}
    finetune(whole, batches(6), **options)  # type: ignore[arg-type]
    carry = Carry(6)
    for part in (batches(6)[:2], batches(6)[2:3], batches(6)[3:]):
        finetune(parts, part, carry=carry, **options)  # type: ignore[arg-type]
    assert all(map(torch.equal, whole.parameters(), parts.parameters()))
