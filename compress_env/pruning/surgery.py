"""Which channels must go together, and how they are removed from a live network.

Torch-Pruning's dependency graph says which slices of which tensors belong to a channel, and its
pruning functions cut them out. The graph is traced once, on the unpruned network; afterwards a
channel is always named by its number in that network and `LiveChannels` knows where it is now.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn

from compress_env.layers import Layer, compute_layers, layer_table

__all__ = ["ChannelGroup", "Decision", "LiveChannels", "Member", "Walk", "find_walk"]

Side = Literal["in", "out"]
TOLERANCE = 1e-4  # of the largest logit, for "pruned equals zeroed" in float32


class Member(NamedTuple):
    """One module that loses slices when a channel of a group goes.

    Attributes:
        module: Dotted name.
        side: Whether its inputs or its outputs are cut.
        positions: (n_channels, k) int64, the k positions of each channel along that side.
        prune: Torch-Pruning's function `(module, positions)` that cuts them out.
    """

    module: str
    side: Side
    positions: NDArray[np.int64]
    prune: Callable[[nn.Module, list[int]], Any]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are removed together from all `members`; the first member produces them."""

    n_channels: int
    members: tuple[Member, ...]

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The members that read the channels."""
        return tuple(m for m in self.members if m.side == "in")

    def columns(self, layer: str) -> NDArray[np.int64]:
        """Positions of each channel among the inputs of a consumer, (n_channels, k) int64."""
        return next(m.positions for m in self.consumers if m.module == layer)


@dataclass(frozen=True)
class Decision:
    """One step of the walk: the layer that decides, and the groups that it is first to read."""

    layer: Layer
    groups: tuple[ChannelGroup, ...]

    @property
    def n_channels(self) -> int:
        """Channels that the decision is about."""
        return sum(group.n_channels for group in self.groups)


class Walk(NamedTuple):
    """The decisions in execution order, and the layers left out with the reason."""

    decisions: tuple[Decision, ...]
    skipped: dict[str, str]


class LiveChannels:
    """Removes channels, named by their number in the unpruned network, from a live network."""

    def __init__(self, model: nn.Module) -> None:
        """Start from the unpruned `model`, which later calls of `remove` change in place."""
        self.model = model
        self._alive: dict[tuple[str, Side], NDArray[np.int64]] = {}

    def alive(self, member: Member) -> NDArray[np.int64]:
        """Unpruned positions that are left along the member's side, (n,) int64."""
        return self.positions(member.module, member.side)

    def positions(self, layer: str, side: Side) -> NDArray[np.int64]:
        """Unpruned positions that are left along one side of a module, (n,) int64."""
        if (layer, side) not in self._alive:
            self._alive[layer, side] = np.arange(_width(self.model.get_submodule(layer), side))
        return self._alive[layer, side]

    def remove(self, group: ChannelGroup, channels: Sequence[int] | NDArray[np.int64]) -> None:
        """Cut the given channels (numbers within the group) out of every member, in place."""
        if len(channels) == 0:
            return
        for member in group.members:
            alive = self.alive(member)
            gone = np.isin(alive, member.positions[np.asarray(channels, np.int64)])
            module = self.model.get_submodule(member.module)
            frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
            with torch.no_grad():
                member.prune(module, np.flatnonzero(gone).tolist())
            for name in frozen:  # Torch-Pruning makes new parameters
                module.get_parameter(name).requires_grad_(False)
            self._alive[member.module, member.side] = alive[~gone]


def _width(module: nn.Module, side: Side) -> int:
    if isinstance(module, nn.Conv2d):
        return module.in_channels if side == "in" else module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features if side == "in" else module.out_features
    weight = next(module.parameters(), None)
    width = getattr(module, "num_features", None) or (0 if weight is None else weight.shape[0])
    return int(width)


def find_walk(model: nn.Module, image: Tensor) -> Walk:
    """Find the pruning decisions of a network.

    Args:
        model: The unpruned network; not changed.
        image: One batch of images, (b, C, H, W) float32, on the model's device.

    Returns:
        One decision per layer whose input channels can be removed, in execution order. A group is
        decided once, at its first consumer; one whose removal fails the check of `_check_group`
        is left out, its first consumer listed with the reason.

    Raises:
        ValueError: If no layer can be pruned.
    """
    layers = {layer.name: layer for layer in layer_table(model, image)}
    order = list(layers)
    decided: dict[str, list[ChannelGroup]] = {}
    skipped: dict[str, str] = {}
    for group in _channel_groups(model, image):
        if not group.consumers:
            continue  # the logits
        readers = [m.module for m in group.consumers if m.module in layers]
        if not readers:
            skipped[group.consumers[0].module] = "it is neither a Conv2d nor a Linear"
            continue
        first = min(readers, key=order.index)
        reason = _refuse(group, layers) or _check_group(model, image, group)
        if reason:
            skipped[first] = reason
        else:
            decided.setdefault(first, []).append(group)
    if not decided:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items())
        raise ValueError(f"model has no prunable layer ({reasons or 'no hidden channels'})")
    for name in skipped.keys() & decided.keys():
        skipped[name] = f"some of its inputs stay: {skipped[name]}"
    first_readers = sorted(decided, key=order.index)
    decisions = (Decision(layers[name], tuple(decided[name])) for name in first_readers)
    return Walk(tuple(decisions), skipped)


