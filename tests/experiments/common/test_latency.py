"""Timing networks: what is called how often, in which order, and what is told."""

from __future__ import annotations

import copy
from collections import Counter
from functools import partial
from itertools import count
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from compress_env.quantization.activations import (
    Range,
    attach_input,
    detach_input,
    has_quantizers,
)
from compress_env.quantization.fake_quant import attach, bake
from experiments.common import latency
from experiments.common.latency import OnnxNetwork, TorchNetwork, measure_latency
from tests.fakes import PlainNet, seeded

WEIGHT = np.array([[1.0, 0.0, 0.0, -1.0], [0.0, 2.0, 0.0, 0.0]], np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A linear layer of two classes that reads images of 2x2."""
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight"], ["logits"], transB=1),
        ],
        "linear",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    opset = [helper.make_opsetid("", 21)]
    path = tmp_path / "linear.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


IMAGES = torch.tensor([[3.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 2.0]])
IMAGES = IMAGES.view(3, 1, 2, 2)


@pytest.mark.parametrize("integer_kernels", [False, True])
def test_logits_and_accuracy(path: Path, integer_kernels: bool) -> None:
    network = OnnxNetwork(path, integer_kernels=integer_kernels)
    wanted = torch.tensor([[3.0, 2.0], [-1.0, 2.0], [-1.0, 0.0]])
    torch.testing.assert_close(network.logits(IMAGES), wanted)
    labels = torch.tensor([0, 1, 0])
    batches = [(IMAGES[:2], labels[:2]), (IMAGES[2:], labels[2:])]
    assert network.accuracy(batches) == pytest.approx(2 / 3)


def test_accuracy_of_no_images_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least one batch of images, got none"):
        OnnxNetwork(path).accuracy([])


def test_calls_take_turns_and_the_first_of_a_round_changes() -> None:
    called: list[str] = []
    calls = [partial(called.append, name) for name in "abc"]
    seconds = latency._time_in_turn(calls, repeats=5, limit_s=60.0, n_least=1)
    assert [len(row) for row in seconds] == [5, 5, 5]
    assert all(second >= 0 for row in seconds for second in row)
    rounds = ["".join(called[start : start + 3]) for start in range(0, len(called), 3)]
    assert rounds == ["abc", "bca", "cab", "abc", "bca"]


@pytest.mark.parametrize(("n_least", "expected"), [(1, 3), (5, 5)])
def test_no_round_is_begun_when_the_time_is_up(
    n_least: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a round lasts a second."""
    clock = 0.0

    def call() -> None:
        nonlocal clock
        clock += 1.0

    monkeypatch.setattr(latency, "perf_counter", lambda: clock)
    seconds = latency._time_in_turn([call], repeats=100, limit_s=2.5, n_least=n_least)
    assert seconds == [[1.0] * expected]


class Noted:
    """Notes the images that it is given."""

    def __init__(self) -> None:
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def logits(self, images: Tensor) -> Tensor:
        self.shapes[tuple(images.shape)] += 1
        return images


def test_every_network_is_timed_at_every_batch_size(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that ticks a millisecond each time, so that a busy machine cuts nothing short."""
    monkeypatch.setattr(latency, "perf_counter", partial(next, count(0.0, 0.001)))
    noted = Noted()
    rows = measure_latency([OnnxNetwork(path), noted], (1, 2, 2), batch_sizes=(1, 64), repeats=3)
    assert [[entry.batch_size for entry in row] for row in rows] == [[1, 64], [1, 64]]
    assert all(entry.median_ms > 0 for row in rows for entry in row)
    assert noted.shapes == {(1, 1, 2, 2): 13, (64, 1, 2, 2): 13}


def test_median_and_spread_are_told_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [0.0] * 31 + [0.0, 0.004, 0.0, 0.001, 0.0, 0.1]
    monkeypatch.setattr(latency, "perf_counter", partial(next, iter(times)))
    ((entry,),) = measure_latency([Noted()], (1, 2, 2), batch_sizes=(2,), repeats=3)
    assert entry == pytest.approx((2, 4.0, 2.5, 52.0))
    assert entry.iqr_ms == pytest.approx(49.5)


@pytest.mark.parametrize(("repeats", "batch_sizes"), [(0, (1,)), (1, (4, 0))])
def test_nothing_to_time_is_refused(repeats: int, batch_sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="repeats and batch_sizes must be at least 1"):
        measure_latency([Noted()], (1, 2, 2), batch_sizes, repeats)


def test_network_in_pytorch_runs_without_quantizers() -> None:
    model = seeded(PlainNet)
    attach(cast(nn.Conv2d, model.get_submodule("conv2")), 2)
    attach_input(cast(nn.Linear, model.get_submodule("fc1")), Range(0.0, 1.0))
    images = torch.rand(2, 1, 8, 8)
    plain = copy.deepcopy(model)
    bake(plain)
    detach_input(plain.get_submodule("fc1"))
    network = TorchNetwork(model)
    torch.testing.assert_close(network.logits(images), plain.eval()(images))
    assert not has_quantizers(network._network) and has_quantizers(model)
