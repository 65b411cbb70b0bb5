"""One step of training on a copy of a network, so that what fails there fails before any work."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compress_env.errors import reason_of
from compress_env.task.finetune import compute_logits

__all__ = ["check_training_only", "rehearse_training"]

_ADVICE = "remove what runs only in training, such as auxiliary heads (aux_logits=False)"


def rehearse_training(
    model: nn.Module, images: Tensor, n_classes: int, *, bf16: bool, channels_last: bool
) -> frozenset[str]:
    """Run a network forwards and backwards in training mode, once.

    Args:
        model: A copy of the network, on the images' device; its buffers and gradients change.
        images: One minibatch, (b, C, H, W) float32.
        n_classes: Logits that are expected of each image.
        bf16: As in `compute_logits`.
        channels_last: As in `compute_logits`.

    Returns:
        The modules with parameters of their own that run in training mode only, by dotted name.

    Raises:
        ValueError: If the network cannot be trained, or does not return logits in training mode.
    """
    with _noting_modules(model) as evaluated, torch.no_grad():
        compute_logits(model.eval(), images, bf16=bf16, channels_last=channels_last)
    with _noting_modules(model) as trained, torch.enable_grad():
        model.train()
        try:
            logits = compute_logits(model, images, bf16=bf16, channels_last=channels_last)
        except Exception as error:  # foreign forward code fails in whatever way
            raise ValueError(_why_not_trainable(error, len(images))) from None
        _check_logits(logits, (len(images), n_classes))
        _go_back(logits)
    return frozenset(trained) - frozenset(evaluated)


def check_training_only(modules: Collection[str]) -> None:
    """Refuse to prune a network with modules that its evaluation does not show.

    Args:
        modules: See `rehearse_training`.

    Raises:
        ValueError: If there is one: nobody would cut its channels.
    """
    if modules:
        names = ", ".join(map(repr, sorted(modules)[:3])) + (", ..." if len(modules) > 3 else "")
        raise ValueError(
            f"modules {names} run in training mode only, so that pruning cannot follow their "
            "channels: remove them before, if they are auxiliary heads for example"
        )


def _check_logits(logits: Any, expected: tuple[int, int]) -> None:
    got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if got != expected:
        raise ValueError(
            f"in training mode the network returns {got}, not logits of shape {expected}: {_ADVICE}"
        )


def _go_back(logits: Tensor) -> None:
    labels = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    try:
        cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ValueError(_why_not_trainable(error, len(logits))) from None


def _why_not_trainable(error: Exception, n_images: int) -> str:
    reason = reason_of(error)
    if n_images == 1 and "more than 1 value per channel" in reason:
        return (
            "batch norm cannot be trained on batches of one image: "
            "give at least 2 training images and a batch_size of at least 2"
        )
    return f"the network cannot be trained: {reason}"


@contextmanager
def _noting_modules(model: nn.Module) -> Iterator[set[str]]:
    """Collect the names of modules with parameters of their own that run inside the block."""
    seen: set[str] = set()
    owners = [(n, m) for n, m in model.named_modules() if list(m.parameters(recurse=False))]
    hooks = [
        module.register_forward_pre_hook(lambda _m, _i, name=name: seen.add(name))
        for name, module in owners
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
