"""The networks of a run as ONNX files: how accurate these are, and how fast, in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from compress_env.quantization.export import export_onnx
from compress_env.task.task import CompressionTask
from experiments.common.latency import OnnxNetwork, measure_latency

__all__ = ["Export", "export_networks"]

BATCH_SIZES = (1, 64)


class Export(NamedTuple):
    """A network in onnxruntime, on the CPU."""

    onnx_bytes: int
    """Bytes of the file on disk."""
    onnx_test_error: float
    """Fraction of test images that the file gets wrong."""
    latency_1_ms: float
    """Median time for one image, in milliseconds."""
    latency_64_ms: float
    """Median time for 64 images at once, in milliseconds."""


def export_networks(
    folder: Path, networks: Mapping[str, nn.Module], task: CompressionTask
) -> dict[str, Export]:
    """Write each network as `NAME.onnx`, measure its test error, and time all in alternation.

    Args:
        folder: Where the files go.
        networks: Networks by the name of their file.
        task: Gives the test images.

    Raises:
        ValueError: If a network cannot be exported.
    """
    image = task.example_image()
    paths = {name: folder / f"{name}.onnx" for name in networks}
    n_bytes = {name: export_onnx(paths[name], model, image) for name, model in networks.items()}
    errors = {name: _test_error(path, task) for name, path in paths.items()}
    _, *shape = image.shape
    timed = measure_latency(list(paths.values()), (shape[0], shape[1], shape[2]), BATCH_SIZES)
    return {
        name: Export(n_bytes[name], errors[name], *(latency.median_ms for latency in row))
        for name, row in zip(paths, timed, strict=True)
    }


def _test_error(path: Path, task: CompressionTask) -> float:
    source, size = task.data.test, task.config.evaluation_batch_size
    batches = source.batches(torch.split(torch.arange(len(source)), size))
    return 1.0 - OnnxNetwork(path).accuracy(batches)
