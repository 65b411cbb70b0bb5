"""What operations of a forward pass do to channels: keep, move or join them, or tie them down.

Of an operation that is not known it is taken for granted that it mixes its inputs' channels, so
that these stay: an unknown network may lose opportunities, never its meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from compress_env.pruning.graph.labels import ChannelLabels, settle, shrink, varies

__all__ = ["Operation", "follow_operation"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Operation:
    """One operation of the forward pass, carried out."""

    function: Any
    """Overload of an ATen operator."""
    arguments: Mapping[str, Any]
    """Its arguments by name, defaults included."""
    known: Mapping[int, Tensor]
    """Labels of those of its tensors that depend on the image, by `id`."""
    outputs: Sequence[Tensor]
    """The tensors that it returned."""
    where: str
    """The module that it ran in, for messages."""
    constants: Mapping[int, str]
    """What to call tensors that do not depend on the image, by `id`: names of parameters."""

    @property
    def name(self) -> str:
        """The operator's name, such as `softmax`."""
        return str(self.function.overloadpacket.__name__).strip("_")

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return [x for x in tree_leaves(dict(self.arguments)) if isinstance(x, Tensor)]

    @property
    def labels(self) -> list[Tensor]:
        """Labels of the tensors that depend on the image."""
        return [self.known[id(x)] for x in self.tensors if id(x) in self.known]

    @property
    def has_one_input(self) -> bool:
        """Whether the first argument, and no other, depends on the image."""
        return id(next(iter(self.arguments.values()))) in self.known and len(self.labels) == 1

    @property
    def others(self) -> list[Tensor]:
        """Tensors that do not depend on the image."""
        return [x for x in self.tensors if id(x) not in self.known]

    def says(self, what: str) -> str:
        """Return a reason for channels to stay."""
        return f"its input channels {what} by {self.name!r} in {self.where}"

    def on(self, labels: Any) -> Any:
        """Carry out the same operation on labels instead of the first argument."""
        rest = list(self.arguments.items())[1:]
        return self.function(labels, **dict(rest))


Rule = Callable[[Operation, ChannelLabels], list[Tensor]]
"""Returns the labels of each output, of its shape unless they stay anyway."""


def follow_operation(operation: Operation, labels: ChannelLabels) -> list[Tensor]:
    """Return the labels of each output of an operation, and note what they have to do.

    Raises:
        ValueError: If the operation hands values that depend on the image to Python.
    """
    rule = _RULES.get(operation.function.overloadpacket, _mix)
    if torch.Tag.pointwise in operation.function.tags and operation.outputs:
        rule = _combine
    elif rule not in (_cat, _read_values) and not operation.has_one_input:
        rule = _mix
    found = rule(operation, labels)
    return [
        settle(x) if x.shape == out.shape else labels.fixed(_mixed(operation)).expand(out.shape)
        for x, out in zip(found, operation.outputs, strict=True)
    ]


def _pinned(operation: Operation, labels: ChannelLabels, reason: str) -> list[Tensor]:
    """Tie down all inputs, and give the outputs labels that stay for the same reason."""
    for known in operation.labels:
        labels.pin(known, reason)
    return [labels.fixed(reason).expand(x.shape) for x in operation.outputs]


def _mixed(operation: Operation) -> str:
    return operation.says("are mixed")


def _mix(operation: Operation, labels: ChannelLabels) -> list[Tensor]:
    return _pinned(operation, labels, _mixed(operation))


def _keep(operation: Operation, labels: ChannelLabels) -> list[Tensor]:
    """Each output element has to do with the first argument's element at the same place."""
    return operation.labels * len(operation.outputs)


def _combine(operation: Operation, labels: ChannelLabels) -> list[Tensor]:
    """Elements at the same place of all arguments are computed with each other."""
    shape = operation.outputs[0].shape
    first, *others = operation.labels
    result, wide = first.expand(shape), _wide_dims(first, shape)
    for other in others:
        result = _meet(result, wide, other, operation, labels)
        wide |= _wide_dims(other, shape)
    for constant in operation.others:
        if any(varies(result, dim) for dim in _wide_dims(constant, shape)):
            name = operation.constants.get(id(constant))
            what = f"the bare parameter {name!r}" if name else "a constant"
            labels.pin(result, operation.says(f"are combined with {what}"))
    return [result] * len(operation.outputs)


def _meet(
    left: Tensor, left_wide: set[int], own: Tensor, operation: Operation, labels: ChannelLabels
) -> Tensor:
    """Combine labels of the full shape with those of one more argument, of its own shape."""
    right, right_wide = own.expand(left.shape), _wide_dims(own, left.shape)
    left_dims, right_dims = _varying_dims(left), _varying_dims(right)
    left_is_spread, right_is_spread = right_dims - left_wide, left_dims - right_wide
    reason = operation.says("are spread over other channels")
    if left_is_spread:  # such as a map of weights, one for all channels
        labels.pin(left, reason)
    if right_is_spread:
        labels.pin(right, reason)
    shared = (left_dims | right_dims) & left_wide & right_wide
    if shared or not (left_is_spread or right_is_spread):
        labels.join(shrink(left), shrink(right))
    return right if right_dims > left_dims else left


def _varying_dims(labels: Tensor) -> set[int]:
    return {dim for dim in range(labels.dim()) if varies(labels, dim)}


def _wide_dims(tensor: Tensor, shape: Sequence[int]) -> set[int]:
    """Dimensions of a shape along which a tensor, broadcast to it, has its own elements."""
    first = len(shape) - tensor.dim()
    return {first + dim for dim in range(tensor.dim()) if tensor.shape[dim] > 1}


