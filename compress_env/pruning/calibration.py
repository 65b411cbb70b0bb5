"""What the unpruned network answers on the calibration images, computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress_env.layers import Layer
from compress_env.pruning.statistics import (
    LayerStatistics,
    PatchSampler,
    collect_responses,
    collect_statistics,
)
from compress_env.task import CompressionTask

__all__ = ["Calibration"]

POSITIONS_PER_IMAGE = 10


class Calibration:
    """The unpruned responses of every layer of a walk at sampled positions, and statistics."""

    def __init__(self, task: CompressionTask, walk: Sequence[Layer], seed: int) -> None:
        """Run the unpruned network over the calibration images.

        Args:
            task: Gives the unpruned network and the images.
            walk: Layers to observe.
            seed: Seed of the sampled positions.
        """
        self._task = task
        sampler = PatchSampler(len(task.data.calibration), POSITIONS_PER_IMAGE, seed)
        self._positions = {layer.name: sampler.positions(layer.positions) for layer in walk}
        names = [layer.name for layer in walk]
        self._responses = collect_responses(task.model, names, self._images(), self._positions)

    def statistics(
        self, model: nn.Module, layer: str, out_channels: NDArray[np.int64]
    ) -> LayerStatistics:
        """Return the statistics of a live layer's inputs and its unpruned responses.

        Args:
            model: The live network.
            layer: Dotted name of a layer of the walk.
            out_channels: (N,) output channels that the live layer still has.
        """
        return collect_statistics(
            model,
            layer,
            self._images(),
            self._positions[layer],
            self._responses[layer],
            torch.from_numpy(out_channels),
        )

    def _images(self) -> Iterator[Tensor]:
        return (images for images, _ in self._task.calibration_batches())
