"""What the unpruned network answers on the calibration images, computed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress_env.pruning.channels.patches import PatchSampler
from compress_env.pruning.channels.statistics import (
    LayerStatistics,
    collect_responses,
    collect_statistics,
)
from compress_env.task.layers import Layer
from compress_env.task.task import CompressionTask

__all__ = ["Calibration"]

POSITIONS_PER_IMAGE = 10
_MAX_KEPT_BYTES = 2**28  # of calibration images as float32; more are read anew each time


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
        self._kept = self._keep_images()
        sampler = PatchSampler(len(task.data.calibration), POSITIONS_PER_IMAGE, seed)
        self._positions = {
            layer.name: sampler.positions(layer.positions).to(task.device) for layer in walk
        }
        names = [layer.name for layer in walk]
        self._responses = collect_responses(task.model, names, self._images(), self._positions)
        self._first = names[0]
        self._unpruned: LayerStatistics | None = None

    def statistics(
        self, model: nn.Module, layer: str, out_channels: NDArray[np.int64]
    ) -> LayerStatistics:
        """Return the statistics of a live layer's inputs and its unpruned responses.

        Those of the first layer of an episode, where the network is still the unpruned one, are
        computed once.

        Args:
            model: The live network.
            layer: Dotted name of a layer of the walk.
            out_channels: (N,) output channels that the live layer still has.

        Returns:
            The statistics, not to be changed in place.
        """
        self._task.prepare(model)
        if layer != self._first or not _are_equal(model, self._task.model):
            return self._collect(model, layer, out_channels)
        if self._unpruned is None:
            self._unpruned = self._collect(model, layer, out_channels)
        return self._unpruned

    def _collect(
        self, model: nn.Module, layer: str, out_channels: NDArray[np.int64]
    ) -> LayerStatistics:
        return collect_statistics(
            model,
            layer,
            self._images(),
            self._positions[layer],
            self._responses[layer],
            torch.from_numpy(out_channels),
        )

    def _keep_images(self) -> list[Tensor] | None:
        """Return all calibration images, preprocessed, or None if they are too many."""
        source = self._task.data.calibration
        if len(source) * self._task.example_image().nbytes > _MAX_KEPT_BYTES:
            return None
        return [images for images, _ in self._task.calibration_batches()]

    def _images(self) -> Iterable[Tensor]:
        if self._kept is not None:
            return self._kept
        return (images for images, _ in self._task.calibration_batches())


def _are_equal(left: nn.Module, right: nn.Module) -> bool:
    """Whether two networks of the same architecture have the same parameters and buffers."""
    tensors = [list(chain(model.parameters(), model.buffers())) for model in (left, right)]
    return len(tensors[0]) == len(tensors[1]) and all(map(torch.equal, *tensors))
