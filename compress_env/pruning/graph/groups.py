"""Groups of channels that must be removed together, and where they are in each module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["ChannelGroup", "Member", "Side", "group_channels"]

Side = Literal["in", "out"]
"""The channels that a layer reads, or those that it makes."""


class Member(NamedTuple):
    """One module that loses slices when a channel of a group goes.

    Attributes:
        module: Dotted name.
        side: Whether its inputs or its outputs are cut. A depthwise convolution and a batch-norm
            have one output for each input, and count as outputs.
        positions: (n_channels, k) int64, the k positions of each channel along that side.
    """

    module: str
    side: Side
    positions: NDArray[np.int64]


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


def group_channels(
    sides: Sequence[tuple[str, Side, NDArray[np.int64]]], stays: NDArray[np.bool_]
) -> list[ChannelGroup]:
    """Group the channels that are found in the same modules, equally often.

    Args:
        sides: Module, side and (n,) int64 the class of the channel at each position of that side.
            A channel's producer comes before whatever reads it.
        stays: (n_classes,) whether a class must not be removed; such classes are left out.

    Returns:
        The groups, in the order of the modules that produce them. A class is one channel.
    """
    sizes = [len(classes) for _, _, classes in sides]
    side = np.repeat(np.arange(len(sides)), sizes)
    position = np.concatenate([np.arange(n) for n in sizes] or [np.empty(0, np.int64)])
    number = np.concatenate([classes for *_, classes in sides] or [np.empty(0, np.int64)])
    goes = np.flatnonzero(~stays[number])
    # Places of each class side by side, in the order of the forward pass.
    order = goes[np.lexsort((position[goes], side[goes], number[goes]))]
    starts = np.flatnonzero(np.diff(number[order])) + 1
    alike: dict[bytes, list[NDArray[np.int64]]] = {}
    for places in np.split(order, starts) if len(order) else []:
        alike.setdefault(side[places].tobytes(), []).append(places)
    groups = []
    for rows in alike.values():
        places = np.stack(rows)
        places = places[np.argsort(places[:, 0])]
        members = (
            Member(sides[i][0], sides[i][1], position[places[:, side[places[0]] == i]])
            for i in np.unique(side[places[0]])
        )
        groups.append((int(places[0, 0]), ChannelGroup(len(places), tuple(members))))
    return [group for _, group in sorted(groups, key=lambda pair: pair[0])]
