"""What is measured of a compressed network, beside the network that it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from compress_env.networks.checkpoints import checkpoint_bytes
from compress_env.quantization.packing import save
from compress_env.task.counting import total_macs
from compress_env.task.layers import dense_params
from compress_env.task.scoring import tops_for
from compress_env.task.task import CompressionTask
from experiments.compress.outcome.exports import export_networks, time_networks

__all__ = ["measure_network"]

BASELINE, NETWORK = "baseline", "network"


def measure_network(model: nn.Module, task: CompressionTask, folder: Path) -> dict[str, Any]:
    """Write a network as a packed and as an ONNX file, and measure both on the test images.

    Args:
        model: The network, quantized or not.
        task: The network that it comes from, and the images.
        folder: Where `network.cenv`, `network.onnx` and `baseline.onnx` go.

    Returns:
        `validation_accuracy`, `test_error` and `baseline_test_error`, fractions, of many classes
        `test_error_top5` and `baseline_test_error_top5` too; `n_macs` and
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
        **_test_errors("test_error", model, task),
        **_test_errors("baseline_test_error", baseline, task),
        "macs": n_macs / total_macs(baseline, image),
        "n_macs": n_macs,
        "params": n_params / dense_params(baseline),
        "n_params": n_params,
        "bytes": n_bytes,
        "bytes_share": n_bytes / checkpoint_bytes(baseline),
        **{key: value for key, value in export._asdict().items() if value is not None},
        **{key: times[NETWORK][key] for key in ("latency_1_ms", "latency_64_ms")},
        **{f"baseline_{key}": times[BASELINE][key] for key in ("latency_1_ms", "latency_64_ms")},
    }


def _test_errors(name: str, model: nn.Module, task: CompressionTask) -> dict[str, float]:
    accuracies = task.accuracies(model, "test", tops_for(task.data.num_classes))
    names = name, f"{name}_top5"
    return {name: 1.0 - accuracy for name, accuracy in zip(names, accuracies, strict=False)}
