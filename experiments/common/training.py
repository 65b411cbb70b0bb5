"""Networks trained from scratch, one for each seed of an experiment."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from compress_env.data.bundle import DataBundle, ImageSource
from compress_env.data.datasets import stratified_split
from compress_env.networks.models import build_model
from compress_env.seeding import derive_generator, global_seed
from compress_env.task.finetune import Penalty, finetune
from compress_env.task.task import CompressionTask, FinetuneConfig

__all__ = ["limit_images", "seeded_task", "train_epochs", "train_with_marks"]


def seeded_task(
    model: str,
    data: DataBundle,
    *,
    seed: int,
    learning_rate: float,
    device: str,
    bf16: bool = False,
) -> CompressionTask:
    """Return a task whose network has the random weights of a seed.

    Args:
        model: A key of `compress_env.networks.models.MODELS`.
        data: The four image sets.
        seed: Seed of the weights.
        learning_rate: Highest step size of `train_epochs`.
        device: auto, cpu, cuda and so on.
        bf16: As in `FinetuneConfig`.
    """
    with global_seed(seed, torch.device("cpu")):
        network = build_model(model, data.num_classes, data.image_shape)
    settings = FinetuneConfig(learning_rate=learning_rate, bf16=bf16)
    return CompressionTask(network, data, device=device, config=settings)


def train_epochs(
    task: CompressionTask,
    network: nn.Module,
    n_epochs: int,
    seed: int,
    penalty: Penalty | None = None,
) -> None:
    """Train a network in place, its step size falling to 0 along a cosine.

    Args:
        task: Gives images and settings.
        network: The network.
        n_epochs: Passes over the training images.
        seed: Seed of their order, their augmentation and of noise.
        penalty: As in `CompressionTask.finetune`.

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    n_images = len(task.data.train)
    n_steps = n_epochs * max(1, n_images // task.config.batch_size)
    task.finetune(network, n_steps, derive_generator(seed, 0), anneal=True, penalty=penalty)
    task.reestimate_batch_norm(network, derive_generator(seed, 1))


def train_with_marks(
    task: CompressionTask, network: nn.Module, marks: Sequence[int], seed: int
) -> dict[int, nn.Module]:
    """Train a network in place and return copies of what it was on the way.

    Args:
        task: Gives images and settings.
        network: The network.
        marks: Epochs after which it is copied; the last of them ends the training, whose step size
            falls to 0 along one cosine. 0 stands for the network as it comes.
        seed: Seed of the order of the images and their augmentation.

    Returns:
        A network for each mark, in evaluation mode, its batch-norm statistics estimated anew.

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    n_epochs, config = max(marks), task.config
    per_epoch = max(1, len(task.data.train) // config.batch_size)
    generator = derive_generator(seed, 0)
    found: dict[int, nn.Module] = {}

    def watched() -> Iterator[tuple[Tensor, Tensor]]:
        for step, batch in enumerate(task.train_batches(n_epochs * per_epoch, generator)):
            epoch, rest = divmod(step, per_epoch)
            if rest == 0 and epoch in marks:
                found[epoch] = copy.deepcopy(network)
            yield batch

    task.prepare(network)
    with global_seed(generator.initial_seed(), task.device):  # dropout draws from there
        finetune(
            network,
            watched(),
            learning_rate=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            anneal_steps=max(1, n_epochs * per_epoch),
            bf16=config.bf16,
            channels_last=config.channels_last,
        )
    found[n_epochs] = copy.deepcopy(network)
    for each in found.values():
        task.reestimate_batch_norm(each.eval(), derive_generator(seed, 1))
    return found


def limit_images(
    data: DataBundle, n_validation: int | None, n_train: int | None = None
) -> DataBundle:
    """Return the bundle with at most so many images of a set, the same for all seeds.

    Args:
        data: The four image sets.
        n_validation: Most validation images; all of them when None.
        n_train: Most training images, those for calibration not counted; all of them when None.
    """
    validation, train = _limited(data.validation, n_validation), _limited(data.train, n_train)
    return replace(data, validation=validation, train=train)


def _limited(source: ImageSource, most: int | None) -> ImageSource:
    if most is None or most >= len(source):
        return source
    return source.subset(stratified_split(source.labels, [most], 0)[0])
