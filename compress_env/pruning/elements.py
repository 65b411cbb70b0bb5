"""Removal of single elements of a layer's weight, by the information that its outputs keep."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from compress_env.counts import check_count
from compress_env.names import check_name
from compress_env.pruning.variational import (
    AlphaForm,
    InformationDropout,
    remove_elements,
    saliency,
)
from compress_env.seeding import derive_generator
from compress_env.task.finetune import Penalty
from compress_env.task.layers import compute_layers
from compress_env.task.task import CompressionTask

__all__ = [
    "LEAST_STD",
    "PRESETS",
    "ElementPruner",
    "Information",
    "Measured",
    "Preset",
    "VariationalConfig",
    "dropout_behind",
    "measure_information",
    "softplus_behind",
    "zero_elements",
]

_logger = logging.getLogger(__name__)
WINDOW = 25
"""Minibatches over which the information is averaged while it is watched."""
LEAST_STD = 0.05
"""Standard deviation of the information over units, in nats, below which they are not told
apart."""


@dataclass(frozen=True)
class VariationalConfig:
    """How the information that a layer's outputs keep is found, and elements by it."""

    n_steps: int = 200
    """Most minibatches of training with information dropout; 0 goes by the weights alone."""
    kl_weight: float = 3e-6
    """Weight of an image's KL divergence, summed over the layer's units, against the
    cross-entropy."""
    alpha: AlphaForm = "channel"
    """What the width of a unit's noise follows from, see `InformationDropout`."""
    alpha_learning_rate: float = 0.1
    """Step size of Adam for the parameters of that."""
    tolerance: float = 0.05
    """Training ends early once the standard deviation of the information over units changes by
    less than this fraction in `WINDOW` minibatches; 0 never ends it early."""
    temperature: float = 0.0
    """Randomness of the removal; 0 removes the least salient elements."""
    shuffle: bool = False
    """Give every unit the information of another one, drawn at random; a control."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            TypeError: If `n_steps` is not an int.
            ValueError: If a setting is out of range, or there is no such form of alpha.
        """
        object.__setattr__(self, "n_steps", check_count("n_steps", self.n_steps))
        check_name("alpha", self.alpha, get_args(AlphaForm))
        for name in ("kl_weight", "alpha_learning_rate", "tolerance", "temperature"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


Preset = Literal["default", "paper"]
"""Settings of variational pruning that have a name."""
PRESETS: dict[Preset, VariationalConfig] = {
    "default": VariationalConfig(),
    "paper": VariationalConfig(temperature=1.0),
}
"""Settings by name. The paper removes elements with a probability: the default's removal is the
limit of that for a temperature of 0."""


class Information(NamedTuple):
    """What the outputs of a layer keep."""

    values: Tensor
    """I_n of each output channel, mean over images and positions, (N,), in nats."""
    n_steps: int
    """Minibatches after which it was measured."""

    @property
    def std(self) -> float:
        """Standard deviation over output channels, in nats: whether units are told apart."""
        return float(self.values.std(correction=0))

    @property
    def spread(self) -> float | None:
        """The standard deviation; None where nothing was trained."""
        return self.std if self.n_steps else None


class Measured(NamedTuple):
    """What training with information dropout has led to, and from where."""

    layer: str
    """Dotted name of the layer."""
    seed: int
    """That of the generator."""
    before: dict[str, Tensor]
    """Weights of the network as it came, by name."""
    after: dict[str, Tensor]
    """Weights of the trained network, by name."""
    rms: Tensor
    """Root mean square of each input of the layer, (D,)."""
    information: Information
    """What its outputs keep."""

    def is_of(self, model: nn.Module, layer: str, seed: int) -> bool:
        """Return whether training would lead there again."""
        now = model.state_dict()
        return (self.layer, self.seed, self.before.keys()) == (layer, seed, now.keys()) and all(
            torch.equal(x, now[name]) for name, x in self.before.items()
        )


class ElementPruner:
    """Zeroes elements of one layer after the other, by the information that its outputs keep.

    What the last training has led to is kept: another rate of the same layer of the same network
    needs none.
    """

    last: Measured | None
    """What the last training has led to."""

    def __init__(self, task: CompressionTask, config: VariationalConfig) -> None:
        """Prune networks of `task` as `config` says."""
        self._task, self._config = task, config
        self.last = None

    def forget(self) -> None:
        """Let go of what is kept."""
        self.last = None

    def prune(
        self,
        model: nn.Module,
        layer: str,
        n_keep: int,
        input_rms: Callable[[], Tensor],
        generator: torch.Generator,
    ) -> Information:
        """Train a network and zero all but `n_keep` elements of a layer's weight, in place.

        Args:
            model: The live network.
            layer: Dotted name of a convolution or linear layer.
            n_keep: Elements that stay, at least 0.
            input_rms: Returns the root mean square of each input of the layer, (D,).
            generator: A CPU generator whose seed is that of minibatches, noise and choice.

        Returns:
            What the layer's outputs keep.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        seed = generator.initial_seed()
        if self.last is None or not self.last.is_of(model, layer, seed):
            before, rms = _weights_of(model), input_rms()
            information = measure_information(self._task, model, layer, self._config, generator)
            self.last = Measured(layer, seed, before, _weights_of(model), rms, information)
        _, _, _, after, rms, information = self.last
        model.load_state_dict(after)
        weight = compute_layers(model)[layer].weight
        zero_elements(weight, n_keep, rms, information, self._config, derive_generator(seed, 1))
        return information


def _weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def zero_elements(
    weight: Tensor,
    n_keep: int,
    input_rms: Tensor,
    information: Information,
    config: VariationalConfig,
    generator: torch.Generator,
) -> None:
    """Zero all but `n_keep` elements of a weight (N, ...), in place, the least salient likeliest.

    Args:
        weight: The weight.
        n_keep: Elements that stay.
        input_rms: Root mean square of each input, (D,).
        information: What the outputs keep.
        config: How elements are chosen.
        generator: A CPU generator, drawn from where chance plays a part.
    """
    values = information.values
    if config.shuffle:
        values = values[torch.randperm(len(values), generator=generator).to(values.device)]
    # (N, C, H, W) -> (N, D)
    scores = saliency(weight.flatten(1), input_rms.to(weight.device), values)
    gone = remove_elements(scores, weight.numel() - n_keep, config.temperature, generator)
    weight.masked_fill_(gone.view_as(weight), 0.0)


def measure_information(
    task: CompressionTask,
    model: nn.Module,
    layer: str,
    config: VariationalConfig,
    generator: torch.Generator,
) -> Information:
    """Train with information dropout behind a layer; return what each output keeps.

    Training ends once it is settled which units keep more than others, see
    `VariationalConfig.tolerance`; the log says when that was, and how far they differ. Where it has
    not told them apart, a warning says so.
    """
    with dropout_behind(model, layer, task.example_image(), config.alpha) as dropout:
        watch = _Watch(dropout, config.tolerance)
        penalty = Penalty(
            lambda: config.kl_weight * dropout.divergence,
            torch.optim.Adam(dropout.parameters(), config.alpha_learning_rate),
            watch.is_settled,
        )
        # What is weighed against the information is the cross-entropy alone.
        task.finetune(model, config.n_steps, generator, penalty=penalty, distill=0.0)
        information = Information(_mean_information(task, model, dropout), watch.n_steps)
    _logger.info(
        "outputs of %r keep %.3f nats on average, standard deviation %.3f, after %d minibatches",
        layer,
        float(information.values.mean()),
        information.std,
        information.n_steps,
    )
    if config.n_steps > 0 and len(information.values) > 1 and information.std < LEAST_STD:
        warnings.warn(
            f"information dropout has not told the outputs of {layer!r} apart: the standard "
            f"deviation of their information is {information.std:.3f} nats, below {LEAST_STD}; "
            "raise n_steps, alpha_learning_rate or kl_weight",
            stacklevel=2,
        )
    return information


@torch.no_grad()
def _mean_information(
    task: CompressionTask, model: nn.Module, dropout: InformationDropout
) -> Tensor:
    total, n_images = torch.zeros_like(dropout.offset), 0
    model.eval()
    for images, _ in task.calibration_batches():
        model(images)
        total += dropout.information * len(images)
        n_images += len(images)
    return total / n_images


class _Watch:
    """Tells when the spread of the information over units has settled.

    The information of `WINDOW` minibatches is averaged; its standard deviation is compared with
    that of the window before.
    """

    def __init__(self, dropout: InformationDropout, tolerance: float) -> None:
        self.n_steps = 0
        self._dropout, self._tolerance = dropout, tolerance
        self._total = torch.zeros_like(dropout.offset.detach())
        self._last = 0.0

    def is_settled(self) -> bool:
        """Note a minibatch; wait for the device only at the end of a window."""
        self.n_steps += 1
        self._total += self._dropout.information.detach()
        if self._tolerance == 0.0 or self.n_steps % WINDOW:
            return False
        now = float((self._total / WINDOW).std(correction=0))
        self._total.zero_()
        before, self._last = self._last, now
        return now >= LEAST_STD and abs(now - before) <= self._tolerance * now


@contextmanager
def dropout_behind(
    model: nn.Module, layer: str, image: Tensor, alpha: AlphaForm = "channel"
) -> Iterator[InformationDropout]:
    """Put information dropout behind a layer inside the block, part of the network."""
    module = compute_layers(model)[layer]
    place = softplus_behind(model, layer, image)
    is_linear = isinstance(module, nn.Linear)
    dropout = InformationDropout(
        len(module.weight), -1 if is_linear else 1, is_positive=place is not None, form=alpha
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
