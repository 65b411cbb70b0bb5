"""What a network costs as a function of how many channels each group keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compress_env.layers import Layer
from compress_env.pruning.groups import ChannelGroup, Side

__all__ = ["PruningCost"]


class PruningCost:
    """Exact multiply-accumulates per image for any number of kept channels.

    With G groups and L layers, a layer's inputs (outputs) are its unpruned inputs (outputs) less
    what each group takes away: `inputs = base - (n - kept) @ lost`, `lost` being (G, L).
    """

    def __init__(self, table: Sequence[Layer], groups: Sequence[ChannelGroup]) -> None:
        """Tabulate which group cuts how much from which layer."""
        self.sizes = np.array([group.n_channels for group in groups], np.int64)
        self._work = np.array(
            [x.positions * x.kernel_height * x.kernel_width for x in table], np.int64
        )
        # A depthwise convolution has one input per output, whatever is pruned.
        self._inputs = np.array([x.in_channels // x.groups for x in table], np.int64)
        self._outputs = np.array([x.out_channels for x in table], np.int64)
        grouped = np.array([x.groups > 1 for x in table])
        self._lost_inputs = np.where(grouped, 0, _lost(table, groups, "in"))
        self._lost_outputs = _lost(table, groups, "out")

    def macs(self, kept: Sequence[int] | NDArray[np.int64]) -> int:
        """Multiply-accumulates per image.

        Args:
            kept: (G,) channels that each group keeps.
        """
        return int(self.macs_by_layer(kept).sum())

    def macs_by_layer(self, kept: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Multiply-accumulates per image of each layer of the table, (L,).

        Args:
            kept: (G,) channels that each group keeps.
        """
        removed = self.sizes - np.asarray(kept, np.int64)
        inputs = self._inputs - removed @ self._lost_inputs
        outputs = self._outputs - removed @ self._lost_outputs
        macs: NDArray[np.int64] = self._work * inputs * outputs
        return macs


def _lost(table: Sequence[Layer], groups: Sequence[ChannelGroup], side: Side) -> NDArray[np.int64]:
    lost = np.zeros((len(groups), len(table)), np.int64)
    columns = {layer.name: column for column, layer in enumerate(table)}
    for row, group in enumerate(groups):
        for member in group.members:
            if member.side == side and member.module in columns:
                lost[row, columns[member.module]] += member.positions.shape[1]
    return lost
