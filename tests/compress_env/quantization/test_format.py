"""Files that are damaged, mislabelled or hostile: a ValueError each, soon, and little memory."""

from __future__ import annotations

import json
import pickle
import resource
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress_env.networks.models import build_model
from compress_env.quantization.activations import Range, attach_input
from compress_env.quantization.fake_quant import attach
from compress_env.quantization.format import header_bytes, read
from compress_env.quantization.packing import pack, unpack
from compress_env.task.layers import compute_layers

MISTAKE = "damaged or not a packed network|cannot build|the stored network|expected a"


@cache
def valid_file() -> bytes:
    """A quantized network with quantized inputs, zeros, norm layers and an architecture."""
    torch.manual_seed(0)
    model = build_model("vgg8", 3, (1, 8, 8)).eval()
    for name, layer in compute_layers(model).items():
        layer.weight = nn.Parameter(layer.weight.detach()[:4, :4].clone())
        layer.weight.data[0, 0] = 0
        attach(layer, 1 + len(name) % 4)
        attach_input(layer, Range(-1.0, 2.0))
    # Not a network that runs, but a state of every kind.
    del model.features[6:]  # type: ignore[union-attr, operator]
    return pack(model)


def write_file(header: Any, streams: bytes = b"") -> bytes:
    """A file whose checksum is right, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    coded = coder.compress(text) + coder.flush()
    return checked(struct.pack("<I", len(coded)) + coded + streams)


def checked(body: bytes) -> bytes:
    return b"CENV\x01" + struct.pack("<I", zlib.crc32(body)) + body


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a file, and its streams."""
    start = header_bytes(data)
    header: dict[str, Any] = json.loads(zlib.decompress(data[13:start], wbits=-15))
    return header, data[start:]


