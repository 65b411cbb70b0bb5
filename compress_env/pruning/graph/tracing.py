"""Follows every channel through one forward pass, to find out which belong together.

Each output channel of a convolution or linear layer gets a label. Layers whose tensors can be cut
are seen as a whole, by hooks; what happens between them is seen operation by operation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from compress_env.pruning.graph.groups import Side
from compress_env.pruning.graph.labels import ChannelLabels, varies
from compress_env.pruning.graph.operations import Operation, follow_operation
from compress_env.task.layers import LAYER_TYPES

__all__ = ["ChannelTrace", "is_depthwise", "trace_channels"]

_CUT_TYPES = (*LAYER_TYPES, _NormBase, nn.PReLU)
_IMAGE = "its input channels are combined with those of the image"


class ChannelTrace(NamedTuple):
    """What one forward pass tells of the channels.

    Attributes:
        sides: Module, side and (n,) int64 the class of the channel at each position, in the order
            of the forward pass. Channels of one class must go together.
        stays: (n_classes,) whether a class must stay.
        reasons: Why, by class. Of the image itself, the last class, no reason is given.
        unsupported: Modules that no channel can be cut out of, with the reason.
    """

    sides: list[tuple[str, Side, NDArray[np.int64]]]
    stays: NDArray[np.bool_]
    reasons: dict[int, str]
    unsupported: dict[str, str]


def trace_channels(model: nn.Module, image: Tensor) -> ChannelTrace:
    """Run a network once and follow its channels.

    Args:
        model: The network, in evaluation mode; left as it is.
        image: One batch of images, (b, C, H, W), on the model's device.

    Raises:
        ValueError: If the forward pass reads values that depend on the images.
    """
    tracer = _Tracer(model)
    tracer.run(image)
    return tracer.conclude()


def is_depthwise(module: nn.Module) -> bool:
    """Whether each output channel of a convolution reads the input channel of its number only."""
    return (
        isinstance(module, nn.Conv2d)
        and 1 < module.groups == module.in_channels == module.out_channels
    )


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation while it is active, and every call of a module while `watching`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {module: name for name, module in model.named_modules()}
        self._parameters = {id(p): name for name, p in model.named_parameters()}
        self._labels = ChannelLabels()
        self._image = self._labels.fixed(_IMAGE)
        self._of = WeakTensorKeyDictionary()
        self._sides: list[tuple[nn.Module, Side, Tensor]] = []
        self._running: list[nn.Module] = []
        self._n_cut_running = 0
        self._calls: Counter[nn.Module] = Counter()
        self._bare: set[int] = set()
        self._unsupported: dict[str, str] = {}

    def run(self, image: Tensor) -> None:
        """Run the network on an image, whose channels stay, as do those of the output."""
        self._of[image] = self._image.expand(image.shape)
        model = next(iter(self._names))
        with self._watching(), torch.no_grad(), self:
            output = model(image)
        for tensor in _tensors_in(output):
            if tensor in self._of:
                self._labels.pin(self._of[tensor], "its input channels are the network's output")

    def conclude(self) -> ChannelTrace:
        """Return what has been found out."""
        for module, reason in self._tied_modules():
            for labels in (labels for other, _, labels in self._sides if other is module):
                self._labels.pin(labels, reason)
        classes = self._labels.classes()
        reasons = self._labels.reasons(classes)
        n_classes = int(classes.max()) + 1
        stays = np.zeros(n_classes + 1, np.bool_)
        stays[[*reasons, n_classes]] = True
        classes[int(self._image)] = n_classes
        sides = [(self._names[m], side, classes[x.numpy()]) for m, side, x in self._sides]
        return ChannelTrace(sides, stays, reasons, self._unsupported)

    def _tied_modules(self) -> Iterator[tuple[nn.Module, str]]:
        """Yield modules that must stay as they are, with the reason."""
        holders = _parameter_holders(self._names)
        for module in dict.fromkeys(module for module, _, _ in self._sides):
            name = self._names[module]
            own = [p for p in module.parameters(recurse=False) if p.numel()]
            sharing = {other for p in own for other in holders[p.data_ptr()]} - {name}
            if self._calls[module] > 1:
                yield module, f"layer {name!r} runs more than once per image"
            if sharing:
                yield module, f"layer {name!r} shares weights with {min(sharing)!r}"
            if any(id(p) in self._bare for p in own):
                yield module, f"the weights of layer {name!r} are also used outside of it"
            if hasattr(module, "weight") and "weight" not in module._parameters:
                yield module, f"the weight of layer {name!r} is computed, not stored"
            elif any(x not in ("weight", "bias") for x, _ in module.named_parameters()):
                yield module, f"layer {name!r} has parameters besides weight and bias"

    # Operations between the layers.

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Carry out an operation and label its outputs."""
        arguments = _bind(func, args, kwargs or {})
        if self._n_cut_running > 0:
            return func(*args, **(kwargs or {}))
        tensors = _tensors_in(arguments)
        known = {id(x): self._of[x] for x in tensors if x in self._of}
        result = func(*args, **(kwargs or {}))
        self._note_parameters(tensors, reads_image=bool(known))
        if known:
            outputs = _tensors_in(result)
            where = self._where()
            operation = Operation(func, arguments, known, outputs, where, self._parameters)
            found = follow_operation(operation, self._labels)
            for tensor, labels in zip(outputs, found, strict=True):
                self._of[tensor] = labels
        return result

    def _note_parameters(self, tensors: Iterable[Tensor], *, reads_image: bool) -> None:
        """Remember parameters used by anything but the layer that they belong to."""
        used = {id(x) for x in tensors}
        self._bare.update(used & self._parameters.keys())
        module = self._running[-1]
        weight = module._parameters.get("weight")
        if reads_image and weight is not None and id(weight) in used and weight.dim() > 1:
            kind = type(module).__name__
            self._unsupported[self._names[module]] = (
                f"it is a {kind}, which is neither a Conv2d nor a Linear"
            )

    def _where(self) -> str:
        module = self._running[-1]
        name = self._names[module]
        return f"{name!r} ({type(module).__name__})" if name else "the network"

    # Layers.

    @contextmanager
    def _watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self._names:
                before = module.register_forward_pre_hook(self._enter)
                stack.callback(before.remove)
                after = module.register_forward_hook(self._leave, with_kwargs=True)
                stack.callback(after.remove)
            yield

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._running.append(module)
        self._n_cut_running += isinstance(module, _CUT_TYPES)

    def _leave(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(module, _CUT_TYPES):
            self._calls[module] += 1
            if self._n_cut_running == 1:
                self._see(module, _tensors_in((args, kwargs)), output)
            self._n_cut_running -= 1
        self._running.pop()

    def _see(self, module: nn.Module, inputs: Sequence[Tensor], output: Any) -> None:
        """Label the output of a layer."""
        known = [self._of[x] for x in inputs if x in self._of]
        if len(inputs) != 1 or not isinstance(output, Tensor):
            self._give_up(module, known, output)
        elif isinstance(module, _NormBase | nn.PReLU) or is_depthwise(module):
            if known:
                self._of[output] = self._pass_on(module, known[0], output)
        else:
            self._of[output] = self._produce(module, known, output)

    def _give_up(self, module: nn.Module, known: Sequence[Tensor], output: Any) -> None:
        """Tie down whatever a layer of an unknown kind reads and writes."""
        reason = f"layer {self._names[module]!r} does not map one tensor to one tensor"
        for labels in known:
            self._labels.pin(labels, reason)
        for tensor in _tensors_in(output):
            self._of[tensor] = self._labels.fixed(reason).expand(tensor.shape)

    def _produce(self, module: nn.Module, known: Sequence[Tensor], output: Tensor) -> Tensor:
        """Label the output of a layer whose channels are its own."""
        is_conv = isinstance(module, nn.Conv2d)
        dim = -3 if is_conv else -1
        fresh = self._labels.new(output.shape[dim])
        read = [self._along(labels, dim, module) for labels in known]
        self._sides += [(module, "in", labels) for labels in read]
        self._sides.append((module, "out", fresh))
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            for labels in (*read, fresh):
                reason = f"layer {self._names[module]!r} is a grouped convolution"
                self._labels.pin(labels, reason)
        # (N,) -> (N, 1, 1) for a convolution
        return fresh.reshape((-1, 1, 1) if is_conv else (-1,)).expand(output.shape)

    def _pass_on(self, module: nn.Module, known: Tensor, output: Tensor) -> Tensor:
        """Label the output of a layer that has one channel for each input channel."""
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return known
        dim = -3 if isinstance(module, nn.Conv2d) else 1
        along = self._along(known, dim, module)
        self._sides.append((module, "out", along))
        dim %= output.dim()
        # (n,) -> (n, 1, ...), as many dimensions as there are behind the channels
        return along.reshape(-1, *[1] * (output.dim() - dim - 1)).expand(output.shape)

    def _along(self, known: Tensor, dim: int, module: nn.Module) -> Tensor:
        """Return the labels along the dimension that a layer reads as channels, (n,)."""
        dim %= known.dim()
        if any(varies(known, other) for other in range(known.dim()) if other != dim):
            reason = f"layer {self._names[module]!r} takes its input channels for something else"
            self._labels.pin(known, reason)
        index: list[Any] = [0] * known.dim()
        index[dim] = slice(None)
        return known[tuple(index)]


def _bind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an operator by name, defaults included."""
    names = func._schema.arguments
    given = dict(zip((x.name for x in names), args, strict=False)) | kwargs
    return {x.name: given.get(x.name, x.default_value) for x in names}


def _tensors_in(nested: Any) -> list[Tensor]:
    return [x for x in tree_leaves(nested) if isinstance(x, Tensor)]


def _parameter_holders(names: Mapping[nn.Module, str]) -> defaultdict[int, set[str]]:
    """Return the names of the modules that hold each parameter, by its place in memory."""
    holders: defaultdict[int, set[str]] = defaultdict(set)
    for module, name in names.items():
        for parameter in module.parameters(recurse=False):
            holders[parameter.data_ptr()].add(name)
    return holders
