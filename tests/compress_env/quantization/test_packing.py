"""Saving and loading: exact round trips, sizes, architectures, atomic writing."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import compress_env
from compress_env.networks.models import Architecture, build_model
from compress_env.quantization.activations import Range, attach_input, input_quantizer_of
from compress_env.quantization.fake_quant import attach, bake, bits_of, float_weight, quantizer_of
from compress_env.quantization.format import read
from compress_env.quantization.packing import load, pack, save, unpack
from compress_env.task.layers import compute_layers
from tests.compress_env.quantization.fakes import DepthwiseNet, quantized_net
from tests.fakes import make_data, seeded

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def bits_of_floats(tensor: Tensor) -> list[int]:
    """The exact bit patterns, which tell 0.0 from -0.0."""
    patterns: list[int] = tensor.detach().contiguous().view(torch.int32).flatten().tolist()
    return patterns


def assert_same_when_baked(first: nn.Module, second: nn.Module) -> None:
    first, second = copy.deepcopy(first), copy.deepcopy(second)
    bake(first)
    bake(second)
    state, expected = first.state_dict(), second.state_dict()
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype and state[name].shape == tensor.shape
        if tensor.is_floating_point():
            assert bits_of_floats(state[name]) == bits_of_floats(tensor), name
        else:
            assert torch.equal(state[name], tensor)


@pytest.mark.parametrize("zeros", [False, True], ids=["dense", "with zeros"])
@pytest.mark.parametrize("bits", [(1, 2, 3), (4, 1, 5), (6, 7, 1), (8, 8, 8)], ids=str)
def test_a_file_gives_back_the_network_bit_for_bit(
    tmp_path: Path, bits: tuple[int, int, int], zeros: bool
) -> None:
    model = quantized_net(bits, zeros)
    path = tmp_path / "net.cenv"
    assert save(path, model) == os.path.getsize(path)
    again = load(path, DepthwiseNet())
    assert_same_when_baked(again, model)
    assert torch.equal(again(IMAGES), model(IMAGES))
    layers, loaded = compute_layers(model), compute_layers(again)
    assert [bits_of(loaded[name]) for name in layers] == [bits_of(x) for x in layers.values()]
    assert pack(again) == path.read_bytes()


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), n_bits=st.integers(1, 8), share=st.floats(0.0, 1.0))
def test_any_weights_come_back(seed: int, n_bits: int, share: float) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(23, 7)
    layer.weight.data[torch.rand(7, 23) < share] = 0
    layer.weight.data[0] *= 100
    attach(layer, n_bits)
    again = unpack(read(pack(layer)), nn.Linear(23, 7))
    assert_same_when_baked(again, layer)
    assert pack(again) == pack(layer)


def test_a_named_network_needs_no_architecture(tmp_path: Path) -> None:
    model = build_model("mobilenet_v2_narrow", 5, (1, 16, 16)).eval()
    for name, layer in compute_layers(model).items():
        attach(layer, 1 + len(name) % 8)
    compress_env.save(tmp_path / "net.cenv", copy.deepcopy(model))
    again = compress_env.load(tmp_path / "net.cenv")
    images = torch.randn(3, 1, 16, 16)
    assert torch.equal(again(images), model(images))
    assert again.architecture == Architecture("mobilenet_v2_narrow", 5, (1, 16, 16))
    assert not again.training
    assert all(p.requires_grad and not p.is_meta for p in again.parameters())
    assert pack(again) == pack(model)


def test_another_class_needs_the_architecture(tmp_path: Path) -> None:
    save(tmp_path / "net.cenv", quantized_net((1, 2, 3)))
    with pytest.raises(ValueError, match=r"net\.cenv: .* give the unpruned network as model="):
        load(tmp_path / "net.cenv")
    with pytest.raises(ValueError, match=r"net\.cenv: the stored network has, but"):
        load(tmp_path / "net.cenv", nn.Linear(3, 3))


def test_quantized_inputs_come_back(tmp_path: Path) -> None:
    model = quantized_net((4, 8, 8))
    attach_input(model.conv, Range(-2.1, 3.3))
    attach_input(model.head, Range(0.0, 0.7))
    save(tmp_path / "net.cenv", model)
    again = load(tmp_path / "net.cenv", DepthwiseNet())
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert isinstance(again, DepthwiseNet) and input_quantizer_of(again.depthwise) is None
    loaded = input_quantizer_of(again.conv)
    assert loaded is not None and loaded.zero_point.dtype == torch.int32
    assert set(again.state_dict()) == set(model.state_dict())
    assert pack(again) == pack(model)


def test_a_loaded_network_can_be_trained_and_keeps_its_pruned_weights(tmp_path: Path) -> None:
    layer = nn.Linear(400, 10)
    layer.weight.data[:, ::2] = 0
    attach(layer, 2)
    save(tmp_path / "net.cenv", layer)
    again = load(tmp_path / "net.cenv", nn.Linear(400, 10))
    assert isinstance(again, nn.Linear)
    before, quantizer = again.weight.detach().clone(), quantizer_of(again)
    # Weights that are kept and happen to be at level 0 are not among the zeros of pruning.
    kept = float_weight(again) != 0
    assert torch.equal(kept, float_weight(layer) != 0)
    assert (again.weight[kept] == 0).any()
    assert quantizer is not None
    optimizer = torch.optim.SGD(again.parameters(), lr=float(quantizer.scale.mean()))
    again(torch.ones(1, 400)).sum().backward()
    optimizer.step()
    assert not torch.equal(again.weight, before)


def test_saving_leaves_the_model_quantized(tmp_path: Path) -> None:
    model = quantized_net((2, 3, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save(tmp_path / "net.cenv", model)
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_float_networks_and_bare_layers_round_trip(tmp_path: Path) -> None:
    model = DepthwiseNet().eval()
    model.conv.bias.data[:2] = torch.tensor([float("nan"), -0.0])  # type: ignore[union-attr]
    save(tmp_path / "net.cenv", model)
    assert_same_when_baked(load(tmp_path / "net.cenv", DepthwiseNet()), model)
    layer = nn.Linear(5, 3)
    save(tmp_path / "layer.cenv", layer)
    assert_same_when_baked(load(tmp_path / "layer.cenv", nn.Linear(5, 3)), layer)


class Buffers(nn.Module):
    """Buffers of many types."""

    def __init__(self, fill: int) -> None:
        super().__init__()
        for dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
            values = torch.arange(-3, 4).mul(fill).to(dtype).reshape(7, 1)
            self.register_buffer(str(dtype).removeprefix("torch."), values)
        self.register_buffer("empty", torch.empty(0, 5))


def test_buffers_of_every_type_come_back() -> None:
    again = unpack(read(pack(Buffers(40))), Buffers(0))
    for name, tensor in Buffers(40).state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    with pytest.raises(ValueError, match="real tensors"):
        pack(nn.Linear(2, 2, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_shared_weights_are_stored_as_float32(dtype: torch.dtype) -> None:
    first, second = nn.Linear(3, 3, dtype=dtype), nn.Linear(3, 3, dtype=dtype)
    second.weight = first.weight
    tensors = read(pack(nn.Sequential(first, second))).tensors
    assert tensors["0.weight"].dtype == torch.float32
    assert torch.equal(tensors["0.weight"], tensors["1.weight"])
    assert torch.equal(tensors["0.weight"], first.weight.float())


def test_a_layer_under_two_names_comes_back() -> None:
    layer = nn.Linear(4, 4)
    attach(layer, 3)
    twice, fresh = nn.Sequential(layer, nn.ReLU(), layer), nn.Linear(4, 4)
    again = unpack(read(pack(twice)), nn.Sequential(fresh, nn.ReLU(), fresh))
    assert torch.equal(again(torch.eye(4)), twice(torch.eye(4)))


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_weight_takes_less_than_its_bits_and_two_bytes_a_scale(bits: int) -> None:
    layer = nn.Linear(800, 10, bias=False)
    nn.init.normal_(layer.weight)
    attach(layer, bits)
    payload = 800 * 10 * bits // 8 + 10 * 2
    assert len(pack(layer)) <= payload * (1.0 if bits > 1 else 1.1) + 110


def test_a_lenet_of_five_thousand_weights_takes_a_few_hundred_bytes_more() -> None:
    # What a file holds besides the weights: a header, 71 biases and 71 scales.
    model = nn.Sequential(
        nn.Conv2d(1, 3, 5), nn.Conv2d(3, 6, 5), nn.Linear(60, 30), nn.Linear(30, 22),
        nn.Linear(22, 10),
    )  # fmt: skip
    for layer in compute_layers(model).values():
        attach(layer, 4)
    contents = read(pack(model))
    streams = sum(packed.encoded.n_bytes for packed in contents.packed.values())
    assert len(pack(model)) - streams <= 71 * 6 + 220


def test_equal_models_give_equal_files() -> None:
    assert pack(quantized_net((1, 2, 3))) == pack(quantized_net((1, 2, 3)))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.cenv"
    save(path, nn.Linear(2, 2))
    before = path.read_bytes()

    def fail(source: Path, target: Path) -> None:
        raise OSError(f"cannot move {source.name} to {target.name}")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="cannot move"):
        save(path, nn.Linear(3, 3))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing.cenv")
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "no" / "folder", nn.Linear(1, 1))


def test_a_network_that_could_not_be_read_again_is_not_written() -> None:
    layer = nn.Linear(2100, 2100, bias=False)
    nn.init.zeros_(layer.weight)
    attach(layer, 1, torch.ones(2100))
    with pytest.raises(ValueError, match=r"512 for each byte of the file\), got"):
        pack(layer)


def test_a_quantized_network_cannot_be_loaded_into(tmp_path: Path) -> None:
    layer = nn.Conv2d(1, 2, 3)
    attach(layer, 4)
    save(tmp_path / "net.cenv", layer)
    with pytest.raises(ValueError, match="expected an unquantized network as model="):
        load(tmp_path / "net.cenv", layer)


def test_a_pruned_instance_norm_is_loaded(tmp_path: Path) -> None:
    pruned = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True))
    save(tmp_path / "net.cenv", pruned)
    whole = nn.Sequential(nn.Conv2d(1, 8, 3), nn.InstanceNorm2d(8, affine=True))
    again, images = load(tmp_path / "net.cenv", whole), torch.randn(2, 1, 6, 6)
    assert torch.equal(again(images), pruned.eval()(images))


class Twice(nn.Module):
    """One convolution under two names, and a weight that two layers share."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3)
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.again = self.body
        self.fc = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (b, 3)."""
        return self.fc(self.again(self.body(self.stem(images))).mean((2, 3)))  # type: ignore[no-any-return]


def test_what_has_two_names_is_stored_once(tmp_path: Path) -> None:
    model, images = seeded(Twice), torch.randn(2, 1, 8, 8)
    single = nn.Sequential(model.stem, model.body, model.fc)  # type: ignore[arg-type]
    for bits in (None, 4):
        if bits:
            attach(model.body, bits)  # type: ignore[arg-type]
        size = save(tmp_path / "net.cenv", model)
        assert size < len(pack(single)) + 100
        again = load(tmp_path / "net.cenv", Twice())
        assert torch.equal(again(images), model(images))
        assert again.body is again.again
        contents = read(pack(model))
        assert set(contents.tensors) | set(contents.weights) >= {"body.weight", "again.weight"}


def test_the_bound_of_a_budget_holds_for_what_has_two_names(tmp_path: Path) -> None:
    env = compress_env.QuantizationEnv(seeded(Twice), make_data(), size_budget=0.5, store=None)
    env.reset()
    for _ in env.walk:
        _, _, _, _, info = env.step(np.ones(1, np.float32))
    size = save(tmp_path / "net.cenv", env.compressed_model())
    assert size == info["size_bytes"] <= env.budget_bytes


class Extras(nn.Module):
    """Layers with buffers of their own."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.conv.register_buffer("mask", torch.ones(4, 1, 3, 3))
        self.conv.register_buffer("codes", torch.arange(9))
        self.norm = nn.BatchNorm2d(4)
        self.norm.register_buffer("limits", torch.ones(2))
        self.fc = nn.Linear(4, 3)
        self.fc.register_buffer("n", torch.tensor(3))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (b, 3)."""
        return self.fc(self.norm(self.conv(images)).mean((2, 3)))  # type: ignore[no-any-return]


def _normed() -> nn.Module:
    layers = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    nn.utils.parametrizations.spectral_norm(layers[1])
    return nn.Sequential(*layers)


@pytest.mark.parametrize("build", [Extras, _normed])
def test_layers_with_buffers_of_their_own_come_back(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model, images = seeded(build), torch.randn(2, 1, 8, 8)
    save(tmp_path / "net.cenv", model)
    assert torch.equal(load(tmp_path / "net.cenv", build())(images), model(images))


def test_versions_of_modules_survive_a_file(tmp_path: Path) -> None:
    model = build_model("torchvision/mnasnet0_5", 4, (3, 32, 32)).eval()
    for layer in compute_layers(model).values():
        attach(layer, 6)
    save(tmp_path / "net.cenv", model)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(load(tmp_path / "net.cenv")(images), model(images))


def _odd_types() -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_buffer("odd", torch.ones(2, dtype=torch.uint16))
    return model


def _many_dims() -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_buffer("deep", torch.ones([1] * 12))
    return model


def _another_head() -> nn.Module:
    model = build_model("lenet5", 10, (1, 32, 32))
    model.extra = nn.Linear(2, 2)
    return model


@pytest.mark.parametrize("build", [_odd_types, _many_dims, _another_head])
def test_what_could_not_be_read_again_is_not_written(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="the network could not be read again: ") as caught:
        save(tmp_path / "net.cenv", build())
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_network_that_left_its_architecture_is_saved_without_its_name(tmp_path: Path) -> None:
    model: Any = _another_head()
    with pytest.raises(ValueError, match="no longer 'lenet5', delete its attribute"):
        save(tmp_path / "net.cenv", model)
    del model.architecture
    save(tmp_path / "net.cenv", model)
    again: Any = load(tmp_path / "net.cenv", _another_head())
    assert torch.equal(again.extra.weight, model.extra.weight)