def _channel_groups(model: nn.Module, image: Tensor) -> list[ChannelGroup]:
    """Trace the network and list every group of coupled output channels."""
    traced = copy.deepcopy(model).eval()
    for parameter in traced.parameters():
        parameter.requires_grad_(True)
    names = {module: name for name, module in traced.named_modules()}
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(traced, image, verbose=False)
        groups = list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
    return [_convert(graph, group, names) for group in groups]


def _convert(graph: Any, group: Any, names: dict[nn.Module, str]) -> ChannelGroup:
    n_channels = len(group[0].idxs)
    members = []
    for item in group:
        module = item.dep.target.module
        if isinstance(module, nn.Parameter):
            members.append(Member("", "out", np.empty((0, 0), np.int64), item.dep.handler))
        elif module in names:
            side: Side = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
            index = _positions_by_channel(item.idxs, item.root_idxs, n_channels)
            members.append(Member(names[module], side, index, item.dep.handler))
    return ChannelGroup(n_channels, tuple(members))


def _positions_by_channel(
    positions: Sequence[int], channels: Sequence[int], n_channels: int
) -> NDArray[np.int64]:
    """Arrange positions as (n_channels, k); (0, 0) when the channels do not have k each."""
    counts = np.bincount(channels, minlength=n_channels)
    if len(counts) != n_channels or counts.min() == 0 or counts.min() != counts.max():
        return np.empty((0, 0), np.int64)
    order = np.lexsort((positions, channels))
    return np.asarray(positions, np.int64)[order].reshape(n_channels, -1)


def _refuse(group: ChannelGroup, layers: dict[str, Layer]) -> str | None:
    """Return why a group cannot be handled, judged from its members alone."""
    for member in group.members:
        if not member.module:
            return "its channels belong to a bare parameter"
        if member.positions.size == 0:
            return f"its channels map unevenly onto {member.module!r}"
        layer = layers.get(member.module)
        if layer is not None and layer.n_calls > 1:
            return f"layer {member.module!r} runs more than once per image"
        if layer is not None and 1 < layer.groups < layer.out_channels:
            return f"layer {member.module!r} is a grouped convolution"
    return None


def _check_group(model: nn.Module, image: Tensor, group: ChannelGroup) -> str | None:
    """Prune one channel on a copy, run it on noise, and compare with the channel zeroed.

    Returns:
        None when shapes and values agree, otherwise the reason.
    """
    if group.n_channels < 2:
        return "it has a single channel"
    channel = [_strongest_channel(model, group)]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *image.shape[1:], generator=generator).to(image)
    pruned, zeroed = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    try:
        LiveChannels(pruned).remove(group, channel)
        zero_channels(zeroed, group, channel)
        with torch.no_grad():
            got, wanted = pruned(noise), zeroed(noise)
    except Exception as error:  # any failure of foreign forward code is the answer itself
        return f"removing a channel breaks the network ({type(error).__name__})"
    if got.shape != wanted.shape:
        return "removing a channel changes the shape of the output"
    if not torch.allclose(got, wanted, rtol=0.0, atol=TOLERANCE * float(1 + wanted.abs().max())):
        return "removing a channel is not the same as zeroing it"
    return None


def _strongest_channel(model: nn.Module, group: ChannelGroup) -> int:
    """Return the channel that its producer answers with most, bias and weights together."""
    producer = model.get_submodule(group.members[0].module)
    strength = sum(p.detach().flatten(1).norm(dim=1) for p in producer.parameters() if p.dim() > 1)
    bias = getattr(producer, "bias", None)
    return int((strength if bias is None else strength + bias.detach()).argmax())


@torch.no_grad()
def zero_channels(model: nn.Module, group: ChannelGroup, channels: Sequence[int]) -> None:
    """Zero the weights by which any layer of the unpruned `model` reads the given channels."""
    layers = compute_layers(model)
    for member in group.consumers:
        if member.module in layers:
            positions = member.positions[np.asarray(channels, np.int64)].ravel()
            layers[member.module].weight[:, positions] = 0.0
