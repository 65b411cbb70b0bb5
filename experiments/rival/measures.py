"""What is measured of a compressed network, beside the network that it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from compress_env.networks.checkpoints import checkpoint_bytes
from compress_env.quantization.packing import save
from compress_env.task.counting import total_macs
from compress_env.task.layers import dense_params
from compress_env.task.task import CompressionTask
from experiments.compress.exports import export_networks, time_networks

__all__ = ["measure_network"]

BASELINE, NETWORK = "baseline", "network"


def measure_network(model: nn.Module, task: CompressionTask, folder: Path) -> dict[str, Any]:
    """Write a network as a packed and as an ONNX file, and measure both on the test images.

    Args:
        model: The network, quantized or not.
        task: The network that it comes from, and the images.
        folder: Where `network.cenv`, `network.onnx` and `baseline.onnx` go.

    Returns:
        `validation_accuracy`, `test_error` and `baseline_test_error`, fractions; `n_macs` and
        `n_params`, of one image; `bytes` of the packed file, `onnx_bytes`; `macs`, `params` and
        `bytes_share`, fractions of the baseline's, of its float32 file; `onnx_test_error`; and
        `latency_1_ms`, `latency_64_ms` in onnxruntime, with those of the baseline, timed in turn,
        as `baseline_latency_1_ms` and so on.
    """
    image, baseline = task.example_image(), task.model
    networks = {BASELINE: baseline, NETWORK: model}
    export = export_networks(folder, networks, task)[NETWORK]
    times = time_networks(folder, networks, task)
    n_macs, n_params = total_macs(model, image), dense_params(model)
    n_bytes = save(folder / f"{NETWORK}.cenv", model)
    return {
        "validation_accuracy": task.accuracy(model, "validation"),
        "test_error": 1.0 - task.accuracy(model, "test"),
        "baseline_test_error": 1.0 - task.accuracy(baseline, "test"),
        "macs": n_macs / total_macs(baseline, image),
        "n_macs": n_macs,
        "params": n_params / dense_params(baseline),
        "n_params": n_params,
        "bytes": n_bytes,
        "bytes_share": n_bytes / checkpoint_bytes(baseline),
        **export._asdict(),
        **{key: times[NETWORK][key] for key in ("latency_1_ms", "latency_64_ms")},
        **{f"baseline_{key}": times[BASELINE][key] for key in ("latency_1_ms", "latency_64_ms")},
    }
