"""Networks in onnxruntime and in PyTorch: their accuracy, and how long they take side by side.

Shape legend: b images of C channels, H x W; K classes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from compress_env.quantization.activations import detach_input
from compress_env.quantization.fake_quant import bake
from compress_env.task.scoring import find_hits

__all__ = ["Latency", "OnnxNetwork", "TimedNetwork", "TorchNetwork", "measure_latency"]

StrPath: TypeAlias = str | os.PathLike[str]

LIMIT_S = 10.0
"""Seconds that all networks together take at a batch size, at most."""
_N_WARM_UP = 10
_WARM_UP_S = 2.0
_N_LEAST = 5


class TimedNetwork(Protocol):
    """What can be timed."""

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits, (b, K) on the CPU, of images, (b, C, H, W) float32, on the CPU."""


class Latency(NamedTuple):
    """How long one call of a network takes."""

    batch_size: int
    """Images in a call."""
    median_ms: float
    """Median over the calls, in milliseconds."""
    low_ms: float
    """Their lower quartile."""
    high_ms: float
    """Their upper quartile."""

    @property
    def iqr_ms(self) -> float:
        """Distance of the quartiles, in milliseconds."""
        return self.high_ms - self.low_ms


class OnnxNetwork:
    """An ONNX file in onnxruntime, with as many threads as PyTorch has.

    Args:
        path: A file with one input, images (b, C, H, W) float32, and one output, (b, K) float32,
            as `compress_env.export_onnx` writes it.
        integer_kernels: Whether layers with quantized weights and inputs run on integers, with
            biases rounded too, kept from saturating on x86 processors without VNNI; no such layer
            may be called twice. Otherwise weights are dequantized on loading, inputs are rounded
            all the same, and layers run in float32.
        providers: Execution providers by preference; the CPU's when not given.
    """

    def __init__(
        self,
        path: StrPath,
        *,
        integer_kernels: bool = False,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        """Load the file."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        entry = "session.x64quantprecision" if integer_kernels else "session.disable_quant_qdq"
        options.add_session_config_entry(entry, "1")
        self._session = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=list(providers)
        )
        self._input = self._session.get_inputs()[0].name

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits, (b, K) float32 on the CPU, of images, (b, C, H, W) float32."""
        (logits,) = self._session.run(None, {self._input: images.numpy(force=True)})
        return torch.from_numpy(logits)

    def accuracy(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Return the fraction of images whose largest logit is that of their label.

        Args:
            batches: Images, (b, C, H, W) float32, and their labels, (b,) int64.

        Raises:
            ValueError: If there is no image.
        """
        return self.accuracies(batches, (1,))[0]

    def accuracies(
        self, batches: Iterable[tuple[Tensor, Tensor]], tops: Sequence[int]
    ) -> list[float]:
        """Return the fractions of images whose label is among the first answers.

        Args:
            batches: As for `accuracy`.
            tops: For each fraction, how many answers count.

        Raises:
            ValueError: If there is no image.
        """
        hits: list[list[Tensor]] = [[] for _ in tops]
        for images, labels in batches:
            logits = self.logits(images)
            for found, top in zip(hits, tops, strict=True):
                found.append(find_hits(logits, labels.cpu(), top).float())
        if not hits[0]:
            raise ValueError("expected at least one batch of images, got none")
        return [float(torch.cat(found).mean()) for found in hits]


class TorchNetwork:
    """A copy of a network in PyTorch, for inference.

    Quantized weights are plain float32 ones in it, and inputs are not rounded: fake quantization is
    a means of training, and no cost of inference.

    Args:
        model: The network; it is left as it is.
        device: Where it runs.
    """

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu") -> None:
        """Copy the network."""
        network = copy.deepcopy(model)
        bake(network)
        for module in list(network.modules()):
            detach_input(module)
        self._network = network.to(device).eval()
        self._device = device

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Return the logits, (b, K) on the CPU, of images, (b, C, H, W) float32, on the CPU."""
        logits: Tensor = self._network(images.to(self._device)).cpu()  # which waits for the device
        return logits


def measure_latency(
    networks: Sequence[TimedNetwork],
    image_shape: tuple[int, ...],
    batch_sizes: Sequence[int] = (1, 64),
    repeats: int = 100,
    limit_s: float | None = None,
) -> list[list[Latency]]:
    """Time networks in one process and in alternation, on the same images of noise.

    A call begins with images and ends with logits in the memory of the CPU.

    Args:
        networks: The networks.
        image_shape: Shape of one image, (C, H, W).
        batch_sizes: Numbers of images in a call.
        repeats: Timed calls of each network at each batch size, after up to 10 others.
        limit_s: Seconds after which no further round of calls is begun at a batch size, once there
            are five; `LIMIT_S` when None.

    Returns:
        For each network, one entry per batch size.

    Raises:
        ValueError: If `repeats` or a batch size is below 1.
    """
    if min(repeats, *batch_sizes) < 1:
        raise ValueError(
            f"repeats and batch_sizes must be at least 1, got {repeats} and {tuple(batch_sizes)}"
        )
    limit = LIMIT_S if limit_s is None else limit_s
    generator = torch.Generator().manual_seed(0)
    columns = []
    for batch_size in batch_sizes:
        images = torch.rand(batch_size, *image_shape, generator=generator)
        calls = [partial(network.logits, images) for network in networks]
        _time_in_turn(calls, _N_WARM_UP, _WARM_UP_S, n_least=1)
        seconds = _time_in_turn(calls, repeats, limit, n_least=_N_LEAST)
        columns.append([_summarize(batch_size, row) for row in seconds])
    return [list(row) for row in zip(*columns, strict=True)]


def _summarize(batch_size: int, seconds: Sequence[float]) -> Latency:
    low, middle, high = (1e3 * np.percentile(seconds, (25, 50, 75))).tolist()
    return Latency(batch_size, middle, low, high)


def _time_in_turn(
    calls: Sequence[Callable[[], object]], repeats: int, limit_s: float, n_least: int
) -> list[list[float]]:
    """Return the seconds of each repetition of each call; the first of a round changes."""
    seconds: list[list[float]] = [[] for _ in calls]
    for number in _rounds(repeats, limit_s, n_least):
        for turn in range(len(calls)):
            position = (turn + number) % len(calls)
            start = perf_counter()
            calls[position]()
            seconds[position].append(perf_counter() - start)
    return seconds


def _rounds(repeats: int, limit_s: float, n_least: int) -> Iterator[int]:
    """Count rounds until there are enough, or the time is up."""
    start = perf_counter()
    for number in range(repeats):
        if number >= n_least and perf_counter() - start > limit_s:
            return
        yield number
