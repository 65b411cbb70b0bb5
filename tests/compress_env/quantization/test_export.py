"""Exported files: what is in them, and that they compute what the network does."""

from __future__ import annotations

import copy
import logging
import runpy
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import compress_env
from compress_env.data.bundle import DataBundle, load_data
from compress_env.networks.models import build_model
from compress_env.pruning.graph.surgery import LiveChannels, find_walk
from compress_env.quantization import export
from compress_env.quantization.activations import attach_input, measure_input_range
from compress_env.quantization.export import export_onnx, export_program
from compress_env.quantization.fake_quant import attach, quantize_to_integers, quantizer_of
from compress_env.quantization.folding import fold_batch_norm
from compress_env.task.layers import compute_layers
from experiments.common import latency
from experiments.common.latency import OnnxNetwork
from tests.fakes import BranchedNet, PlainNet, read_all, seeded

KERNELS = pytest.mark.parametrize("integer_kernels", [False, True], ids=["float", "integer"])


@pytest.fixture(scope="module")
def digits() -> DataBundle:
    return load_data("digits")


@pytest.fixture(scope="module")
def lenet(digits: DataBundle) -> nn.Module:
    """LeNet-5 without every third channel and feature, trained for 60 minibatches of 32."""
    images, labels = read_all(digits.train)
    model = seeded(lambda: build_model("lenet5", 10, digits.image_shape))
    live = LiveChannels(model)
    for decision in find_walk(model, images[:2]).decisions:
        for group in decision.groups:
            live.remove(group, range(0, group.n_channels, 3))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for rows in torch.randint(len(images), (60, 32), generator=torch.Generator().manual_seed(0)):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def quantized(model: nn.Module, bits: tuple[int, ...], images: Tensor | None = None) -> nn.Module:
    """Return a copy with bits in turn; with images, their ranges quantize the inputs too."""
    model = copy.deepcopy(model)
    ranges = {}
    if images is not None:
        for name in compute_layers(model):
            ranges[name] = measure_input_range(model, name, [(images, None)])
    for (name, layer), n_bits in zip(compute_layers(model).items(), cycle(bits), strict=False):
        attach(layer, n_bits)
        if name in ranges:
            attach_input(layer, ranges[name])
    return model


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(images)
    return logits


def agreement(one: Tensor, other: Tensor) -> float:
    """Fraction of images with the same prediction."""
    return float((one.argmax(1) == other.argmax(1)).float().mean())


