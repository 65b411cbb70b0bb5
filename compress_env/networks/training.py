"""Training a network by a recipe, epoch by epoch.

Shapes: b images in a minibatch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compress_env.data.datasets import ImageSource
from compress_env.seeding import derive_generator, global_seed
from compress_env.task.distillation import distillation_loss
from compress_env.task.finetune import compute_logits
from compress_env.task.layout import use_channels_last
from compress_env.task.parts import Parts

__all__ = ["Recipe", "Training", "train_by_recipe"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum and a one-cycle learning rate.

    The rate rises to its peak over the first 30 % of the minibatches and falls to 0 after that,
    both along a cosine.
    """

    epochs: int
    """Passes over the training images."""
    batch_size: int = 64
    """Images in a minibatch."""
    learning_rate: float = 0.05
    """Peak of the one-cycle schedule."""
    momentum: float = 0.9
    """Nesterov momentum."""
    weight_decay: float = 5e-4
    """L2 penalty on all parameters."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes, in [0, 1]."""
    seed: int = 0
    """Seed of the initial weights, the order of the images, their augmentation and dropout."""


class Training:
    """A network that is being trained in place; between two epochs it can stop and go on.

    What dropout and its kin draw in an epoch follows from the seed and the number of the epoch;
    PyTorch's global random state is left as it was.

    Minibatches that do not fit into memory are computed in parts: see `compress_env.task.parts`.

    Args:
        model: A network from images (b, C, H, W) to logits (b, K).
        train: Its training images, on the network's device.
        recipe: How to train; the seed is of the order of the images, their augmentation and
            dropout.
        bf16: Whether the forward pass runs under autocast in bfloat16; weights stay float32.
        channels_last: Whether network and images are laid out channels last.
        teacher: A network for the same images, in evaluation mode, to distil from.
        distill: Weight of its answers in the loss, in [0, 1]; at 0 it is not run.
        distill_temperature: What logits are divided by where answers are compared.
    """

    def __init__(
        self,
        model: nn.Module,
        train: ImageSource,
        recipe: Recipe,
        *,
        bf16: bool = False,
        channels_last: bool = False,
        teacher: nn.Module | None = None,
        distill: float = 0.0,
        distill_temperature: float = 4.0,
    ) -> None:
        """Prepare the first epoch."""
        self.model, self.recipe, self.n_done = model, recipe, 0
        self._train, self._bf16, self._channels_last = train, bf16, channels_last
        self._teacher, self._distill = teacher, distill
        self._distill_temperature, self._parts = distill_temperature, Parts()
        if channels_last:
            use_channels_last(model)
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self._batch_size = min(recipe.batch_size, len(train))
        self.n_batches = len(train) // self._batch_size
        self._optimizer = torch.optim.SGD(
            model.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=True,
        )
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, recipe.learning_rate, total_steps=recipe.epochs * self.n_batches
        )

    @property
    def learning_rate(self) -> float:
        """Step size of the next minibatch."""
        return float(self._schedule.get_last_lr()[0])

    def run_epoch(self) -> float:
        """Train for one epoch and return the mean loss of its minibatches.

        Raises:
            RuntimeError: If training diverges.
        """
        self.model.train()
        with self._seeded():
            losses = [self._step(images, labels) for images, labels in self._batches()]
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise RuntimeError(f"training diverged: the loss is {loss}")
        self.n_done += 1
        return loss

    def _seeded(self) -> AbstractContextManager[None]:
        """Seed inside the block what layers draw from that have no generator, as dropout."""
        own = derive_generator(self._generator.initial_seed(), self.n_done)
        return global_seed(own.initial_seed(), next(self.model.parameters()).device)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._train), generator=self._generator)
        used = order[: self.n_batches * self._batch_size]
        return iter(
            self._train.batches(torch.split(used, self._batch_size), generator=self._generator)
        )

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        self._optimizer.zero_grad()
        loss = self._parts.add_gradients(self._loss_of, images, labels, self._optimizer.zero_grad)
        self._optimizer.step()
        self._schedule.step()
        return loss

    def _loss_of(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self._answers_of(self.model, images)
        loss = cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        if self._teacher is not None and self._distill > 0.0:
            with torch.no_grad():
                answers = self._answers_of(self._teacher, images)
            softened = distillation_loss(logits, answers, self._distill_temperature)
            loss = (1.0 - self._distill) * loss + self._distill * softened
        return loss

    def _answers_of(self, model: nn.Module, images: Tensor) -> Tensor:
        return compute_logits(model, images, bf16=self._bf16, channels_last=self._channels_last)

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs: tensors and plain values."""
        return {
            "epochs": self.n_done,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": _plain(self._schedule.state_dict()),
            "generator": self._generator.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after the epoch that a state was taken at.

        Raises:
            ValueError: If it is of no epoch of this training. What else does not fit ends with what
                PyTorch says of it.
        """
        n_done = int(state["epochs"])
        if not 0 <= n_done <= self.recipe.epochs:
            raise ValueError(f"expected 0 to {self.recipe.epochs} finished epochs, got {n_done}")
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._generator.set_state(state["generator"])
        if self._schedule.last_epoch != n_done * self.n_batches:
            raise ValueError(
                f"expected {n_done * self.n_batches} minibatches in {n_done} epochs, got "
                f"{self._schedule.last_epoch}"
            )
        self.n_done = n_done


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Leave out the functions among a schedule's attributes, which are the same each time."""
    return {name: value for name, value in state.items() if not callable(value)}


def train_by_recipe(
    model: nn.Module,
    train: ImageSource,
    recipe: Recipe,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train a network in place.

    Args:
        model: A network from images (b, C, H, W) to logits (b, K).
        train: Its training images, on the network's device.
        recipe: How to train; the seed is of the order of the images, their augmentation and
            dropout.
        progress: Called with (epochs done, epochs) after each epoch.

    Raises:
        RuntimeError: If training diverges.
    """
    training = Training(model, train, recipe)
    while training.n_done < recipe.epochs:
        training.run_epoch()
        if progress is not None:
            progress(training.n_done, recipe.epochs)
