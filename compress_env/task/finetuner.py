"""Fine-tuning by the caller's own loop, and what is checked when it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from compress_env.networks.intake import check_finite, unwrapped
from compress_env.task.layers import compute_layers

__all__ = ["Finetuner", "run_finetuner"]

Finetuner = Callable[[nn.Module, int], nn.Module | None]
"""Trains a network for about so many minibatches: in place, or returning a trained copy of it."""

Kinds = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of each parameter and buffer by dotted name."""

_CHAIN = "parametrizations"  # torch's name for what computes a parameter


@torch.inference_mode(False)  # a caller's `torch.no_grad()` would stop the loop
def run_finetuner(
    model: nn.Module, finetuner: Finetuner, n_steps: int, example: Tensor
) -> nn.Module:
    """Let the caller's loop train a network, and check what has become of it.

    Afterwards the network is in evaluation mode on the device of `example`, without gradients;
    weights that were zero are zero, and what was frozen is frozen, though it may have changed.

    Args:
        model: The network, in evaluation mode on the device of `example`; changed in place.
        finetuner: The loop. What it raises is passed on.
        n_steps: Minibatches; at 0 the loop is not called.
        example: An image, (1, C, H, W) float32.

    Returns:
        `model`, with the tensors of the network that the loop returned, if it returned one.

    Raises:
        TypeError: If the loop returns anything but a module or None.
        ValueError: If it returns or makes another network: quantizers lost, other names, shapes
            or dtypes.
        FloatingPointError: If a weight or a logit is not finite.
    """
    if n_steps == 0:
        return model
    before, masks = _kinds(model), _masks(model)
    frozen = {name for name, tensor in model.named_parameters() if not tensor.requires_grad}
    with torch.enable_grad():
        returned: Any = finetuner(model, n_steps)
    if not isinstance(returned, nn.Module | None):
        got = " ".join(repr(returned).split())
        raise TypeError(f"the finetuner must return a module or None, got {got:.80}")
    _check_same(before, _kinds(model))
    if returned is not None and returned is not model:
        trained = unwrapped(returned)
        _check_same(before, _kinds(trained))
        _take_over(model, trained)
    _restore(model.to(example.device).eval(), masks, frozen)
    _check_answers(model, example)
    return model


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(chain(model.named_parameters(), model.named_buffers()))


def _kinds(model: nn.Module) -> Kinds:
    return {name: (tuple(x.shape), x.dtype) for name, x in _tensors(model).items()}


def _masks(model: nn.Module) -> dict[str, Tensor]:
    """Return where the weights of convolutions and linear layers are not zero, by name."""
    return {
        f"{prefix}.{name}".lstrip("."): weight.detach() != 0
        for prefix, layer in compute_layers(model).items()
        for name, weight in layer.named_parameters()
        if weight.dim() > 1  # the (float) weight, also below a parametrization
    }


def _check_same(expected: Kinds, got: Kinds) -> None:
    """Check names, shapes and dtypes.

    Raises:
        ValueError: If any differ.
    """
    what = "the finetuner must train the network that it is given"
    for name, kind in expected.items():
        if name not in got:
            owner, is_computed, _ = name.partition(f".{_CHAIN}.")
            lost = f"the quantizer of {owner!r}" if is_computed else repr(name)
            raise ValueError(f"{what}: {lost} is gone")
        if got[name] != kind:
            now, then = _described(got[name]), _described(kind)
            raise ValueError(f"{what}: expected {name!r} to be {then}, got {now}")
    added = next((name for name in got if name not in expected), None)
    if added is not None:
        raise ValueError(f"{what}: {added!r} is new")


def _described(kind: tuple[tuple[int, ...], torch.dtype]) -> str:
    shape, dtype = kind
    return f"{shape} {str(dtype).removeprefix('torch.')}"


@torch.no_grad()
def _take_over(model: nn.Module, trained: nn.Module) -> None:
    tensors = _tensors(trained)
    for name, tensor in _tensors(model).items():
        tensor.copy_(tensors[name])


@torch.no_grad()
def _restore(model: nn.Module, masks: Mapping[str, Tensor], frozen: set[str]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
        parameter.grad = None
        if name in masks:
            parameter.masked_fill_(~masks[name], 0.0)


@torch.no_grad()
def _check_answers(model: nn.Module, example: Tensor) -> None:
    """Check weights and logits.

    Raises:
        FloatingPointError: If one is not finite.
    """
    try:
        check_finite(model)
    except ValueError as error:
        raise FloatingPointError(f"after the finetuner {error}") from None
    if not bool(torch.isfinite(model(example)).all()):
        raise FloatingPointError("after the finetuner logits are not finite")
