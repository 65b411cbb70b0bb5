"""The caller's own training loop."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress_env.quantization.fake_quant import attach, bake, is_quantized
from compress_env.seeding import derive_generator
from compress_env.task.finetuner import run_finetuner
from compress_env.task.layers import compute_layers
from compress_env.task.task import CompressionTask
from tests.fakes import BranchedNet, PlainNet, make_data, seeded

EXAMPLE = torch.ones(1, 1, 8, 8)


def shift(model: nn.Module, n_steps: int) -> None:
    """Add something to every element, leave gradients and training mode behind."""
    model.train()
    for parameter in model.parameters():
        parameter.data += 0.01 * n_steps
        parameter.grad = torch.ones_like(parameter)


def shifted_copy(model: nn.Module, n_steps: int) -> nn.Module:
    trained = copy.deepcopy(model)
    shift(trained, n_steps)
    return trained


def run(
    finetuner: Callable[[nn.Module, int], Any], model: nn.Module | None = None, n_steps: int = 3
) -> nn.Module:
    return run_finetuner(seeded(PlainNet) if model is None else model, finetuner, n_steps, EXAMPLE)


@pytest.mark.parametrize(
    "finetuner",
    [
        shift,
        shifted_copy,
        lambda model, n: (shift(model, n), model)[1],
        lambda model, n: nn.DataParallel(shifted_copy(model, n)),
    ],
    ids=["in place", "copy", "itself", "wrapped"],
)
@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
def test_what_the_loop_has_learned_is_in_the_network_given(
    finetuner: Callable[[nn.Module, int], Any], build: type[nn.Module]
) -> None:
    model, before = seeded(build), seeded(build)
    parameters = list(model.parameters())
    assert run(finetuner, model) is model
    assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))
    for now, then in zip(parameters, before.parameters(), strict=True):
        torch.testing.assert_close(now, then + 0.03)
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in parameters)


def test_statistics_of_a_copy_are_taken_over() -> None:
    def finetuner(model: nn.Module, n_steps: int) -> nn.Module:
        trained = copy.deepcopy(model).train()
        trained(torch.rand(4, 1, 8, 8))
        return trained

    model = run(finetuner, seeded(BranchedNet))
    fresh = dict(seeded(BranchedNet).named_buffers())
    assert all(not torch.equal(fresh[name], x) for name, x in model.named_buffers())


@pytest.mark.parametrize("finetuner", [shift, shifted_copy])
@pytest.mark.parametrize("quantized", [False, True])
def test_zeros_stay_zero(finetuner: Callable[[nn.Module, int], Any], quantized: bool) -> None:
    model = seeded(PlainNet)
    layer = compute_layers(model)["conv2"]
    with torch.no_grad():
        layer.weight[::2] = 0.0
    if quantized:
        attach(layer, 4)
    run(finetuner, model)
    assert is_quantized(layer) == quantized
    assert not layer.weight[::2].any()
    assert layer.weight[1::2].any()


def test_what_was_frozen_is_frozen_again_and_nothing_else() -> None:
    def finetuner(model: nn.Module, n_steps: int) -> None:
        for parameter in model.parameters():
            parameter.requires_grad_(not parameter.requires_grad)

    model = seeded(PlainNet)
    model.get_submodule("fc1").requires_grad_(False)
    run(finetuner, model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"fc1.weight", "fc1.bias"}


def test_no_steps_call_nothing() -> None:
    def finetuner(model: nn.Module, n_steps: int) -> None:
        raise AssertionError("called")

    run(finetuner, n_steps=0)


def test_gradients_flow_whatever_the_caller_has_switched_off() -> None:
    def finetuner(model: nn.Module, n_steps: int) -> None:
        model(EXAMPLE).sum().backward()
        assert all(p.grad is not None for p in model.parameters())

    model = seeded(PlainNet)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            run(finetuner, model)


@pytest.mark.gpu
def test_a_network_on_another_device_comes_back() -> None:
    model = run(lambda model, n: model.cuda())
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    model = run(lambda model, n: copy.deepcopy(model).cuda())
    assert {p.device.type for p in model.parameters()} == {"cpu"}


# What is refused


def _set(name: str, module: Callable[[], nn.Module]) -> Callable[[nn.Module, int], Any]:
    return lambda model, n: model.set_submodule(name, module())


def _poisoned(name: str, value: float) -> Callable[[nn.Module, int], Any]:
    def finetuner(model: nn.Module, n_steps: int) -> None:
        dict(model.named_parameters())[name].data.flatten()[0] = value

    return finetuner


@pytest.mark.parametrize("returned", [3, "x", [nn.Linear(1, 1)], (), PlainNet], ids=repr)
def test_anything_but_a_module_is_refused(returned: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^the finetuner must return a module or None, got [^\n]*$"
    ):
        run(lambda model, n: returned)


WHAT = "^the finetuner must train the network that it is given: "


@pytest.mark.parametrize(
    ("finetuner", "message"),
    [
        (lambda model, n: BranchedNet(), r"'conv1\.weight' is gone$"),
        (_set("fc2", nn.Identity), r"'fc2\.weight' is gone$"),
        (
            _set("fc2", lambda: nn.Linear(8, 4)),
            r"expected 'fc2\.weight' to be \(3, 8\) float32, got \(4, 8\) float32$",
        ),
        (lambda model, n: model.half(), r"expected 'conv1\.weight' .* got \(4, 1, 3, 3\) float16$"),
        (lambda model, n: copy.deepcopy(model).half(), r"expected 'conv1\.weight' .* float16$"),
        (_set("extra", lambda: nn.Linear(1, 1)), r"'extra\.weight' is new$"),
    ],
    ids=["other network", "removed", "other shape", "half", "half copy", "added"],
)
def test_another_network_is_refused(
    finetuner: Callable[[nn.Module, int], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=WHAT + message):
        run(finetuner)


def test_a_copy_does_not_hide_what_was_done_to_the_network() -> None:
    def finetuner(model: nn.Module, n_steps: int) -> nn.Module:
        trained = copy.deepcopy(model)
        model.set_submodule("fc2", nn.Identity())
        return trained

    with pytest.raises(ValueError, match=r"'fc2\.weight' is gone$"):
        run(finetuner)


def _baked_copy(model: nn.Module, n_steps: int) -> nn.Module:
    trained = copy.deepcopy(model)
    bake(trained)
    return trained


@pytest.mark.parametrize("finetuner", [lambda model, n: bake(model), _baked_copy])
def test_quantizers_must_stay(finetuner: Callable[[nn.Module, int], Any]) -> None:
    model = seeded(PlainNet)
    attach(compute_layers(model)["conv2"], 4)
    with pytest.raises(ValueError, match=WHAT + "the quantizer of 'conv2' is gone$"):
        run(finetuner, model)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_failures(value: float) -> None:
    with pytest.raises(FloatingPointError, match=r"^after the finetuner 'fc1\.bias' of the netw"):
        run(_poisoned("fc1.bias", value))


def test_so_are_logits() -> None:
    def finetuner(model: nn.Module, n_steps: int) -> None:
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(-1.0)

    with pytest.raises(FloatingPointError, match=r"^after the finetuner logits are not finite$"):
        run(finetuner, seeded(BranchedNet))


def test_errors_of_the_loop_are_its_own() -> None:
    def finetuner(model: nn.Module, n_steps: int) -> None:
        raise KeyError("my own")

    with pytest.raises(KeyError, match=r"^'my own'$"):
        run(finetuner)


# In a task


def test_a_step_calls_it_with_seeded_random_states() -> None:
    def finetuner(model: nn.Module, n_steps: int) -> None:
        drawn = random.random() + np.random.rand() + float(torch.rand(()))  # noqa: NPY002
        model.get_parameter("fc2.bias").data += drawn * n_steps

    task = CompressionTask(seeded(PlainNet), make_data(), device="cpu", finetuner=finetuner)
    biases = []
    for seed in (0, 0, 1):
        random.random()
        model = task.copy_model()
        task.finetune_step(model, 2, derive_generator(seed))
        biases.append(model.get_parameter("fc2.bias").detach().clone())
    assert torch.equal(biases[0], biases[1])
    assert not torch.equal(biases[0], biases[2])
    assert torch.equal(task.model.get_parameter("fc2.bias"), seeded(PlainNet).fc2.bias)  # type: ignore[arg-type]


def test_without_one_a_step_is_finetuning() -> None:
    task = CompressionTask(seeded(PlainNet), make_data(), device="cpu")
    one, other = task.copy_model(), task.copy_model()
    task.finetune_step(one, 2, derive_generator(0))
    task.finetune(other, 2, derive_generator(0))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