def bomb(n_bytes: int) -> bytes:
    """A valid deflate stream of so many zeros."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = coder.compress(bytes(2**20)) + coder.flush(zlib.Z_FULL_FLUSH)
    return block * (n_bytes >> 20) + coder.flush()


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, change, cut, insert, repeat or exchange bytes at random places."""
    changed, kind = bytearray(data), rng.integers(6)
    first, last = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    if kind == 0:
        changed[min(first, len(data) - 1)] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        for place in rng.integers(0, len(data), rng.integers(1, 9)).tolist():
            changed[place] = int(rng.integers(256))
    elif kind == 2:
        del changed[first:]
    elif kind == 3:
        del changed[first : first + int(rng.integers(1, 9))]
    elif kind == 4:
        changed[first:first] = rng.bytes(int(rng.integers(1, 99)))
    else:
        changed[first:last] = data[last - (last - first) // 2 : last]
    return bytes(changed)


def test_ten_thousand_mutations_are_value_errors() -> None:
    data, rng = valid_file(), np.random.default_rng(0)
    read(data)
    n_same = 0
    for _ in range(10_000):
        changed = mutate(data, rng)
        if changed == data:
            n_same += 1
            continue
        with pytest.raises(ValueError, match="damaged or not a packed network") as caught:
            read(changed)
        assert "\n" not in str(caught.value)
    assert n_same < 1000


def test_mutations_with_a_right_checksum_are_value_errors_or_other_networks() -> None:
    data, rng, n_read = valid_file(), np.random.default_rng(1), 0
    for _ in range(1500):
        try:
            contents = read(checked(mutate(data[9:], rng)))
        except ValueError as error:
            assert "damaged or not a packed network" in str(error)
        else:
            n_read += all(bool((w.integers.abs() <= 7).all()) for w in contents.weights.values())
    assert n_read > 30


def test_mutated_headers_are_value_errors_or_other_networks() -> None:
    header, streams = parts(valid_file())
    text, rng, n_read = json.dumps(header).encode(), np.random.default_rng(2), 0
    for _ in range(400):
        try:
            unpack(read(write_file(mutate(text, rng), streams)))
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            n_read += 1
    assert n_read < 400


@given(st.binary(max_size=200))
def test_random_bytes_are_value_errors(data: bytes) -> None:
    with pytest.raises(ValueError, match="damaged or not a packed network"):
        read(data)
    with pytest.raises(ValueError, match="damaged or not a packed network"):
        read(checked(data))


class Bang:
    """Would fail the test if it were unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return what unpickling would call."""
        return pytest.fail, ("executed",)


FOREIGN = {
    "nothing": b"",
    "safetensors": safetensors.torch.save({"w": torch.ones(2)}),
    "pickle": pickle.dumps(Bang()),
    "another magic": b"CENW" + bytes(40),
    "another version": b"CENV\x02" + bytes(40),
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN.keys())
def test_other_files_are_value_errors(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"starts with b'CENV'|format version 1, got 2"):
        read(data)


HUGE = 2**62
BASE: dict[str, Any] = {
    "code": "0",
    "architecture": ["lenet5", 10, [1, 32, 32]],
    "tensors": [],
    "weights": [],
    "inputs": [],
    "streams": [0, 0] * 9,
}


def with_weight(*record: Any, streams: bytes = b"") -> bytes:
    return write_file(BASE | {"weights": [["w.weight", *record]]}, streams)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a header of 2^40 bytes": lambda: checked(struct.pack("<I", 2**32 - 1) + b"x" * 20),
    "a header that is a bomb": lambda: checked(struct.pack("<I", len(bomb(2**28))) + bomb(2**28)),
    "a header that is no JSON": lambda: write_file(b"{"),
    "a header that is no UTF-8": lambda: write_file(b'{"\xff\xfe": 1}'),
    "a header that is no object": lambda: write_file([]),
    "a header without entries": lambda: write_file({}),
    "deep nesting": lambda: write_file(b"[" * 500_000),
    "deep nesting of shapes": lambda: write_file(
        BASE | {"tensors": json.loads("[" * 99 + "]" * 99)}
    ),
    "long numbers": lambda: write_file(b'{"tensors": ' + b"9" * 10_000 + b"}"),
    "a huge tensor": lambda: write_file(BASE | {"tensors": [["t", [HUGE]]]}),
    "a tensor of huge product": lambda: write_file(BASE | {"tensors": [["t", [2**20] * 5]]}),
    "many large tensors": lambda: write_file(
        BASE | {"tensors": [[f"t{i}", [2**21]] for i in range(1000)]}
    ),
    "many dimensions": lambda: write_file(BASE | {"tensors": [["t", [2**24] * 100_000]]}),
    "many tensors": lambda: write_file(BASE | {"tensors": [[f"t{i}", [1]] for i in range(40_000)]}),
    "a long name, twice": lambda: write_file(BASE | {"tensors": [["t" * 400_000, [1]]] * 2}),
    "a negative size": lambda: write_file(BASE | {"tensors": [["t", [-1, -1]]]}),
    "a size that is no integer": lambda: write_file(BASE | {"tensors": [["t", [1.0]]]}),
    "a size that is true": lambda: write_file(BASE | {"tensors": [["t", [True]]]}),
    "tensors without values": lambda: write_file(BASE | {"tensors": [["t", [1000]]]}),
    "an unknown type": lambda: write_file(BASE | {"tensors": [["t", [1], "object"]]}),
    "a type that is a list": lambda: write_file(BASE | {"tensors": [["t", [1], []]]}),
    "a name that is a number": lambda: write_file(BASE | {"tensors": [[1, [1]]]}),
    "a name of control characters": lambda: write_file(BASE | {"tensors": [["\x1b[2J", [0]]]}),
    "a name twice": lambda: write_file(BASE | {"tensors": [["t", [0]], ["t", [0]]]}),
    "a name of a weight and a tensor": lambda: write_file(
        BASE | {"tensors": [["w.weight", [0]]], "weights": [["w.weight", [1], 1, 1, 0, [0, 1]]]},
        b"\x01",
    ),
    "an input twice": lambda: write_file(BASE | {"inputs": [["a", 0], ["a", 0]]}),
    "a zero point of 256": lambda: write_file(BASE | {"inputs": [["a", 256]]}),
    "no bits": lambda: with_weight([1, 8], 0, 1, 0, [0, 1], streams=b"\x01"),
    "nine bits": lambda: with_weight([1, 8], 9, 1, 0, [0, 9], streams=bytes(9)),
    "bits that are NaN": lambda: with_weight([1, 8], float("nan"), 1, 0, [0, 1], streams=b"\x01"),
    "no dimensions": lambda: with_weight([], 1, 1, 0, [0, 1], streams=b"\x01"),
    "no channels": lambda: with_weight([0, 2**21], 1, 1, 0, [0, 0]),
    "a huge weight": lambda: with_weight([2**31, 2**31], 1, 1, 0, [0, 1], streams=b"\x01"),
    "a weight of few bytes": lambda: with_weight([1000, 1000], 1, 1, 0, [0, 1], streams=b"\x01"),
    "an unknown index": lambda: with_weight([1, 8], 1, 6, 0, [0, 1], streams=b"\x01"),
    "an unknown code": lambda: with_weight([1, 8], 1, 1, 0, [4, 1], streams=b"\x01"),
    "a negative index": lambda: with_weight([1, 8], 1, -1, 0, [0, 1], streams=b"\x01"),
    "a stream too few": lambda: with_weight([1, 8], 2, 2, 0, [0, 1], streams=b"\x01"),
    "a stream of negative length": lambda: with_weight([1, 8], 1, 1, 0, [0, -1]),
    "a stream beyond the end": lambda: with_weight([1, 8], 1, 1, 0, [0, 2**40]),
    "half a stream": lambda: with_weight([1, 8], 1, 1, 0, [0]),
    "huge runs": lambda: with_weight([1, 8], 2, 3, 2**61, [2, 1, 0, 0], streams=b"\x01"),
    "a bomb as weight": lambda: with_weight(
        [1024, 1024], 8, 1, 0, [2, len(bomb(2**30))], streams=bomb(2**30)
    ),
    "a bomb as runs": lambda: with_weight(
        [1, 8], 8, 3, 8, [2, len(bomb(2**28)), 0, 0], streams=bomb(2**28)
    ),
    "a bomb as floats": lambda: write_file(
        BASE | {"streams": [2, len(bomb(2**28)), *[0, 0] * 8]}, bomb(2**28)
    ),
    "bytes left over": lambda: write_file(BASE, b"x"),
    "streams left over": lambda: write_file(BASE | {"streams": [0, 0] * 10}),
    "no scales": lambda: with_weight([1, 8], 1, 1, 0, [0, 1], streams=b"\x01"),
    "an unknown architecture": lambda: write_file(BASE | {"architecture": ["x", 10, [1, 32, 32]]}),
    "an architecture that is code": lambda: write_file(
        BASE | {"architecture": ["torchvision/__init__", 10, [3, 32, 32]]}
    ),
    "an architecture far away": lambda: write_file(
        BASE | {"architecture": ["timm/hf-hub:a/b", 10, [3, 32, 32]]}
    ),
    "10^12 classes": lambda: write_file(BASE | {"architecture": ["lenet5", 10**12, [1, 32, 32]]}),
    "a huge image": lambda: write_file(BASE | {"architecture": ["cnn4", 10, [1, 2**24, 2**24]]}),
    "an entry twice": lambda: write_file(json.dumps(BASE)[:-1].encode() + b', "tensors": []}'),
    "another name for nothing": lambda: write_file(BASE | {"shared": [["a", "b"]]}),
    "a name that stands for itself": lambda: write_file(
        BASE | {"tensors": [["a", [0]]], "shared": [["a", "a"]]}
    ),
    "another name twice": lambda: write_file(
        BASE | {"tensors": [["a", [0]]], "shared": [["b", "a"], ["b", "a"]]}
    ),
    "more names than memory": lambda: write_file(
        BASE | {"tensors": [["a", [2**21]]], "shared": [[f"b{i}", "a"] for i in range(99)]}
    ),
    "names that are a number": lambda: write_file(BASE | {"shared": 3}),
    "no image": lambda: write_file(BASE | {"architecture": ["lenet5", 10, []]}),
    "another architecture": lambda: write_file(BASE | {"architecture": ["cnn4", 10, [1, 32, 32]]}),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_value_errors_soon_and_in_little_memory(
    make: Callable[[], bytes],
) -> None:
    data = make()
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=MISTAKE) as caught:
            unpack(read(data))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500
    assert peak < 2**27 + 100 * len(data)
    # Tensors are not traced.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18
    assert time.process_time() - start < 5


