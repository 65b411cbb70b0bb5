"""Several pruned networks of one task in one pass, with zeros where channels have been cut out.

Small networks leave most of a GPU idle. Put back into the shape of the unpruned network, those that
differ in their channels are of one shape, and one vectorised pass (`torch.func.vmap`) trains or
scores them all.

Shapes: M networks, b images in a minibatch, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from compress_env.data.bundle import ImageSource
from compress_env.errors import reason_of
from compress_env.pruning.graph.groups import Side
from compress_env.pruning.graph.live import LiveChannels
from compress_env.pruning.graph.tracing import is_depthwise
from compress_env.seeding import global_seed
from compress_env.task.finetune import make_schedule, teach, training_loss
from compress_env.task.layers import compute_layers
from compress_env.task.task import CompressionTask, FinetuneConfig, Split

__all__ = ["StackedNetworks"]

Places: TypeAlias = Mapping[str, tuple[Tensor, ...]]
"""Where the elements of a pruned network's tensors are in the unpruned one's, by dotted name, of
those tensors that something has been cut out of."""


_FREE = "There is a performance drop .* batching rule for aten::as_strided_"
"""What PyTorch warns of in average pooling to one pixel, where it only notes strides."""


class StackedNetworks:
    """Fine-tunes and scores pruned networks of one task together, as `CompressionTask` does one.

    A removed channel is zero in the weights and biases of all members of its group, batch-norm
    among them, and nobody reads it: the network answers as the one without it. Gradients of removed
    elements, and of weights that are zero, are zeroed, so that they stay zero.

    All networks see the same minibatches, those that the task draws from the same generator, and
    become what they would become one by one, but for rounding. Random layers, such as dropout,
    treat all networks alike; which of their channels are dropped is not what it is one by one.
    Every network costs what the unpruned one does. Layers are computed in PyTorch's own memory
    layout, whatever the configuration says.

    A network whose loss, weights or logits are not finite leaves the others alone: its accuracy is
    NaN.
    """

    def __init__(self, task: CompressionTask, networks: Sequence[LiveChannels]) -> None:
        """Copy networks into the stack.

        Args:
            task: Whose network they have been cut out of.
            networks: At least one, on the task's device; changed by `write_back` only.

        Raises:
            ValueError: If there is none, one is not cut out of the task's network, or the forward
                pass cannot be vectorised.
        """
        if not networks:
            raise ValueError("expected at least one network, got none")
        self._task, self._networks = task, tuple(networks)
        self._places = [_places(task.model, network) for network in networks]
        embedded = [
            _embed(task.copy_model(), network.model, places)
            for network, places in zip(networks, self._places, strict=True)
        ]
        self._base = embedded[0].eval()
        self._parameters, self._buffers = stack_module_state(embedded)
        self._masks = self._find_masks()
        self._is_finite = torch.ones(len(networks), dtype=torch.bool, device=task.device)
        self._check_forward()

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of all networks for the same images, (M, b, K)."""

        def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            return functional_call(self._base, (parameters, buffers), (images,))  # type: ignore[no-any-return]

        bf16 = self._task.config.bf16
        autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=bf16)
        with autocast, warnings.catch_warnings():
            warnings.filterwarnings("ignore", _FREE)
            logits: Tensor = vmap(run, randomness="same")(self._parameters, self._buffers)
        return logits.float() if bf16 else logits

    def finetune(
        self,
        n_steps: int,
        generator: torch.Generator,
        *,
        anneal: bool = False,
        warmup_steps: int = 0,
        distill: float | None = None,
    ) -> None:
        """Run `n_steps` minibatches of SGD; the arguments are `CompressionTask.finetune`'s."""
        trained = [p for p in self._parameters.values() if p.requires_grad]
        if n_steps == 0 or not trained:
            return
        config = self._task.config
        config = config if distill is None else replace(config, distill=distill)
        lr, momentum, decay = config.learning_rate, config.momentum, config.weight_decay
        optimizer = torch.optim.SGD(trained, lr, momentum=momentum, weight_decay=decay)
        schedule = make_schedule(optimizer, n_steps if anneal else None, warmup_steps)
        seed = global_seed(generator.initial_seed(), self._task.device)
        cumulative = {k: norm for k, norm in self._norms().items() if norm.momentum is None}
        with seed, self._averaging(cumulative) as begin:
            self._base.train()
            batches = self._task.train_batches(n_steps, generator)
            for number, (images, labels) in enumerate(batches, 1):
                begin(number)
                optimizer.zero_grad(set_to_none=True)
                losses = self._losses(images, labels, config)
                losses.sum().backward()  # type: ignore[no-untyped-call]
                for name, mask in self._masks.items():
                    gradient = self._parameters[name].grad
                    if gradient is not None:
                        gradient.mul_(mask)
                optimizer.step()
                if schedule is not None:
                    schedule.step()
                self._is_finite &= torch.isfinite(losses.detach())
        for parameter in trained:
            self._is_finite &= torch.isfinite(parameter.detach()).flatten(1).all(1)

    def reestimate_batch_norm(self, generator: torch.Generator) -> None:
        """Estimate the running statistics of every batch-norm from training images."""
        norms = self._norms()
        if not norms:
            return
        for name in norms:
            self._buffers[_join(name, "running_mean")].zero_()
            self._buffers[_join(name, "running_var")].fill_(1.0)
            self._buffers[_join(name, "num_batches_tracked")].zero_()
        batches = self._task.train_batches(self._task.config.batch_norm_batches, generator)
        with torch.no_grad(), self._averaging(norms) as begin:
            for norm in norms.values():
                norm.train()
            for number, (images, _) in enumerate(batches, 1):
                begin(number)
                self.logits(images)

    @torch.no_grad()
    def accuracies(self, split: Split) -> list[float]:
        """Return the accuracy of each network on one of the four image sets; NaN: see the class.

        Raises:
            torch.OutOfMemoryError: If a batch does not fit into memory: stack fewer networks.
        """
        source: ImageSource = getattr(self._task.data, split)
        correct = torch.zeros(len(self._networks), dtype=torch.int64, device=self._task.device)
        is_finite = self._is_finite.clone()
        order = torch.arange(len(source)).split(self._task.scoring_batch_size)  # type: ignore[no-untyped-call]
        for images, labels in source.batches(order):
            logits = self.logits(images)
            correct += (logits.argmax(2) == labels).sum(1)
            is_finite &= torch.isfinite(logits).flatten(1).all(1)
        shares = correct.double() / len(source)
        return shares.masked_fill(~is_finite, float("nan")).tolist()

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy weights and statistics into the networks that the stack was made from."""
        stacked = self._parameters | self._buffers
        for number, (network, places) in enumerate(zip(self._networks, self._places, strict=True)):
            for name, tensor in _tensors(network.model).items():
                tensor.copy_(stacked[name][number][places.get(name, ...)])

    def _losses(self, images: Tensor, labels: Tensor, config: FinetuneConfig) -> Tensor:
        """Return the loss of each network, (M,)."""
        answers: Tensor | None = None
        if config.distill > 0.0:
            like = {"bf16": config.bf16, "channels_last": config.channels_last}
            answers = teach(self._task.model, images, **like)

        def loss(logits: Tensor) -> Tensor:
            return training_loss(
                logits, labels, answers, config.distill, config.distill_temperature
            )

        logits = self.logits(images)
        if answers is not None:  # vmap has no rule for its divergence
            return torch.stack([loss(own) for own in logits])
        losses: Tensor = vmap(loss)(logits)
        return losses

    def _find_masks(self) -> dict[str, Tensor]:
        """Return where parameters may change, of those that may not change everywhere."""
        weights = {
            _join(prefix, name)
            for prefix, layer in compute_layers(self._base).items()
            for name, parameter in layer.named_parameters()
            if parameter.dim() > 1  # their zeros stay, as in `finetune`
        }
        masks = {name: stacked.detach() != 0 for name, stacked in self._parameters.items()}
        for name in masks.keys() - weights:
            for mask, places in zip(masks[name], self._places, strict=True):
                mask[places.get(name, ...)] = True
        return {name: mask for name, mask in masks.items() if not bool(mask.all())}

    def _check_forward(self) -> None:
        try:
            with torch.no_grad():
                self.logits(self._task.example_image())
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = reason_of(error)
            raise ValueError(f"the network cannot be run for several at once: {reason}") from None

    def _norms(self) -> dict[str, _BatchNorm]:
        """Return the batch-norms with running statistics by name."""
        found = ((name, m) for name, m in self._base.named_modules() if isinstance(m, _BatchNorm))
        return {name: norm for name, norm in found if norm.track_running_stats}

    @contextmanager
    def _averaging(self, norms: Mapping[str, _BatchNorm]) -> Iterator[Callable[[int], None]]:
        """Have norms keep the plain average; yield what is called with each minibatch's number.

        It is to be called before the minibatch is run, from 1 on. PyTorch's own plain average
        (`momentum=None`) reads a count in the forward pass, which vmap does not allow.
        """
        momenta = {norm: norm.momentum for norm in norms.values()}
        counts = {norms[k]: self._buffers[_join(k, "num_batches_tracked")][0] for k in norms}
        n_before = {norm: int(count) for norm, count in counts.items()}

        def begin(number: int) -> None:
            for norm, n in n_before.items():
                norm.momentum = 1.0 / (n + number)

        try:
            yield begin
        finally:
            for norm, momentum in momenta.items():
                norm.momentum = momentum
            self._base.eval()


def _join(module: str, name: str) -> str:
    return f"{module}.{name}".lstrip(".")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(chain(model.named_parameters(), model.named_buffers()))


def _places(unpruned: nn.Module, network: LiveChannels) -> Places:
    """Return where the elements of a network's tensors are in the unpruned one's.

    Raises:
        ValueError: If it has not been cut out of that one.
    """
    whole, cut = _tensors(unpruned), _tensors(network.model)
    places: dict[str, tuple[Tensor, ...]] = {}
    for name in dict.fromkeys(chain(whole, cut)):
        try:
            if whole[name].shape == cut[name].shape:
                continue
            places[name] = _place(unpruned, network, name)
            fits = whole[name][places[name]].shape == cut[name].shape
        except (AttributeError, IndexError, KeyError):
            fits = False
        if not fits:
            raise ValueError(f"expected networks cut out of the task's, one differs in {name!r}")
    return places


def _place(unpruned: nn.Module, network: LiveChannels, name: str) -> tuple[Tensor, ...]:
    """Return the index of what is left of a tensor that has been cut."""
    layer, _, _ = name.rpartition(".")
    tensor = _tensors(unpruned)[name]

    def along(side: Side) -> Tensor:
        return torch.from_numpy(network.positions(layer, side)).to(tensor.device)

    if tensor.dim() < 2 or is_depthwise(unpruned.get_submodule(layer)):
        return (along("out"),)
    return along("out")[:, None], along("in")  # (N, 1) and (C,): the elements (N, C)


@torch.no_grad()
def _embed(unpruned: nn.Module, cut: nn.Module, places: Places) -> nn.Module:
    """Copy the tensors of a network into a copy of the unpruned one, in place.

    Parameters are zero elsewhere; statistics of removed channels, which nobody reads, stay.
    """
    parts = _tensors(cut)
    for name, tensor in _tensors(unpruned).items():
        if name in places and isinstance(tensor, nn.Parameter):
            tensor.zero_()
        tensor[places.get(name, ...)] = parts[name]
    return unpruned
