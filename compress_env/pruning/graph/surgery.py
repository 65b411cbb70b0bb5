"""The walk over the groups of channels of a network, and their removal from a live one.

Groups are found once, on the unpruned network; afterwards a channel is always named by its number
in that network and `LiveChannels` knows where it is now.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from compress_env.pruning.graph.checking import SafetyCheck
from compress_env.pruning.graph.groups import ChannelGroup, Member, Side, group_channels
from compress_env.pruning.graph.live import LiveChannels
from compress_env.pruning.graph.tracing import ChannelTrace, trace_channels
from compress_env.task.layers import Layer, check_network, compute_layers, layer_table

__all__ = [
    "ChannelGroup",
    "Decision",
    "LiveChannels",
    "Member",
    "Side",
    "Walk",
    "find_walk",
    "zero_channels",
]


N_NAMED = 3  # layers in a message
MAX_REASON = 160  # characters of each reason there


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
    """The decisions in execution order, and the layers whose inputs stay, with the reason."""

    decisions: tuple[Decision, ...]
    skipped: dict[str, str]


def find_walk(model: nn.Module, image: Tensor) -> Walk:
    """Find the pruning decisions of a network.

    A copy of the network is examined on the CPU: what the walk is does not depend on the device,
    whose kernels may be too coarse to tell what is safe.

    Args:
        model: The unpruned network; not changed.
        image: One batch of images, (b, C, H, W) float32.

    Returns:
        One decision per layer whose input channels can be removed, in execution order. A group is
        decided once, at its first consumer. Layers that read channels which stay are listed with
        the reason, but for those that only read the image.

    Raises:
        ValueError: If no layer can be pruned, the forward pass reads values that depend on the
            images, or `check_network` refuses the network.
    """
    check_network(model)
    scratch, image = copy.deepcopy(model).cpu().eval(), image.cpu()
    trace = trace_channels(scratch, image)
    table = layer_table(scratch, image)
    groups = group_channels(trace.sides, trace.stays)
    groups = [group for group in groups if group.consumers]
    unsafe = SafetyCheck(scratch, image, groups).find_unsafe()
    safe = [group for i, group in enumerate(groups) if i not in unsafe]
    refused = [(groups[i], reason) for i, reason in unsafe.items()]
    skipped = _explain(table, trace, safe, refused)
    decisions = tuple(_decide(table, safe))
    if not decisions:
        raise ValueError(f"model has no prunable layer ({_summarize(skipped)})")
    return Walk(decisions, skipped)


def _summarize(skipped: Mapping[str, str]) -> str:
    """Name the first layers that are left out, with the reasons, in a line of moderate length."""
    if not skipped:
        return "no hidden channels"
    names = list(skipped)[:N_NAMED]
    reasons = "; ".join(f"{name}: {shorten(skipped[name], MAX_REASON)}" for name in names)
    n_others = len(skipped) - len(names)
    return f"{reasons}; and {n_others} more" if n_others else reasons


def _decide(table: Sequence[Layer], groups: Sequence[ChannelGroup]) -> Iterator[Decision]:
    """Yield the layers that are first to read groups, in the order of `table`."""
    order = {layer.name: place for place, layer in enumerate(table)}
    decided: dict[int, list[ChannelGroup]] = {}
    for group in groups:
        first = min(order[member.module] for member in group.consumers)
        decided.setdefault(first, []).append(group)
    for place in sorted(decided):
        yield Decision(table[place], tuple(decided[place]))


def _explain(
    table: Sequence[Layer],
    trace: ChannelTrace,
    safe: Sequence[ChannelGroup],
    refused: Sequence[tuple[ChannelGroup, str]],
) -> dict[str, str]:
    """Return why inputs of layers stay, in execution order; what cannot be cut comes last."""
    reasons: dict[str, str] = {}
    for name, side, classes in trace.sides:
        found = [x for x in classes.tolist() if x in trace.reasons]
        if side == "in" and found:
            reasons.setdefault(name, trace.reasons[found[0]])
    for group, reason in refused:
        for member in group.consumers:
            reasons.setdefault(member.module, reason)
    pruned = {member.module for group in safe for member in group.consumers}
    for name in reasons.keys() & pruned:
        reasons[name] = f"some of its inputs stay: {reasons[name]}"
    ordered = [layer.name for layer in table if layer.name in reasons]
    return {name: reasons[name] for name in ordered} | trace.unsupported


@torch.no_grad()
def zero_channels(model: nn.Module, group: ChannelGroup, channels: Sequence[int]) -> None:
    """Zero the weights by which any layer of the unpruned `model` reads the given channels."""
    layers = compute_layers(model)
    for member in group.consumers:
        if member.module in layers:
            positions = member.positions[np.asarray(channels, np.int64)].ravel()
            layers[member.module].weight[:, positions] = 0.0
