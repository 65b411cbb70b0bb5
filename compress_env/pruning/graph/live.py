"""Removal of channels from a live network, by their number in the unpruned one."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compress_env.pruning.graph.groups import ChannelGroup, Member, Side
from compress_env.pruning.graph.tracing import is_depthwise

__all__ = ["Channels", "LiveChannels", "copy_structure"]

Channels: TypeAlias = Sequence[int] | NDArray[np.int64]
"""Numbers of channels within a group."""


class LiveChannels:
    """Removes channels, named by their number in the unpruned network, from a live network."""

    information_std: float | None = None
    """Spread of the information over the outputs of the layer that lost elements last, in nats;
    None where the last decision has not taken any."""

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

    def remove(self, group: ChannelGroup, channels: Channels) -> None:
        """Cut the given channels (numbers within the group) out of every member, in place."""
        self.remove_all([(group, channels)])

    def remove_all(self, cuts: Iterable[tuple[ChannelGroup, Channels]]) -> None:
        """Cut channels of several groups, touching each tensor once; see `remove`."""
        gone: defaultdict[tuple[str, Side], list[NDArray[np.int64]]] = defaultdict(list)
        for group, channels in cuts:
            for member in group.members if len(channels) else ():
                positions = member.positions[np.asarray(channels, np.int64)]
                gone[member.module, member.side].append(positions.ravel())
        for (name, side), parts in gone.items():
            self._cut(name, side, np.concatenate(parts))

    def _cut(self, name: str, side: Side, positions: NDArray[np.int64]) -> None:
        """Cut unpruned positions, those that are left of them, out of one side of a module."""
        alive, module = self.positions(name, side), self.model.get_submodule(name)
        stays = np.ones(1 + max(alive[-1], positions.max()), np.bool_)
        stays[positions] = False
        left = stays[alive]
        if left.all():
            return
        frozen = [key for key, p in module.named_parameters() if not p.requires_grad]
        with torch.no_grad():
            _cut(module, side, np.flatnonzero(~left).tolist())
        for key in frozen:  # Torch-Pruning makes new parameters
            module.get_parameter(key).requires_grad_(False)
        self._alive[name, side] = alive[left]


def copy_structure(
    model: nn.Module, parameters: Mapping[nn.Parameter, nn.Parameter] | None = None
) -> nn.Module:
    """Return a copy that shares the tensors of `model`, for as long as nobody cuts or replaces one.

    Most of what a module holds are empty containers, which `copy.deepcopy` copies slowly: it is
    given the copies of these.

    Args:
        model: Any network.
        parameters: What the copy gets instead of its parameters, by these.
    """
    held = [value for module in model.modules() for value in vars(module).values()]
    memo: dict[int, object] = {
        id(x): type(x)() for x in held if type(x) in (dict, OrderedDict, set) and not x
    }
    memo |= {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    memo |= {id(old): new for old, new in (parameters or {}).items()}
    return copy.deepcopy(model, memo)


def _cut(module: nn.Module, side: Side, positions: list[int]) -> None:
    """Cut positions out of one side of a module, in place."""
    import torch_pruning as tp  # takes longer to import than all of this package

    if isinstance(module, nn.Linear):
        cutter = tp.prune_linear_in_channels if side == "in" else tp.prune_linear_out_channels
    elif is_depthwise(module):
        cutter = tp.prune_depthwise_conv_out_channels
    elif isinstance(module, nn.Conv2d):
        cutter = tp.prune_conv_in_channels if side == "in" else tp.prune_conv_out_channels
    elif isinstance(module, nn.PReLU):
        cutter = tp.prune_prelu_out_channels
    else:
        cutter = tp.prune_batchnorm_out_channels
    cutter(module, positions)


def _width(module: nn.Module, side: Side) -> int:
    if isinstance(module, nn.Conv2d):
        return module.in_channels if side == "in" else module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features if side == "in" else module.out_features
    if isinstance(module, nn.PReLU):
        return module.num_parameters
    width = module.num_features
    assert isinstance(width, int)
    return width
