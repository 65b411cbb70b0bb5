"""Final networks as ONNX files, and their times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import pytest
import torch

from compress_env.envs.pruning import PruningEnv
from experiments.common.latency import Latency, OnnxNetwork, TimedNetwork, TorchNetwork
from experiments.compress.outcome import exports
from experiments.compress.outcome.exports import describe_timing, export_networks, time_networks
from tests.fakes import PlainNet, make_data, seeded

KEYS = [f"latency_{n}{kind}_ms" for n in (1, 64) for kind in ("", "_iqr")]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[list[type]]:
    """Collect what is timed together, and take a millisecond for each image."""
    kinds: list[list[type]] = []

    def measure(
        networks: Sequence[TimedNetwork], shape: Sequence[int], batch_sizes: Sequence[int]
    ) -> list[list[Latency]]:
        assert tuple(shape) == (1, 8, 8)
        kinds.append([type(network) for network in networks])
        return [[Latency(n, 1.0 * n, 0.9 * n, 1.1 * n) for n in batch_sizes] for _ in networks]

    monkeypatch.setattr(exports, "measure_latency", measure)
    return kinds


def test_both_runtimes_are_timed_each_by_itself(tmp_path: Path, timed: list[list[type]]) -> None:
    task = PruningEnv(seeded(PlainNet), make_data(), finetune_steps=0, device="cpu").task
    networks = {"a": task.model, "b": task.model}
    written = export_networks(tmp_path, networks, task)
    assert written["a"].onnx_bytes == (tmp_path / "a.onnx").stat().st_size
    assert written["b"].onnx_test_error == pytest.approx(1 - task.accuracy(task.model, "test"))
    columns = time_networks(tmp_path, networks, task)
    assert timed == [[TorchNetwork] * 2, [OnnxNetwork] * 2]
    assert set(columns["a"]) == {*KEYS, *(f"torch_{key}" for key in KEYS)}
    assert columns["b"]["torch_latency_64_ms"] == 64.0
    assert columns["b"]["latency_1_iqr_ms"] == pytest.approx(0.2)
    (tmp_path / "b.onnx").unlink()  # without a file of each, there is nothing to compare
    assert set(time_networks(tmp_path, networks, task)["a"]) == {f"torch_{key}" for key in KEYS}


@pytest.mark.parametrize("has_gpu", [False, True])
def test_times_are_explained(has_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    providers = ["CUDAExecutionProvider"] if has_gpu else []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    on_cpu = describe_timing(torch.device("cpu"), has_onnx=False)
    assert "PyTorch on the CPU, with 3 threads." in on_cpu and "onnxruntime" not in on_cpu
    place = "the GPU" if has_gpu else "the CPU"
    on_gpu = describe_timing(torch.device("cuda"), has_onnx=True)
    assert f"PyTorch on Some GPU, onnxruntime on {place}, with" in on_gpu


def test_files_are_given_no_more_images_at_once_than_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress_env.task.scoring.MOST_VALUES", 5 * 8 * 8)
    task = PruningEnv(seeded(PlainNet), make_data(), finetune_steps=0, device="cpu").task
    sizes, logits = [], OnnxNetwork.logits

    def noting(network: OnnxNetwork, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return logits(network, images)

    monkeypatch.setattr(OnnxNetwork, "logits", noting)
    export_networks(tmp_path, {"a": task.model}, task)
    assert max(sizes) == 5 and sum(sizes) == len(task.data.test)
