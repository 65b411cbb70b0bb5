"""CompressionTask: a network, its data, the device, how to fine-tune it and how to score it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from compress_env.data import DataBundle, ImageSource, load_data
from compress_env.finetune import evaluate, finetune, reestimate_batch_norm
from compress_env.models import load_baseline, load_checkpoint
from compress_env.seeding import global_seed

__all__ = ["CompressionTask", "FinetuneConfig", "Scorer", "select_device"]

Split = Literal["train", "calibration", "validation", "test"]
Scorer = Callable[[nn.Module], float]
"""Maps a network in evaluation mode to a score in [0, 1], used instead of validation accuracy."""


@dataclass(frozen=True)
class FinetuneConfig:
    """How a network is fine-tuned and evaluated."""

    batch_size: int = 64
    """Images per fine-tuning minibatch."""
    learning_rate: float = 0.01
    """Step size of SGD."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty."""
    evaluation_batch_size: int = 500
    """Images per batch when scoring."""
    batch_norm_batches: int = 8
    """Batches of training images from which running statistics are estimated anew."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: If a setting is out of range.
        """
        for name in ("batch_size", "evaluation_batch_size", "batch_norm_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        for name in ("momentum", "weight_decay"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


def select_device(device: str | torch.device) -> torch.device:
    """Turn `"auto"`, a name or a device into a device that is there.

    Raises:
        ValueError: If the device is unknown or not available.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        selected = torch.device(device)
        torch.empty(0, device=selected)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} is not available: {reason}") from None
    return selected


class CompressionTask:
    """What is compressed and how the result is judged; knows nothing of layers or agents.

    Attributes:
        model: The network before compression, in evaluation mode on `device`. Never changed.
        data: The four image sets, on `device`.
        device: Where everything runs.
        config: How networks are fine-tuned.
    """

    def __init__(
        self,
        model: str | nn.Module = "lenet5",
        data: str | DataBundle = "digits",
        *,
        checkpoint: str | Path | None = None,
        data_root: str | Path | None = None,
        download: bool = False,
        device: str | torch.device = "auto",
        config: FinetuneConfig | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        """Load what is named, copy what is given.

        Args:
            model: A name in `compress_env.models.MODELS`, or a trained module (copied).
            data: A name in `compress_env.data.DATASETS`, or a bundle (`make_data_bundle`).
            checkpoint: Weights for `model`: safetensors, or a `state_dict` that
                `torch.load(weights_only=True)` reads. A named model without a recipe needs it.
            data_root: Where a named data set lies.
            download: Whether a missing data set may be downloaded.
            device: `"auto"` (CUDA when there), or any PyTorch device.
            config: How networks are fine-tuned.
            scorer: Used instead of validation accuracy.

        Raises:
            TypeError: If `model` or `data` is something else.
            ValueError: Unknown names, a network that does not fit the data, a bad checkpoint.
            FileNotFoundError: Missing data or checkpoint.
        """
        if not isinstance(model, str | nn.Module):
            raise TypeError(f"model must be a name or a module, got {model!r}")
        if not isinstance(data, str | DataBundle):
            raise TypeError(f"data must be a name or a DataBundle, got {type(data).__name__}")
        self.config = config or FinetuneConfig()
        self.device = select_device(device)
        if isinstance(data, str):
            data = load_data(data, data_root=data_root, download=download)
        self.data = data.to(self.device)
        if isinstance(model, str):
            model = load_baseline(model, self.data, checkpoint=checkpoint, device=self.device)
        else:
            model = copy.deepcopy(model)
            if checkpoint is not None:
                load_checkpoint(model, checkpoint)
        self.model = model.to(self.device).eval()
        self._scorer = scorer
        self._check_logits()

    def _check_logits(self) -> None:
        expected = (1, self.data.num_classes)
        try:
            with torch.no_grad():
                logits = self.model(self.example_image())
        except (RuntimeError, TypeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            shape = self.data.image_shape
            raise ValueError(f"model cannot take images of shape {shape}: {reason}") from None
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"model must return logits of shape {expected}, got {got}; "
                "make_data_bundle(num_classes=) tells of classes without images"
            )

    def example_image(self) -> Tensor:
        """Return the first calibration image, (1, C, H, W) float32 on the device."""
        return next(self.data.calibration.batches([torch.tensor([0])]))[0]

    def finetune(
        self,
        model: nn.Module,
        n_steps: int,
        generator: torch.Generator,
        *,
        anneal: bool = False,
    ) -> None:
        """Run `n_steps` minibatches of SGD on `model`, in place.

        Args:
            model: The network.
            n_steps: Minibatches; 0 leaves the network alone.
            generator: Draws minibatches and augmentation; its seed is that of dropout.
            anneal: Whether the learning rate falls to 0 along a cosine; constant otherwise.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        if n_steps == 0:
            return
        batches = self.train_batches(n_steps, generator)
        with global_seed(generator.initial_seed(), self.device):  # dropout draws from there
            finetune(
                model,
                batches,
                learning_rate=self.config.learning_rate,
                momentum=self.config.momentum,
                weight_decay=self.config.weight_decay,
                anneal_steps=n_steps if anneal else None,
            )

    def reestimate_batch_norm(self, model: nn.Module, generator: torch.Generator) -> None:
        """Estimate the running statistics of every batch-norm from training images, in place."""
        batches = self.train_batches(self.config.batch_norm_batches, generator)
        reestimate_batch_norm(model, batches)

    def train_batches(
        self, n_batches: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw minibatches of training images without replacement within an epoch."""
        source, size = self.data.train, min(self.config.batch_size, len(self.data.train))
        per_epoch = len(source) // size
        n_epochs = math.ceil(n_batches / per_epoch)
        order = [torch.randperm(len(source), generator=generator) for _ in range(n_epochs)]
        batches = [b for epoch in order for b in torch.split(epoch, size) if len(b) == size]
        yield from source.batches(batches[:n_batches], generator=generator)

    def calibration_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return all calibration images in their order."""
        return self._in_order(self.data.calibration)

    def score(self, model: nn.Module) -> float:
        """Return the validation accuracy of `model`, or what the injected scorer says.

        Raises:
            FloatingPointError: If the score or a logit is not finite.
        """
        if self._scorer is None:
            return self.accuracy(model, "validation")
        score = float(self._scorer(model.eval()))
        if not math.isfinite(score):
            raise FloatingPointError(f"the scorer returned {score}")
        return score

    def accuracy(self, model: nn.Module, split: Split) -> float:
        """Return the accuracy of `model`, a fraction, on one of the four image sets."""
        return evaluate(model, self._in_order(getattr(self.data, split)))

    def _in_order(self, source: ImageSource) -> Iterator[tuple[Tensor, Tensor]]:
        batches = torch.split(torch.arange(len(source)), self.config.evaluation_batch_size)
        return source.batches(batches)