def _move(operation: Operation, labels: ChannelLabels) -> list[Tensor]:
    """Elements go elsewhere, wherever they belong."""
    return [operation.on(operation.labels[0])]


def _cat(operation: Operation, labels: ChannelLabels) -> list[Tensor]:
    parts = [x for x in operation.arguments["tensors"] if x.numel()]
    if any(id(x) not in operation.known for x in parts):
        return _pinned(operation, labels, operation.says("are filled up with constants"))
    return [operation.on([operation.known[id(x)] for x in parts])]


def _take(operation: Operation, labels: ChannelLabels) -> list[Tensor]:
    """Outputs are parts along one dimension, chosen by numbers that pruning would change."""
    [known], dim = operation.labels, operation.arguments["dim"]
    whole = all(out.dim() == known.dim() and out.shape == known.shape for out in operation.outputs)
    if varies(known, dim) and not whole:
        return _pinned(operation, labels, operation.says("are divided up"))
    found = operation.on(known)
    return list(found) if isinstance(found, list | tuple) else [found]


def _view(operation: Operation, labels: ChannelLabels) -> list[Tensor]:
    """Neighbouring dimensions may be merged; one that the labels vary along is not to be split."""
    [known], [out] = operation.labels, operation.outputs
    if _splits(known, out.shape):
        return _pinned(operation, labels, operation.says("are divided up"))
    return [known.reshape(out.shape)]


def _splits(known: Tensor, shape: Sequence[int]) -> bool:
    """Whether a new shape has a boundary inside a dimension that labels vary along."""
    boundaries = set(_suffix_products(shape))
    ends = _suffix_products(known.shape)
    return any(
        varies(known, dim) and any(ends[dim + 1] < x < ends[dim] for x in boundaries)
        for dim in range(known.dim())
    )


def _suffix_products(shape: Sequence[int]) -> list[int]:
    """Return the numbers of elements behind each dimension's first boundary, and 1."""
    products = [1]
    for size in reversed(shape):
        products.append(products[-1] * size)
    return products[::-1]


def _restride(operation: Operation, labels: ChannelLabels) -> list[Tensor]:
    """Only strides change: those of a pooled image that lies channels last in memory."""
    [known], [out] = operation.labels, operation.outputs
    return [known] if out.shape == known.shape else _mix(operation, labels)


def _pool(operation: Operation, labels: ChannelLabels) -> list[Tensor]:
    """Each plane, the last two dimensions, is computed from the same plane of the input."""
    [known] = operation.labels
    planes = [x.shape[:-2] for x in operation.outputs]
    if varies(known, -1) or varies(known, -2) or any(x != known.shape[:-2] for x in planes):
        return _mix(operation, labels)
    return [known[..., :1, :1].expand(x.shape) for x in operation.outputs]


def _pad(operation: Operation, labels: ChannelLabels) -> list[Tensor]:
    [known], [out] = operation.labels, operation.outputs
    changed = [dim for dim in range(out.dim()) if out.shape[dim] != known.shape[dim]]
    if any(varies(known, dim) for dim in changed):
        return _pinned(operation, labels, operation.says("are filled up with constants"))
    for dim in changed:
        known = known.narrow(dim, 0, 1)
    return [known.expand(out.shape)]


def _reduce(operation: Operation, labels: ChannelLabels) -> list[Tensor]:
    """Whole dimensions become one element."""
    [known] = operation.labels
    dims = operation.arguments.get("dim")
    dims = range(known.dim()) if dims in (None, []) else [dims] if isinstance(dims, int) else dims
    if any(varies(known, dim) for dim in dims):
        return _mix(operation, labels)
    for dim in dims:
        known = known.narrow(dim, 0, 1)
    return [known.reshape(x.shape) for x in operation.outputs]


def _normalize(operation: Operation, labels: ChannelLabels) -> list[Tensor]:
    """Elements along one dimension are computed with each other."""
    [known] = operation.labels
    if varies(known, operation.arguments["dim"]):
        return _mix(operation, labels)
    return [known]


def _read_values(operation: Operation, labels: ChannelLabels) -> list[Tensor]:
    raise ValueError(
        f"the forward pass of {operation.where} reads values that depend on the images "
        f"({operation.name}), so other images may take another way through the network "
        "(data-dependent control flow); such networks cannot be pruned"
    )


_KINDS: dict[Rule, str] = {
    _keep: "alias bernoulli bernoulli_ clone detach empty_like full_like hardswish hardswish_ "
    "lift_fresh log_sigmoid_forward native_dropout ones_like rand_like randn_like zeros_like "
    "_to_copy",
    _move: "expand permute repeat squeeze t transpose unsqueeze",
    _cat: "cat stack",
    _take: "select slice split split_with_sizes unbind",
    _view: "view _unsafe_view _reshape_alias",
    _restride: "as_strided as_strided_",
    _pool: "_adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d max_pool2d_with_indices "
    "reflection_pad2d replication_pad2d upsample_bicubic2d upsample_bilinear2d upsample_nearest2d "
    "_upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa",
    _pad: "constant_pad_nd",
    _reduce: "amax amin max mean min std sum var",
    _normalize: "_log_softmax _softmax cumsum",
    _read_values: "equal _local_scalar_dense",
}
_RULES: dict[Any, Rule] = {
    getattr(aten, name): rule for rule, names in _KINDS.items() for name in names.split()
}
