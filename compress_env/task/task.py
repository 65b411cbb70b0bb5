"""CompressionTask: a network, its data, the device, how to fine-tune it and how to score it."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from compress_env.data.bundle import DataBundle, ImageSource, load_data
from compress_env.errors import reason_of
from compress_env.networks.intake import (
    check_finite,
    check_independent,
    check_state,
    unwrapped,
)
from compress_env.networks.libraries import preparation_of
from compress_env.networks.models import load_baseline, load_checkpoint
from compress_env.seeding import global_seed, random_states
from compress_env.task.config import FinetuneConfig
from compress_env.task.devices import select_device
from compress_env.task.finetune import (
    Carry,
    Penalty,
    compute_logits,
    finetune,
    reestimate_batch_norm,
)
from compress_env.task.finetuner import Finetuner, run_finetuner
from compress_env.task.layers import check_network
from compress_env.task.layout import channels_last_of, use_channels_last
from compress_env.task.rehearsal import rehearse_training
from compress_env.task.scoring import checked_score, halving, largest_batch, top_accuracies

__all__ = ["CompressionTask", "FinetuneConfig", "Finetuner", "Scorer", "select_device"]

Split = Literal["train", "calibration", "validation", "test"]


class ForwardOptions(TypedDict):
    """Keyword arguments of `compress_env.task.finetune.compute_logits`."""

    bf16: bool
    channels_last: bool


Scorer = Callable[[nn.Module], float]
"""Maps a network in evaluation mode to a score in [0, 1], used instead of validation accuracy."""


class CompressionTask:
    """What is compressed and how the result is judged; knows nothing of layers or agents.

    Attributes:
        model: The network before compression, in evaluation mode on `device`. Never changed.
        data: The four image sets, on `device`.
        device: Where everything runs.
        config: How networks are fine-tuned.
        training_only: Modules with parameters that run in training mode only, by dotted name.
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
        finetuner: Finetuner | None = None,
    ) -> None:
        """Load what is named, copy what is given.

        Args:
            model: A name in `compress_env.networks.models.MODELS`, or a trained module (copied).
            data: A name in `compress_env.data.bundle.DATASETS`, or a bundle (`make_data_bundle`).
            checkpoint: Weights for `model`: safetensors, or a `state_dict` that
                `torch.load(weights_only=True)` reads. A named model without a recipe needs it.
            data_root: Where a named data set lies.
            download: Whether a missing data set may be downloaded.
            device: `"auto"`, `"cuda:auto"` or any PyTorch device: see `select_device`.
            config: How networks are fine-tuned.
            scorer: Used instead of validation accuracy.
            finetuner: Called with a network and `n_steps` to fine-tune it in `finetune_step`.

        Raises:
            TypeError: If `model` or `data` is something else.
            ValueError: Unknown names, another default dtype than float32, a bad checkpoint, a
                network that does not fit the data, is random in evaluation mode or cannot be
                trained (a step is tried on a copy).
            FileNotFoundError: Missing data or checkpoint.
        """
        if not isinstance(model, str | nn.Module):
            raise TypeError(f"model must be a name or a module, got {model!r}")
        if not isinstance(data, str | DataBundle):
            raise TypeError(f"data must be a name or a DataBundle, got {type(data).__name__}")
        if torch.get_default_dtype() != torch.float32:
            raise ValueError(
                f"new tensors are {torch.get_default_dtype()}, expected torch.float32: call "
                "torch.set_default_dtype(torch.float32) first"
            )
        self.config = config or FinetuneConfig()
        self.device = select_device(device)
        if isinstance(data, str):
            own = preparation_of(model) if isinstance(model, str) else None
            data = load_data(data, data_root=data_root, download=download, preparation=own)
        self.data = data.to(self.device)
        original = None
        if isinstance(model, str):
            model = load_baseline(model, self.data, checkpoint=checkpoint, device=self.device)
        else:
            original = unwrapped(model)
            check_network(original)
            check_state(original)
            model = copy.deepcopy(original)
            if checkpoint is not None:
                load_checkpoint(model, checkpoint)
            check_finite(model)
        self.model = model.to(self.device).eval()
        self._scorer, self._finetuner = scorer, finetuner
        self._scoring_size = largest_batch(self.data.image_shape, self.config.evaluation_batch_size)
        self._scores_channels_last = self.config.channels_last
        self.prepare(self.model)
        self._check_logits()
        if original is not None:
            check_independent(self.model, original, lambda: self._why_no_logits(1))
        self._check_repeats()
        self.training_only = self._rehearse()
        if self.device.type == "cpu":
            self._scores_channels_last = self._takes_channels_last()

    def copy_model(self) -> nn.Module:
        """Return a copy of `model`.

        Most of what a module holds are empty containers, which `copy.deepcopy` copies slowly: it is
        given the copies of these.
        """
        held = [value for module in self.model.modules() for value in vars(module).values()]
        empty = {id(x): type(x)() for x in held if type(x) in (dict, OrderedDict, set) and not x}
        return copy.deepcopy(self.model, empty)

    def _check_logits(self) -> None:
        """Check that images of the data lead to logits, a single one, too."""
        reason = self._why_no_logits(1)
        if reason is not None and self._why_no_logits(2) is None:
            raise ValueError(
                f"{reason}, but two images are fine: something drops the dimension of a batch of "
                "one image, as squeeze() does; use flatten(1) instead"
            )
        if reason is not None:
            hint = "make_data_bundle(num_classes=) tells of classes without images"
            raise ValueError(f"{reason}; {hint}" if "must return logits" in reason else reason)

    def _why_no_logits(self, n_images: int) -> str | None:
        """Return why a batch of images does not lead to logits; None when it does."""
        expected = (n_images, self.data.num_classes)
        try:
            logits = self._example_logits(n_images, channels_last=self.config.channels_last)
        except Exception as error:  # foreign forward code fails in whatever way
            return f"model cannot take images of shape {self.data.image_shape}: {reason_of(error)}"
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        return (
            None if got == expected else f"model must return logits of shape {expected}, got {got}"
        )

    def _rehearse(self) -> frozenset[str]:
        """Try a step of training where there is something to train."""
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            return frozenset()
        n_images = min(2, self.config.batch_size, len(self.data.train))
        with torch.inference_mode(False), global_seed(0, self.device):  # dropout draws from there
            return rehearse_training(
                self.copy_model(),
                self._example_images(n_images),
                self.data.num_classes,
                bf16=self.config.bf16,
                channels_last=self.config.channels_last,
            )

    def _example_images(self, n_images: int) -> Tensor:
        """Return the example image, over and over, (n_images, C, H, W)."""
        return self.example_image().repeat(n_images, 1, 1, 1)

    def _check_repeats(self) -> None:
        """Check that the network answers the same each time, and draws nothing at random."""
        before = random_states(self.device)
        first, second = (
            self._example_logits(1, channels_last=self.config.channels_last) for _ in range(2)
        )
        # Sums may be rounded in another order each time, on a GPU more so.
        tolerance = 1e-3 if self.device.type == "cuda" else 1e-5
        is_same = torch.allclose(first, second, tolerance, tolerance, equal_nan=True)
        if not is_same or random_states(self.device) != before:
            raise ValueError(
                "model is random in evaluation mode too, as with dropout that is always on: its "
                "scores would differ from run to run; let it draw nothing after eval()"
            )

    @torch.no_grad()
    def _example_logits(self, n_images: int, *, channels_last: bool) -> Tensor:
        images, bf16 = self._example_images(n_images), self.config.bf16
        return compute_logits(self.model, images, bf16=bf16, channels_last=channels_last)

    def _takes_channels_last(self) -> bool:
        """Whether the network answers the same to images that lie channels last in memory.

        `view` cannot flatten such features, `flatten` and `reshape` can.
        """
        try:
            logits = self._example_logits(1, channels_last=True)
        except RuntimeError:
            return False
        expected = self._example_logits(1, channels_last=False)
        return torch.allclose(logits, expected, rtol=1e-2, atol=1e-2, equal_nan=True)

    def prepare(self, model: nn.Module) -> None:
        """Give a network the memory layout that it is computed in, in place.

        Done by everything that runs a network, so that a network gives the same numbers however it
        came about; values and parameter objects stay.
        """
        if self.config.channels_last:
            use_channels_last(model)

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
        warmup_steps: int = 0,
        penalty: Penalty | None = None,
        carry: Carry | None = None,
        distill: float | None = None,
        halve: bool = False,
    ) -> None:
        """Run `n_steps` minibatches of SGD on `model`, in place.

        Args:
            model: The network.
            n_steps: Minibatches; 0 leaves the network alone.
            generator: Draws minibatches and augmentation; its seed is that of dropout.
            anneal: Whether the learning rate falls to 0 along a cosine; constant otherwise.
            warmup_steps: Minibatches over which the learning rate rises to its full value.
            penalty: What is added to the loss, if anything.
            carry: Of a fine-tuning in parts, what each hands on to the next.
            distill: Weight of the uncompressed network's answers, in [0, 1]; as in the
                configuration when None.
            halve: Whether minibatches that do not fit into memory are computed in parts.

        Raises:
            torch.OutOfMemoryError: If a minibatch does not fit into memory.
            FloatingPointError: If the loss is not finite.
            ValueError: If `distill` is out of range.
        """
        self.prepare(model)
        if n_steps == 0:
            return
        config = self.config if distill is None else replace(self.config, distill=distill)
        batches = self.train_batches(n_steps, generator)
        with global_seed(generator.initial_seed(), self.device):  # dropout draws from there
            finetune(
                model,
                batches,
                learning_rate=config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                anneal_steps=(carry.n_steps if carry else n_steps) if anneal else None,
                warmup_steps=warmup_steps,
                penalty=penalty,
                carry=carry,
                teacher=self.model,
                distill=config.distill,
                distill_temperature=config.distill_temperature,
                bf16=config.bf16,
                channels_last=config.channels_last,
                halve=halve,
            )

    def finetune_step(self, model: nn.Module, n_steps: int, generator: torch.Generator) -> None:
        """Fine-tune within an episode, in place: by the injected finetuner if there is one.

        The finetuner runs under global random states that follow from the generator's seed.

        Args:
            model: The network.
            n_steps: Minibatches; 0 leaves the network alone.
            generator: As in `finetune`.

        Raises:
            FloatingPointError: If the loss, a weight or a logit is not finite.
            TypeError: See `run_finetuner`; likewise `ValueError`.
        """
        if self._finetuner is None:
            return self.finetune(model, n_steps, generator)
        self.prepare(model)
        with global_seed(generator.initial_seed(), self.device):
            run_finetuner(model, self._finetuner, n_steps, self.example_image())
        self.prepare(model)

    def reestimate_batch_norm(self, model: nn.Module, generator: torch.Generator) -> None:
        """Estimate the running statistics of every batch-norm from training images, in place."""
        self.prepare(model)
        batches = self.train_batches(self.config.batch_norm_batches, generator)
        reestimate_batch_norm(model, batches, **self._scoring)

    def train_batches(
        self, n_batches: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw minibatches of training images without replacement within an epoch."""
        if n_batches == 0:
            return
        source, size = self.data.train, min(self.config.batch_size, len(self.data.train))
        per_epoch = len(source) // size
        n_epochs = math.ceil(n_batches / per_epoch)
        epochs = (torch.randperm(len(source), generator=generator) for _ in range(n_epochs))
        order = torch.cat([epoch[: per_epoch * size] for epoch in epochs])
        batches = torch.split(order[: n_batches * size], size)
        yield from source.batches(batches, generator=generator)

    def calibration_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all calibration images in their order, in the memory layout of scoring."""
        for images, labels in self._in_order(self.data.calibration, self._scoring_size):
            yield (channels_last_of(images) if self._scores_channels_last else images), labels

    def score(self, model: nn.Module) -> float:
        """Return the validation accuracy of `model`, or what the injected scorer says.

        Raises:
            FloatingPointError: If the score or a logit is not finite.
            TypeError: If the scorer returns no number.
            ValueError: If it returns one outside [0, 1].
        """
        if self._scorer is None:
            return self.accuracy(model, "validation")
        return checked_score(self._scorer(model.eval()))

    def accuracy(self, model: nn.Module, split: Split) -> float:
        """Return the accuracy of `model`, a fraction: see `accuracies`."""
        return self.accuracies(model, split, (1,))[0]

    def accuracies(self, model: nn.Module, split: Split, tops: Sequence[int]) -> list[float]:
        """Return how often `model` has the label among its first answers, on an image set.

        Where a batch does not fit into memory, batches are half as large from then on, and all
        images are evaluated again.

        Args:
            model: The network.
            split: The image set.
            tops: For each fraction, how many answers count.

        Raises:
            FloatingPointError: If a logit is not finite.
            torch.OutOfMemoryError: If not even one image fits.
        """
        source: ImageSource = getattr(self.data, split)
        self.prepare(model)

        def score(size: int) -> list[float]:
            return top_accuracies(model, self._in_order(source, size), tops, **self._scoring)

        first = min(self._scoring_size, len(source))
        accuracies, size = halving(score, first)
        if size < first:
            self._scoring_size = size
        return accuracies

    @property
    def scoring_batch_size(self) -> int:
        """Images per batch when scoring, halved whenever so many did not fit into memory."""
        return self._scoring_size

    @property
    def _scoring(self) -> ForwardOptions:
        return {"bf16": self.config.bf16, "channels_last": self._scores_channels_last}

    @staticmethod
    def _in_order(source: ImageSource, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        n_batches = math.ceil(len(source) / size)
        return source.batches(torch.arange(len(source)).tensor_split(n_batches))
