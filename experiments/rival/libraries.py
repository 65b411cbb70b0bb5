"""Pruners of other libraries, each as it prunes by itself, at the budget that all others have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compress_env.seeding import derive_generator
from compress_env.task.counting import total_macs
from compress_env.task.parts import Parts
from compress_env.task.task import CompressionTask
from experiments.rival import fastnas

__all__ = ["LIBRARIES", "Pruned", "Request", "prune_globally"]

N_STEPS = 400
"""Steps in which Torch-Pruning would remove every channel; it is stopped at the budget."""
MAX_PRUNING_RATIO = 0.95
"""Most of a layer's channels that go, as in the environments."""
N_IMAGES = 128
"""Images of the minibatch from which each step of Taylor pruning takes its gradients."""


class Request(NamedTuple):
    """What is pruned, and how far."""

    task: CompressionTask
    """The network and its images."""
    max_macs: float
    """Most multiply-accumulates that may be left."""
    seed: int
    """Seed of what is drawn."""
    evaluations: int
    """Most networks that a search may evaluate."""


class Pruned(NamedTuple):
    """What a pruner leaves."""

    model: nn.Module
    """The pruned network, not fine-tuned."""
    n_evaluations: int
    """Networks evaluated on validation images."""


def prune_globally(
    request: Request, importance: Callable[..., Any], *, needs_gradients: bool
) -> Pruned:
    """Let Torch-Pruning rank the channels of all groups, a few removed at a time.

    Args:
        request: What is pruned.
        importance: One of `torch_pruning.importance`.
        needs_gradients: Whether it reads gradients of the loss, which are taken anew in each step.

    Raises:
        ValueError: If the budget is below what is left at the end.
    """
    task = request.task
    model, image = task.copy_model().eval(), task.example_image()
    classes = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == task.data.num_classes
    ]
    pruner = tp.pruner.BasePruner(
        model,
        image,
        importance=importance,
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=MAX_PRUNING_RATIO,
        iterative_steps=N_STEPS,
        ignored_layers=classes,
    )
    batches = _batches(request)
    while (macs := total_macs(model, image)) > request.max_macs:
        if pruner.current_step == N_STEPS:
            raise ValueError(
                f"Torch-Pruning is left with {macs:,} multiply-accumulates, the budget is "
                f"{request.max_macs:,.0f}"
            )
        if needs_gradients:
            _take_gradients(model, *next(batches))
        pruner.step()
    model.zero_grad()
    return Pruned(model, 0)


def _batches(request: Request) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield minibatches of training images, pass after pass."""
    train, generator = request.task.data.train, derive_generator(request.seed, 0)
    while True:
        order = torch.randperm(len(train), generator=generator)
        yield from train.batches(torch.split(order, min(N_IMAGES, len(train))))


def _take_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    def loss_of(part: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(model(part), targets)

    model.zero_grad()
    Parts().add_gradients(loss_of, images, labels, model.zero_grad)


def _l2(request: Request) -> Pruned:
    """Torch-Pruning's default: L2 norms of groups, divided by the group's mean."""
    found = tp.importance.GroupMagnitudeImportance(p=2)
    return prune_globally(request, found, needs_gradients=False)


def _taylor(request: Request) -> Pruned:
    """Torch-Pruning's first-order Taylor importance of groups."""
    return prune_globally(request, tp.importance.GroupTaylorImportance(), needs_gradients=True)


def _fastnas(request: Request) -> Pruned:
    """NVIDIA Model Optimizer's FastNAS."""
    return Pruned(*fastnas.search(*request[:2], request.evaluations, request.seed))


LIBRARIES: dict[str, Callable[[Request], Pruned]] = {
    "tp_l2": _l2,
    "tp_taylor": _taylor,
    "fastnas": _fastnas,
}
"""Pruners by the name of their row."""
