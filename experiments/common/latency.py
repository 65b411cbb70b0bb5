"""Exported networks in onnxruntime: their accuracy, and how long they take side by side.

Shape legend: b images of C channels, H x W; K classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

__all__ = ["Latency", "OnnxNetwork", "measure_latency"]

StrPath: TypeAlias = str | os.PathLike[str]

_N_WARM_UP = 10


class Latency(NamedTuple):
    """How long one call of a network takes."""

    batch_size: int
    """Images in a call."""
    median_ms: float
    """Median over the calls, in milliseconds."""


class OnnxNetwork:
    """An ONNX file in onnxruntime, on the CPU, with as many threads as PyTorch has.

    Args:
        path: A file with one input, images (b, C, H, W) float32, and one output, (b, K) float32,
            as `compress_env.export_onnx` writes it.
        integer_kernels: Whether layers with quantized weights and inputs run on integers, with
            biases rounded too, kept from saturating on x86 processors without VNNI; no such layer
            may be called twice. Otherwise weights are dequantized on loading, inputs are rounded
            all the same, and layers run in float32.
    """

    def __init__(self, path: StrPath, *, integer_kernels: bool = False) -> None:
        """Load the file."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        entry = "session.x64quantprecision" if integer_kernels else "session.disable_quant_qdq"
        options.add_session_config_entry(entry, "1")
        self._session = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits, (b, K) float32, of images, (b, C, H, W) float32, on the CPU."""
        (logits,) = self._session.run(None, {self._input: images.numpy(force=True)})
        return torch.from_numpy(logits)

    def accuracy(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Return the fraction of images whose largest logit is that of their label.

        Args:
            batches: Images, (b, C, H, W) float32, and their labels, (b,) int64.

        Raises:
            ValueError: If there is no image.
        """
        correct = [(self.logits(x).argmax(1) == labels.cpu()).float() for x, labels in batches]
        if not correct:
            raise ValueError("expected at least one batch of images, got none")
        return float(torch.cat(correct).mean())


def measure_latency(
    paths: Sequence[StrPath],
    image_shape: tuple[int, int, int],
    batch_sizes: Sequence[int] = (1, 64),
    repeats: int = 200,
    *,
    integer_kernels: bool = False,
) -> list[list[Latency]]:
    """Time ONNX files in one process and in alternation, on the same images of noise.

    Args:
        paths: The files, as `OnnxNetwork` takes them.
        image_shape: Shape of one image, (C, H, W).
        batch_sizes: Numbers of images in a call.
        repeats: Timed calls of each file at each batch size, after 10 others.
        integer_kernels: As for `OnnxNetwork`.

    Returns:
        For each file, one entry per batch size.

    Raises:
        ValueError: If `repeats` or a batch size is below 1.
    """
    if min(repeats, *batch_sizes) < 1:
        raise ValueError(
            f"repeats and batch_sizes must be at least 1, got {repeats} and {tuple(batch_sizes)}"
        )
    networks = [OnnxNetwork(path, integer_kernels=integer_kernels) for path in paths]
    generator = torch.Generator().manual_seed(0)
    columns = []
    for batch_size in batch_sizes:
        images = torch.rand(batch_size, *image_shape, generator=generator)
        calls = [partial(network.logits, images) for network in networks]
        seconds = _time_in_turn(calls, repeats)
        columns.append([Latency(batch_size, 1e3 * median(row)) for row in seconds])
    return [list(row) for row in zip(*columns, strict=True)]


def _time_in_turn(calls: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Return the seconds of each repetition of each call; the first of a round changes."""
    seconds: list[list[float]] = [[] for _ in calls]
    for number in range(-_N_WARM_UP, repeats):
        for turn in range(len(calls)):
            position = (turn + number) % len(calls)
            start = perf_counter()
            calls[position]()
            elapsed = perf_counter() - start
            if number >= 0:
                seconds[position].append(elapsed)
    return seconds
