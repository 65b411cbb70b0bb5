"""Final networks as ONNX files, and how long all of them take, in onnxruntime and in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from compress_env.quantization.export import export_onnx
from compress_env.task.scoring import tops_for
from compress_env.task.task import CompressionTask
from experiments.common.latency import OnnxNetwork, TimedNetwork, TorchNetwork, measure_latency

__all__ = ["Export", "describe_timing", "export_networks", "time_networks"]

BATCH_SIZES = (1, 64)


class Export(NamedTuple):
    """A network as an ONNX file."""

    onnx_bytes: int
    """Bytes of the file on disk."""
    onnx_test_error: float
    """Fraction of test images that the file gets wrong in onnxruntime."""
    onnx_test_error_top5: float | None = None
    """The same where five answers count; None of few classes."""


def export_networks(
    folder: Path, networks: Mapping[str, nn.Module], task: CompressionTask
) -> dict[str, Export]:
    """Write each network as `NAME.onnx`, and measure its test error.

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
    return {name: Export(n_bytes[name], *_test_errors(path, task)) for name, path in paths.items()}


def _test_errors(path: Path, task: CompressionTask) -> list[float]:
    """Return the fraction of test images that a file gets wrong, and of many classes top-5."""
    source, size = task.data.test, task.scoring_batch_size
    batches = source.batches(torch.split(torch.arange(len(source)), size))
    tops = tops_for(task.data.num_classes)
    return [1.0 - accuracy for accuracy in OnnxNetwork(path).accuracies(batches, tops)]


def time_networks(
    folder: Path, networks: Mapping[str, nn.Module], task: CompressionTask
) -> dict[str, dict[str, Any]]:
    """Time each network in PyTorch, on the task's device, and its ONNX file, if all have one.

    Args:
        folder: Where the files `NAME.onnx` are.
        networks: Networks by the name of their file.
        task: Gives device and shape of the images.

    Returns:
        For each network its columns `latency_1_ms`, of one image in onnxruntime, `latency_64_ms`,
        `torch_latency_1_ms` and `torch_latency_64_ms`, and for each of them the distance of the
        quartiles, `latency_1_iqr_ms` and so on.
    """
    paths = [folder / f"{name}.onnx" for name in networks]
    in_torch: list[TimedNetwork] = [TorchNetwork(m, task.device) for m in networks.values()]
    runtimes = {"torch_": in_torch}
    if all(path.is_file() for path in paths):
        providers = _onnx_providers(task.device)
        runtimes[""] = [OnnxNetwork(path, providers=providers) for path in paths]
    columns: dict[str, dict[str, Any]] = {name: {} for name in networks}
    for prefix, timed in runtimes.items():
        rows = measure_latency(timed, task.example_image().shape[1:], BATCH_SIZES)
        for name, row in zip(networks, rows, strict=True):
            for entry in row:
                key = f"{prefix}latency_{entry.batch_size}"
                columns[name] |= {f"{key}_ms": entry.median_ms, f"{key}_iqr_ms": entry.iqr_ms}
    return columns


def _onnx_providers(device: torch.device) -> list[str]:
    """Return where onnxruntime runs: on the CPU, or on a GPU if that is asked for and can be."""
    import onnxruntime

    wanted = ("CUDAExecutionProvider",) if device.type == "cuda" else ()
    found = [name for name in wanted if name in onnxruntime.get_available_providers()]
    return [*found, "CPUExecutionProvider"]


def describe_timing(device: torch.device, *, has_onnx: bool) -> str:
    """Say in a sentence what the times of `time_networks` are."""
    is_gpu = device.type == "cuda"
    where = {
        "PyTorch": torch.cuda.get_device_name(device) if is_gpu else f"the {device.type.upper()}"
    }
    if has_onnx:
        on_gpu = "CUDAExecutionProvider" in _onnx_providers(device)
        where["onnxruntime"] = "the GPU" if on_gpu else "the CPU"
    n_threads = torch.get_num_threads()
    return (
        "Times are medians ± the distance of the quartiles, all networks in turn, after a warm-up, "
        "from images to logits in the memory of the CPU: "
        + ", ".join(f"{name} on {place}" for name, place in where.items())
        + f", with {n_threads} thread{'s' if n_threads > 1 else ''}. Weights are dequantized "
        "beforehand: fewer bits save bytes, not time."
    )
