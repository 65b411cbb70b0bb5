"""Removal of single elements of a layer's weight, by the information that its outputs keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress_env.counts import check_count
from compress_env.pruning.variational import InformationDropout, remove_elements, saliency
from compress_env.task.layers import compute_layers
from compress_env.task.task import CompressionTask

__all__ = [
    "VariationalConfig",
    "dropout_behind",
    "measure_information",
    "prune_elements",
    "softplus_behind",
]


@dataclass(frozen=True)
class VariationalConfig:
    """How the information that a layer's outputs keep is found, and elements by it."""

    n_steps: int = 10
    """Minibatches of training with information dropout."""
    kl_weight: float = 0.1
    """Weight of the KL divergence, mean over units, against the cross-entropy."""
    temperature: float = 0.0
    """Randomness of the removal; 0 removes the least salient elements."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            TypeError: If `n_steps` is not an int.
            ValueError: If a setting is out of range.
        """
        object.__setattr__(self, "n_steps", check_count("n_steps", self.n_steps))
        for name in ("kl_weight", "temperature"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


def prune_elements(
    task: CompressionTask,
    model: nn.Module,
    layer: str,
    n_keep: int,
    input_rms: Tensor,
    config: VariationalConfig,
    generator: torch.Generator,
) -> None:
    """Zero all but `n_keep` elements of a layer's weight, in place.

    Args:
        task: Gives the images and trains.
        model: The live network, trained on the way.
        layer: Dotted name of a convolution or linear layer.
        n_keep: Elements that stay, at least 0.
        input_rms: Root mean square of each input of the layer, (D,).
        config: How.
        generator: A CPU generator: minibatches, noise and the choice of elements.

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    weight = compute_layers(model)[layer].weight
    if n_keep >= weight.numel():
        return
    information = measure_information(task, model, layer, config, generator)
    # (N, C, H, W) -> (N, D)
    scores = saliency(weight.detach().flatten(1), input_rms.to(weight.device), information)
    gone = remove_elements(scores, weight.numel() - n_keep, config.temperature, generator)
    with torch.no_grad():
        weight.masked_fill_(gone.view_as(weight), 0.0)


def measure_information(
    task: CompressionTask,
    model: nn.Module,
    layer: str,
    config: VariationalConfig,
    generator: torch.Generator,
) -> Tensor:
    """Train with information dropout behind a layer; return what each output keeps, (N,) nats."""
    with dropout_behind(model, layer, task.example_image()) as dropout:
        task.finetune(
            model,
            config.n_steps,
            generator,
            penalty=lambda: config.kl_weight * dropout.information.mean(),
            distill=0.0,  # what is weighed against the information is the cross-entropy
        )
        total, n_images = torch.zeros_like(dropout.offset.detach()), 0
        model.eval()
        with torch.no_grad():
            for images, _ in task.calibration_batches():
                model(images)
                total += dropout.information * len(images)
                n_images += len(images)
    return total / n_images


@contextmanager
def dropout_behind(model: nn.Module, layer: str, image: Tensor) -> Iterator[InformationDropout]:
    """Put information dropout behind a layer inside the block, trained with the network."""
    module = compute_layers(model)[layer]
    place = softplus_behind(model, layer, image)
    is_linear = isinstance(module, nn.Linear)
    dropout = InformationDropout(
        len(module.weight), dim=-1 if is_linear else 1, is_positive=place is not None
    ).to(image.device)
    target = module if place is None else place
    handle = target.register_forward_hook(lambda _m, _i, output: dropout(output))
    target.add_module("information_dropout", dropout)
    try:
        yield dropout
    finally:
        handle.remove()
        del target.information_dropout


def softplus_behind(model: nn.Module, layer: str, image: Tensor) -> nn.Softplus | None:
    """Return the softplus that a layer's output goes through next, batch norm aside, if any.

    There the features are positive, and the prior is log-normal. A ReLU may as well follow the
    noise: it is positive, and scales what passes.
    """
    order: list[nn.Module] = []
    leaves = [module for module in model.modules() if not any(module.children())]
    hooks = [leaf.register_forward_hook(lambda m, _i, _o: order.append(m)) for leaf in leaves]
    try:
        with torch.no_grad():
            model.eval()(image)
    finally:
        for hook in hooks:
            hook.remove()
    behind = iter(order[order.index(compute_layers(model)[layer]) + 1 :])
    module = next((m for m in behind if not isinstance(m, nn.modules.batchnorm._BatchNorm)), None)
    is_shared = module is not None and order.count(module) > 1
    return module if isinstance(module, nn.Softplus) and not is_shared else None
