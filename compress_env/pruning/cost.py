"""What a network costs as a function of how many channels each group keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compress_env.pruning.graph.groups import ChannelGroup, Side
from compress_env.task.layers import Layer, dense_params

__all__ = ["PruningCost", "Unit"]

Unit = Literal["filters", "macs", "params"]
"""What a budget or a target counts: filters that can go, multiply-accumulates, parameters."""


class PruningCost:
    """Exact costs of a network for any number of kept channels.

    With G groups and L layers, a layer's inputs (outputs) are its unpruned inputs (outputs) less
    what each group takes away: `inputs = base - (n - kept) @ lost`, `lost` being (G, L). Operations
    outside of layers cost the same whatever is kept: they read channels that stay.
    """

    def __init__(
        self,
        table: Sequence[Layer],
        groups: Sequence[ChannelGroup],
        model: nn.Module,
        other_macs: int = 0,
    ) -> None:
        """Tabulate which group cuts how much from which layer of the unpruned `model`.

        Args:
            table: Every layer, in execution order.
            groups: The channels that can go.
            model: The unpruned network.
            other_macs: Multiply-accumulates per image of operations outside of layers.
        """
        self._other_macs = other_macs
        self.sizes = np.array([group.n_channels for group in groups], np.int64)
        self._work = np.array(
            [x.positions * x.kernel_height * x.kernel_width for x in table], np.int64
        )
        self._kernels = np.array([x.kernel_height * x.kernel_width for x in table], np.int64)
        # A depthwise convolution has one input per output, whatever is pruned.
        self._inputs = np.array([x.in_channels // x.groups for x in table], np.int64)
        self._outputs = np.array([x.out_channels for x in table], np.int64)
        grouped = np.array([x.groups > 1 for x in table])
        self._lost_inputs = np.where(grouped, 0, _lost(table, groups, "in"))
        self._lost_outputs = _lost(table, groups, "out")
        self._filters = np.where(grouped, 0, self._lost_outputs).sum(axis=1)
        self._vectors = np.array([_vector_params(group, model) for group in groups], np.int64)
        self._other_params = dense_params(model) - int(self.weights_by_layer(self.sizes).sum())

    def count(self, unit: Unit, kept: Sequence[int] | NDArray[np.int64]) -> int:
        """Return what the network costs in some unit; see `macs`, `params` and `filters`."""
        return {"macs": self.macs, "params": self.params, "filters": self.filters}[unit](kept)

    def filters(self, kept: Sequence[int] | NDArray[np.int64]) -> int:
        """Filters of the layers that produce the groups; depthwise ones and others do not count.

        Args:
            kept: (G,) channels that each group keeps.
        """
        return int(np.asarray(kept, np.int64) @ self._filters)

    def params(self, kept: Sequence[int] | NDArray[np.int64]) -> int:
        """Parameters as stored, those of biases and norm layers included.

        Args:
            kept: (G,) channels that each group keeps.
        """
        removed = self.sizes - np.asarray(kept, np.int64)
        lost = int(removed @ self._vectors)
        return self._other_params + int(self.weights_by_layer(kept).sum()) - lost

    def macs(self, kept: Sequence[int] | NDArray[np.int64]) -> int:
        """Multiply-accumulates per image, of every operation.

        Args:
            kept: (G,) channels that each group keeps.
        """
        return self._other_macs + int(self.macs_by_layer(kept).sum())

    def macs_by_layer(self, kept: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Multiply-accumulates per image of each layer of the table, (L,).

        Args:
            kept: (G,) channels that each group keeps.
        """
        macs: NDArray[np.int64] = self._work * self._pairs(kept)
        return macs

    def weights_by_layer(self, kept: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Elements of the weight of each layer of the table, (L,).

        Args:
            kept: (G,) channels that each group keeps.
        """
        weights: NDArray[np.int64] = self._kernels * self._pairs(kept)
        return weights

    def _pairs(self, kept: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the pairs of an input and an output that each layer connects, (L,)."""
        removed = self.sizes - np.asarray(kept, np.int64)
        inputs = self._inputs - removed @ self._lost_inputs
        outputs = self._outputs - removed @ self._lost_outputs
        pairs: NDArray[np.int64] = inputs * outputs
        return pairs


def _lost(table: Sequence[Layer], groups: Sequence[ChannelGroup], side: Side) -> NDArray[np.int64]:
    lost = np.zeros((len(groups), len(table)), np.int64)
    columns = {layer.name: column for column, layer in enumerate(table)}
    for row, group in enumerate(groups):
        for member in group.members:
            if member.side == side and member.module in columns:
                lost[row, columns[member.module]] += member.positions.shape[1]
    return lost


def _vector_params(group: ChannelGroup, model: nn.Module) -> int:
    """Return the elements of biases, norm layers and the like that go with one channel."""
    total = 0
    for member in group.members:
        if member.side == "out":
            own = model.get_submodule(member.module).parameters(recurse=False)
            total += member.positions.shape[1] * sum(p.dim() == 1 for p in own)
    return total
