"""Learning from the uncompressed network's answers."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compress_env.quantization.fake_quant import attach, is_quantized
from compress_env.seeding import derive_generator
from compress_env.task.distillation import distillation_loss
from compress_env.task.finetune import finetune
from compress_env.task.layers import compute_layers
from compress_env.task.task import CompressionTask, FinetuneConfig
from tests.fakes import BranchedNet, PlainNet, make_data, read_all, seeded

Batch = tuple[Tensor, Tensor]


def batches(n: int = 6) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    order = [torch.randint(0, 96, (16,), generator=generator) for _ in range(n)]
    return list(make_data().train.batches(order))


def distilled(model: nn.Module, teacher: nn.Module | None, **options: Any) -> nn.Module:
    given: dict[str, Any] = {"learning_rate": 0.05, "teacher": teacher} | options
    finetune(model, given.pop("batches", batches()), **given)
    return model


@cache
def trained() -> nn.Module:
    teacher = distilled(seeded(BranchedNet, seed=1), None, batches=batches(150))
    teacher.zero_grad()
    return teacher


def parameters_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def divergence(model: nn.Module, teacher: nn.Module) -> float:
    images, _ = read_all(make_data().validation)
    with torch.no_grad():
        return float(distillation_loss(model(images), teacher(images), 1.0))


class TestLoss:
    def test_is_the_divergence_of_softened_answers(self) -> None:
        # Softened, the teacher says 3/4 and 1/4, the student 1/2 and 1/2.
        teacher, student = torch.tensor([[2 * math.log(3.0), 0.0]]), torch.zeros(1, 2)
        expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
        loss = distillation_loss(student, teacher, 2.0)
        assert float(loss) == pytest.approx(4.0 * expected, rel=1e-5)

    def test_is_the_mean_over_images(self) -> None:
        logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
        each = [distillation_loss(a[None], b[None], 3.0) for a, b in zip(*logits, strict=True)]
        torch.testing.assert_close(distillation_loss(*logits, 3.0), torch.stack(each).mean())

    def test_is_zero_where_the_answers_are_the_same(self) -> None:
        logits = torch.tensor([[1.0, -2.0, 0.5]])
        assert float(distillation_loss(logits, logits + 7.0, 1.0)) == pytest.approx(0.0, abs=1e-6)

    def test_keeps_the_size_of_gradients_at_high_temperatures(self) -> None:
        """The limit is the squared difference of centred logits over 2 K (Hinton et al., eq. 4)."""
        student = torch.tensor([[1.0, -1.0, 0.0]], requires_grad=True)
        teacher = torch.tensor([[0.0, 2.0, -2.0]])
        distillation_loss(student, teacher, 1e3).backward()  # type: ignore[no-untyped-call]
        assert student.grad is not None
        expected = (student - teacher).detach() / 3
        torch.testing.assert_close(student.grad, expected, rtol=1e-2, atol=1e-3)

    @pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((3,), (3,))], ids=str)
    def test_other_shapes_are_refused(self, shapes: Any) -> None:
        with pytest.raises(ValueError, match=r"both logits must be \(b, K\) of one shape, got"):
            distillation_loss(torch.zeros(shapes[0]), torch.zeros(shapes[1]), 1.0)

    @pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
    def test_a_temperature_must_be_positive(self, temperature: float) -> None:
        with pytest.raises(ValueError, match="temperature must be above 0, got"):
            distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature)


class TestFinetuning:
    def test_without_weight_the_teacher_is_not_run(self) -> None:
        class Refuses(PlainNet):
            def forward(self, images: Tensor) -> Tensor:
                raise AssertionError("the teacher was run")

        plain = distilled(seeded(PlainNet), None)
        weightless = distilled(seeded(PlainNet), Refuses(), distill=0.0)
        assert torch.equal(parameters_of(plain), parameters_of(weightless))

    def test_weighs_both_losses(self) -> None:
        teacher, model, expected = (seeded(PlainNet, seed=s) for s in (1, 0, 0))
        distilled(model, teacher, distill=0.75, momentum=0.0, weight_decay=0.0, batches=batches(1))
        images, labels = batches(1)[0]
        logits = expected(images)
        loss = 0.25 * cross_entropy(logits, labels)
        loss = loss + 0.75 * distillation_loss(logits, teacher(images).detach(), 4.0)
        gradients = torch.autograd.grad(loss, list(expected.parameters()))
        for got, before, gradient in zip(
            model.parameters(), expected.parameters(), gradients, strict=True
        ):
            torch.testing.assert_close(got, before - 0.05 * gradient)

    @pytest.mark.parametrize(
        "options",
        [
            {"distill_temperature": 1.0},
            {"distill_temperature": 4.0},
            {"distill_temperature": 1.0, "bf16": True, "channels_last": True},
        ],
        ids=["exact", "softened", "bf16, channels last"],
    )
    def test_brings_the_answers_closer(self, options: dict[str, Any]) -> None:
        teacher, student, data = trained(), seeded(BranchedNet), batches(150)
        before = copy.deepcopy(teacher.state_dict())
        distilled(student, teacher, distill=1.0, batches=data, **options)
        assert divergence(student, teacher) < 0.5 * divergence(seeded(BranchedNet), teacher)
        assert not (teacher.training or student.training)
        assert all(torch.equal(before[name], x) for name, x in teacher.state_dict().items())
        assert all(p.grad is None for p in teacher.parameters())

    def test_quantized_students_keep_levels_masks_and_frozen_weights(self) -> None:
        teacher, student = seeded(PlainNet, seed=1), seeded(PlainNet)
        with torch.no_grad():
            student.get_submodule("conv2").weight[:, 0] = 0.0  # type: ignore[index,operator]
        for layer in compute_layers(student).values():
            attach(layer, 3)
        student.get_submodule("fc1").requires_grad_(False)
        before = copy.deepcopy(student)
        distilled(student, teacher, distill=0.9)
        layers = compute_layers(student)
        assert all(is_quantized(layer) for layer in layers.values())
        assert all(len(layer.weight[0].unique()) <= 7 for layer in layers.values())
        assert not layers["conv2"].weight[:, 0].any()
        changed = {
            name
            for (name, now), then in zip(
                student.named_parameters(), before.parameters(), strict=True
            )
            if not torch.equal(now, then)
        }
        assert changed == {n for n, _ in student.named_parameters() if not n.startswith("fc1")}

    def test_answers_that_are_not_finite_raise(self) -> None:
        teacher = seeded(PlainNet)
        nn.init.constant_(teacher.get_parameter("fc2.bias"), math.nan)
        with pytest.raises(FloatingPointError, match="loss or weights are not finite"):
            distilled(seeded(PlainNet), teacher, distill=0.5)


class TestTask:
    def task(self, **options: Any) -> CompressionTask:
        config = FinetuneConfig(batch_size=16, **options)
        return CompressionTask(seeded(PlainNet), make_data(), device="cpu", config=config)

    def tuned(self, task: CompressionTask, **options: Any) -> Tensor:
        model = seeded(PlainNet, seed=1)
        task.finetune(model, 4, derive_generator(0), **options)
        return parameters_of(model)

    def test_the_teacher_is_the_uncompressed_network(self) -> None:
        task = self.task(distill=0.5, distill_temperature=2.0)
        expected = seeded(PlainNet, seed=1)
        finetune(
            expected,
            task.train_batches(4, derive_generator(0)),
            learning_rate=0.01,
            teacher=seeded(PlainNet),
            distill=0.5,
            distill_temperature=2.0,
        )
        assert torch.equal(self.tuned(task), parameters_of(expected))

    def test_a_call_may_weigh_it_otherwise(self) -> None:
        task, other = self.task(), self.task(distill=0.5)
        assert torch.equal(self.tuned(task, distill=0.5), self.tuned(other))
        assert torch.equal(self.tuned(other, distill=0.0), self.tuned(task))
        assert not torch.equal(self.tuned(other), self.tuned(task))

    def test_weights_outside_0_and_1_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"^distill must be in \[0, 1\], got 1.5$"):
            self.task(distill=1.5)
        with pytest.raises(ValueError, match=r"^distill must be in \[0, 1\], got -0.1$"):
            self.tuned(self.task(), distill=-0.1)
        with pytest.raises(ValueError, match=r"^distill_temperature must be positive, got 0.0$"):
            self.task(distill_temperature=0.0)