def random_images(n: int, channels: int = 1, side: int = 8) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(1))


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def check_weights(path: Path, model: nn.Module, image: Tensor) -> None:
    """Check that the file holds the integers of each folded layer, and no float copy of them."""
    graph = onnx.load(path).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    readers = {node.input[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    for name, layer in compute_layers(fold_batch_norm(model, image)).items():
        quantizer = quantizer_of(layer)
        assert quantizer is not None
        integers = quantize_to_integers(layer.weight, quantizer.scale, quantizer.bits)
        weight = stored[f"{name}.weight"]
        assert weight.data_type == TensorProto.INT8
        assert np.array_equal(numpy_helper.to_array(weight), integers.numpy())
        reader = readers[weight.name]
        scale, zero_point = (numpy_helper.to_array(stored[x]) for x in reader.input[1:])
        assert np.array_equal(scale, quantizer.scale.numpy())
        assert zero_point.dtype == np.int8 and not zero_point.any()
        assert [attribute.i for attribute in reader.attribute if attribute.name == "axis"] == [0]
    floats = [x for x in graph.initializer if x.data_type == TensorProto.FLOAT]
    assert all(len(tensor.dims) <= 1 for tensor in floats)


def test_float_logits_agree(lenet: nn.Module, digits: DataBundle, tmp_path: Path) -> None:
    images, labels = read_all(digits.test)
    path = tmp_path / "float.onnx"
    size = compress_env.export_onnx(path, lenet, images[:1])
    assert size == path.stat().st_size and list(tmp_path.iterdir()) == [path]
    wanted = logits_of(lenet, images)
    for n in (1, 2, len(images)):
        torch.testing.assert_close(
            OnnxNetwork(path).logits(images[:n]), wanted[:n], rtol=0.0, atol=1e-4
        )
    accuracy = OnnxNetwork(path).accuracy([(images, labels)])
    assert accuracy == pytest.approx(float((wanted.argmax(1) == labels).float().mean()))
    assert accuracy > 0.8


@pytest.fixture(scope="module")
def lenet_files(
    lenet: nn.Module, digits: DataBundle, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[nn.Module, Path]]:
    """The pruned LeNet-5 with bits 8, 4, 2, 6, 3, without and with quantized inputs, as files."""
    images = read_all(digits.calibration)[0]
    files = {}
    for kind, ranges in (("weights", None), ("inputs", images)):
        model = quantized(lenet, (8, 4, 2, 6, 3), ranges)
        path = tmp_path_factory.mktemp("onnx") / f"{kind}.onnx"
        export_onnx(path, model, images[:1])
        files[kind] = (model, path)
    return files


@KERNELS
@pytest.mark.parametrize("kind", ["weights", "inputs"])
def test_quantized_predictions_agree(
    lenet_files: dict[str, tuple[nn.Module, Path]],
    digits: DataBundle,
    kind: str,
    integer_kernels: bool,
) -> None:
    model, path = lenet_files[kind]
    images = torch.cat([read_all(source)[0] for source in (digits.train, digits.test)])
    wanted = logits_of(model, images)
    got = OnnxNetwork(path, integer_kernels=integer_kernels).logits(images)
    assert agreement(got, wanted) >= 0.999
    if kind == "weights":
        torch.testing.assert_close(got, wanted, rtol=0.0, atol=1e-4)


def test_files_hold_integers_and_nodes_that_read_them(
    lenet_files: dict[str, tuple[nn.Module, Path]],
) -> None:
    image = random_images(1, side=32)
    for kind, (model, path) in lenet_files.items():
        check_weights(path, model, image)
        n_inputs = 5 if kind == "inputs" else 0
        assert operators(path)["QuantizeLinear"] == n_inputs
        assert operators(path)["DequantizeLinear"] == 5 + n_inputs
        levels = [
            numpy_helper.to_array(tensor)
            for tensor in onnx.load(path).graph.initializer
            if tensor.name.endswith("input_quantizer.zero_point")
        ]
        assert all(level.dtype == np.uint8 and level.shape == () for level in levels)
        assert bool(levels) == bool(n_inputs)


def test_files_tell_nothing_of_where_they_were_made(
    lenet_files: dict[str, tuple[nn.Module, Path]],
) -> None:
    _, path = lenet_files["inputs"]
    assert b".py" not in path.read_bytes()
    (images,), (logits,) = onnx.load(path).graph.input, onnx.load(path).graph.output
    assert (images.name, logits.name) == ("images", "logits")
    assert images.type.tensor_type.shape.dim[0].dim_param == "batch"


ALL_BITS = (1, 2, 3, 4, 5, 6, 7, 8)
LARGE: dict[str, Callable[[], nn.Module]] = {
    name: partial(build_model, name, 10, (1, 16, 16))
    for name in ("resnet20", "mobilenet_v2_narrow", "densenet_small", "vgg8")
}


def check_network(model: nn.Module, side: int, path: Path) -> None:
    """Export with bits 1 to 8 in turn and quantized inputs; compare with the folded network."""
    images = random_images(256, side=side)
    model = quantized(model, ALL_BITS, images)
    export_onnx(path, model, images[:1])
    check_weights(path, model, images[:1])
    folded = logits_of(fold_batch_norm(model, images[:1]), images)
    for integer_kernels in (False, True):
        got = OnnxNetwork(path, integer_kernels=integer_kernels).logits(images)
        # A rounded input may be a level off; most are not.
        difference = (got - folded).abs().amax(dim=1) / folded.abs().max()
        assert float(difference.median()) <= 0.01
        assert float(difference.max()) <= 0.1


def test_batch_norms_shortcuts_and_depthwise_layers(tmp_path: Path) -> None:
    check_network(seeded(partial(BranchedNet, 10)), 8, tmp_path / "network.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_deep_networks(name: str, tmp_path: Path) -> None:
    check_network(seeded(LARGE[name]), 16, tmp_path / "network.onnx")


def test_the_model_stays_and_nothing_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = quantized(seeded(PlainNet), (8,), random_images(4)).train()
    state = copy.deepcopy(model.state_dict())
    export_onnx(tmp_path / "network.onnx", model, random_images(1))
    assert model.training
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []


def test_programs_agree(tmp_path: Path) -> None:
    images = random_images(16)
    model = quantized(seeded(BranchedNet), ALL_BITS, images)
    path = tmp_path / "network.pt2"
    assert export_program(path, model, images[:1]) == path.stat().st_size
    program = torch.export.load(path).module()
    wanted = logits_of(fold_batch_norm(model, images[:1]), images)
    for n in (1, 16):
        torch.testing.assert_close(program(images[:n]), wanted[:n], rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("module", [export, latency], ids=lambda module: module.__name__)
def test_onnx_is_imported_when_it_is_needed(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    assert module.__file__ is not None
    assert set(module.__all__) <= runpy.run_path(module.__file__).keys()


class Repeated(nn.Module):
    """A layer that is called twice, and another with the same integers at another scale."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.twin = (nn.Conv2d(1, 1, 3, padding=1) for _ in range(2))
        self.twin.weight.data = 2 * self.conv.weight.data

    def forward(self, images: Tensor) -> Tensor:
        return self.twin(self.conv(torch.relu(self.conv(images)))).flatten(1)  # type: ignore[no-any-return]


def test_layers_may_be_called_twice_and_be_alike(tmp_path: Path) -> None:
    images = random_images(4)
    model = quantized(seeded(Repeated), (4,))
    export_onnx(tmp_path / "network.onnx", model, images[:1])
    got = OnnxNetwork(tmp_path / "network.onnx").logits(images)
    torch.testing.assert_close(got, logits_of(model, images), rtol=0.0, atol=1e-5)


class FixedNumber(PlainNet):
    """A network for two images."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.reshape(2, 1, 8, 8))


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    with pytest.raises(ValueError, match="cannot be traced for any number of images"):
        export_onnx(path, seeded(FixedNumber), random_images(2))
    normalized = seeded(PlainNet)
    assert isinstance(normalized, PlainNet)
    attach(normalized.fc1, 8)
    spectral_norm(normalized.fc1)
    with pytest.raises(ValueError, match="one that another parametrization changes"):
        export_onnx(path, normalized.eval(), random_images(1))
    with pytest.raises(ValueError, match="the network is TorchScript"):
        export_onnx(path, torch.jit.ScriptModule(), random_images(1))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_valid_does_not_replace_the_former(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(b"former")
    monkeypatch.setattr(export, "_translate", lambda program: onnx.ModelProto())
    with pytest.raises(onnx.checker.ValidationError):
        export_onnx(path, seeded(PlainNet), random_images(1))
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]
