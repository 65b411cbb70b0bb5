"""Packed files: exact round trips, sizes, damage, and loading into an architecture."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress_env.quantization.fake_quant import attach, bake
from compress_env.quantization.packing import (
    _pack_bits,
    _unpack_bits,
    load_into,
    load_packed,
    save_packed,
)


class DepthwiseNet(nn.Module):
    """A convolution, a depthwise one (two outputs a channel), batch-norms and a linear layer."""

    def __init__(self, width: int = 6, hidden: int = 12) -> None:
        """Build the layers."""
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, hidden, 3, groups=width, bias=False)
        self.bare_norm = nn.BatchNorm2d(hidden, affine=False)
        self.head = nn.Linear(hidden, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        hidden = self.norm(self.conv(images)).relu()
        hidden = self.bare_norm(self.depthwise(hidden)).relu()
        logits: Tensor = self.head(hidden.mean(dim=(2, 3)))
        return logits


def quantized_net(bits: tuple[int, int, int], zeros: bool = False) -> DepthwiseNet:
    torch.manual_seed(0)
    model = DepthwiseNet()
    model(torch.randn(4, 3, 8, 8))
    for name, n_bits in zip(("conv", "depthwise", "head"), bits, strict=True):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        if zeros:
            layer.weight.data.flatten()[::3] = 0
            layer.weight.data[0] = 0
        attach(layer, n_bits)
    return model.eval()


def bits_of_floats(tensor: Tensor) -> list[int]:
    """The exact bit patterns, which tell 0.0 from -0.0."""
    patterns: list[int] = tensor.detach().contiguous().view(torch.int32).flatten().tolist()
    return patterns


def assert_same_state(state: dict[str, Tensor], model: nn.Module) -> None:
    expected = model.state_dict()
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype and state[name].shape == tensor.shape
        if tensor.is_floating_point():
            assert bits_of_floats(state[name]) == bits_of_floats(tensor), name
        else:
            assert torch.equal(state[name], tensor)


@pytest.mark.parametrize("zeros", [False, True], ids=["dense", "with zeros"])
@pytest.mark.parametrize("bits", [(1, 2, 3), (4, 1, 5), (6, 7, 1), (8, 8, 8)], ids=str)
def test_a_file_gives_back_the_baked_model_bit_for_bit(
    tmp_path: Path, bits: tuple[int, int, int], zeros: bool
) -> None:
    model = quantized_net(bits, zeros)
    n_bytes = save_packed(tmp_path / "net.safetensors", model)
    assert n_bytes == os.path.getsize(tmp_path / "net.safetensors")
    baked = copy.deepcopy(model)
    bake(baked)
    state = load_packed(tmp_path / "net.safetensors")
    assert_same_state(state, baked)
    fresh = DepthwiseNet()
    load_into(fresh, state)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(fresh.eval()(images), model(images))


def test_saving_leaves_the_model_quantized(tmp_path: Path) -> None:
    model = quantized_net((2, 3, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_packed(tmp_path / "net", model)
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_plain_models_and_bare_layers_round_trip(tmp_path: Path) -> None:
    plain = DepthwiseNet()
    save_packed(tmp_path / "plain", plain)
    assert_same_state(load_packed(tmp_path / "plain"), plain)
    layer = nn.Linear(5, 3)
    attach(layer, 3)
    save_packed(tmp_path / "layer", layer)
    bake(layer)
    assert_same_state(load_packed(tmp_path / "layer"), layer)


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_weight_takes_its_bits_on_disk(tmp_path: Path, bits: int) -> None:
    layer = nn.Linear(800, 10, bias=False)
    attach(layer, bits)
    n_bytes = save_packed(tmp_path / "net", layer)
    payload = 800 * 10 * bits // 8 + 10 * 4
    assert payload < n_bytes < payload + 400


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    save_packed(tmp_path / "a", quantized_net((1, 2, 3)))
    save_packed(tmp_path / "b", quantized_net((1, 2, 3)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@given(bits=st.integers(1, 8), data=st.data())
@settings(max_examples=100, deadline=None)
def test_bit_packing_is_exact(bits: int, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    values = np.array(drawn, dtype=np.uint8)
    packed = _pack_bits(values, bits)
    assert packed.nbytes == -(-len(values) * bits // 8)
    assert _unpack_bits(packed, bits, len(values)).tolist() == drawn


def test_packing_puts_the_lowest_bit_first() -> None:
    values = np.array([0b001, 0b110, 0b101], dtype=np.uint8)
    assert _pack_bits(values, 3).tolist() == [0b01_110_001, 0b1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shared_weights_are_stored_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    first, second = nn.Linear(3, 3, dtype=dtype), nn.Linear(3, 3, dtype=dtype)
    second.weight = first.weight
    save_packed(tmp_path / "net", nn.Sequential(first, second))
    state = load_packed(tmp_path / "net")
    assert state["0.weight"].dtype == torch.float32
    assert torch.equal(state["0.weight"], state["1.weight"])
    assert torch.equal(state["0.weight"], first.weight.float())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net"
    save_packed(path, nn.Linear(2, 2))
    before = path.read_bytes()

    def fail(source: Path, target: Path) -> None:
        raise OSError(f"cannot move {source.name} to {target.name}")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="cannot move"):
        save_packed(path, nn.Linear(3, 3))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_packed(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        save_packed(tmp_path / "no" / "folder", nn.Linear(1, 1))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999], ids=str)
def test_a_truncated_file_is_a_value_error(tmp_path: Path, share: float) -> None:
    path = tmp_path / "net"
    save_packed(path, quantized_net((1, 2, 3)))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match="damaged or not a packed network") as caught:
        load_packed(path)
    assert "\n" not in str(caught.value)


def test_foreign_files_are_value_errors(tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.write_bytes(b"PK\x03\x04 not this format at all")
    with pytest.raises(ValueError, match="damaged or not a packed network"):
        load_packed(path)
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="no 'compress_env' entry"):
        load_packed(path)


HEADERS: dict[str, object] = {
    "not json": "{",
    "not an object": [],
    "version": {"version": 2, "weights": {}},
    "no weights": {"version": 1},
    "no bits": {"version": 1, "weights": {"w": {"shape": [2, 8]}}},
    "bits": {"version": 1, "weights": {"w": {"bits": 9, "shape": [2, 8]}}},
    "shape": {"version": 1, "weights": {"w": {"bits": 4, "shape": [2, 9]}}},
    "negative": {"version": 1, "weights": {"w": {"bits": 4, "shape": [2, -8]}}},
    "infinite": {"version": 1, "weights": {"w": {"bits": float("inf"), "shape": [2, 8]}}},
    "no shape": {"version": 1, "weights": {"w": {"bits": 4, "shape": []}}},
    "channels": {"version": 1, "weights": {"w": {"bits": 4, "shape": [4, 4]}}},
    "no tensor": {"version": 1, "weights": {"v": {"bits": 4, "shape": [2, 8]}}},
    "integers": {"version": 1, "weights": {"w": {"bits": 4, "shape": [2, 8]}}},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_damaged_headers_are_value_errors(tmp_path: Path, header: object) -> None:
    text = header if isinstance(header, str) else json.dumps(header)
    tensors = {"w": torch.full((8,), 255, dtype=torch.uint8), "w.scale": torch.ones(2)}
    safetensors.torch.save_file(tensors, tmp_path / "net", {"compress_env": text})
    with pytest.raises(ValueError, match="damaged or not a packed network"):
        load_packed(tmp_path / "net")


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_random_bytes_are_value_errors(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("random") / "net"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged or not a packed network"):
        load_packed(path)


def test_load_into_shrinks_the_architecture() -> None:
    small = DepthwiseNet(width=4, hidden=8)
    small(torch.randn(4, 3, 8, 8))
    model = DepthwiseNet()
    model.conv.weight.requires_grad_(False)
    load_into(model, small.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.eval()(images), small.eval()(images))
    assert (model.conv.out_channels, model.norm.num_features) == (4, 4)
    depthwise = model.depthwise
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (4, 8, 4)
    assert (model.bare_norm.num_features, model.head.in_features) == (8, 8)
    assert not model.conv.weight.requires_grad and model.head.weight.requires_grad


def test_load_into_keeps_the_groups_of_grouped_convolutions() -> None:
    model = nn.Conv2d(8, 8, 3, groups=2)
    small = nn.Conv2d(4, 6, 3, groups=2)
    load_into(model, small.state_dict())
    assert (model.in_channels, model.out_channels, model.groups) == (4, 6, 2)
    images = torch.randn(1, 4, 5, 5)
    assert torch.equal(model(images), small(images))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("conv.weight", (7, 3, 3, 3), r"conv\.weight: .*\(6, 3, 3, 3\).*got \(7, 3, 3, 3\)"),
        ("conv.weight", (6, 3, 5, 5), r"conv\.weight: "),
        ("conv.weight", (6, 3, 3), r"conv\.weight: "),
        ("conv.bias", (5,), r"conv\.(weight|bias): "),
        ("norm.running_mean", (5,), r"norm\.\w+: "),
        ("norm.num_batches_tracked", (1,), r"norm\.\w+: "),
        ("depthwise.weight", (7, 1, 3, 3), r"depthwise\.weight: "),
        ("depthwise.weight", (0, 1, 3, 3), r"depthwise\.weight: "),
        ("head.extra", (1,), "has, but the model does not, 'head.extra'"),
    ],
    ids=["wider", "kernel", "rank", "bias", "norm", "scalar", "groups", "empty", "left over"],
)
def test_load_into_names_what_does_not_fit(name: str, shape: tuple[int, ...], message: str) -> None:
    model = DepthwiseNet()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state = {**DepthwiseNet().state_dict(), name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=message):
        load_into(model, state)
    after = model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_load_into_takes_the_state_of_a_quantized_model() -> None:
    model, other = quantized_net((2, 3, 4)), quantized_net((2, 3, 4))
    nn.init.zeros_(model.norm.weight)
    load_into(model, other.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(images), other(images))


def test_load_into_names_what_is_missing() -> None:
    state = DepthwiseNet().state_dict()
    del state["head.bias"]
    with pytest.raises(ValueError, match=r"lacks 'head\.bias'"):
        load_into(DepthwiseNet(), state)