SCALES = {"nan": float("nan"), "infinite": float("inf"), "zero": 0.0, "negative": -1.0}


@pytest.mark.parametrize("where", ["weight", "input"])
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
def test_scales_that_are_none_are_value_errors(scale: float, where: str) -> None:
    values = struct.pack("<f", scale)
    planes = [1 if where == "input" else 0] * 4 + [1 if where == "weight" else 0] * 4
    header = BASE | {"streams": [n for size in planes for n in (0, size)] + [0, 0]}
    header |= {"inputs": [["conv1", 0]]} if where == "input" else {}
    header |= {"weights": [["w", [1, 8], 1, 1, 0, [0, 1]]]} if where == "weight" else {}
    with pytest.raises(ValueError, match="expected positive, finite scales"):
        read(write_file(header, (b"\x01" if where == "weight" else b"") + values))


def test_hand_made_files_are_read() -> None:
    # The helpers above make files that are wrong in one way only.
    header = BASE | {
        "weights": [["w", [1, 8], 1, 1, 0, [0, 1]]],
        "streams": [0, 0] * 4 + [0, 1] * 4 + [0, 0],
    }
    contents = read(write_file(header, b"\x05" + struct.pack("<f", 0.5)))
    assert contents.weights["w"].integers.tolist() == [[1, -1, 1, -1, -1, -1, -1, -1]]
    assert contents.weights["w"].scale.tolist() == [0.5]
    assert contents.architecture == ("lenet5", 10, (1, 32, 32))


def test_weights_and_inputs_of_what_is_no_layer_are_value_errors() -> None:
    header = BASE | {
        "weights": [["0.weight", [8], 1, 1, 0, [0, 1]]],
        "streams": [0, 0] * 4 + [0, 8] * 4 + [0, 0],
    }
    scales = np.ones(8, np.float32).view(np.uint8).reshape(8, 4).T.tobytes()
    with pytest.raises(ValueError, match="expected a Conv2d or Linear to quantize at '0'"):
        unpack(read(write_file(header, b"\x05" + scales)), nn.Sequential(nn.PReLU(8)))
    header = BASE | {"inputs": [["a.b", 7]], "streams": [0, 1] * 4 + [0, 0] * 5}
    with pytest.raises(ValueError, match=r"expected a Conv2d or Linear to quantize at 'a\.b'"):
        unpack(read(write_file(header, struct.pack("<f", 0.5))), nn.Sequential(nn.ReLU()))
