"""The packed file (suffix ``.cenv``): what a network consists of as bytes, and back.

    magic "CENV" | format version, 1 byte | CRC-32 of the rest, 4 bytes | length of the header,
    4 bytes | header, JSON behind deflate | streams

Numbers are little endian. The header names every tensor in the order of the state dict and says
how each stream is coded (`compress_env.quantization.coding`). Quantized weights have streams of
their own. All float32 values are one sequence, all scales another, of whose bytes the first, the
second, the third and the fourth of each number are a stream each: the exponents take fewer bits
than the rest, and scales have two bytes that are zero. Integer tensors are one stream of bytes.

Reading executes nothing, and allocates a small multiple of :func:`max_tensor_bytes` at most.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_env.layers import FLOAT_BYTES
from compress_env.models import Architecture
from compress_env.quantization.coding import (
    CODES,
    INDEXES,
    EncodedIntegers,
    Stream,
    decode_integers,
    decode_symbols,
    deflate,
    encode_integers,
    encode_symbols,
    inflate,
)
from compress_env.quantization.fake_quant import MAX_BITS

__all__ = [
    "FORMAT_VERSION",
    "Contents",
    "InputLevels",
    "PackedWeight",
    "QuantizedWeight",
    "header_bytes",
    "max_tensor_bytes",
    "read",
    "write",
]

FORMAT_VERSION = 1
_MAGIC = b"CENV"
_PREFIX = struct.Struct("<4sBII")
_CHECKED_FROM = 9  # the CRC covers what follows it
_MAX_HEADER_BYTES = 2**20
_MAX_DIMS = 8
_MAX_TENSORS = 10_000  # of either kind; a ResNet-152 has 932
_NOTHING = np.empty(0, np.uint8)
_INTEGERS = {
    name: getattr(torch, name) for name in ("bool", "uint8", "int8", "int16", "int32", "int64")
}


class QuantizedWeight(NamedTuple):
    """A weight as integers."""

    bits: int
    """Bits per integer, 1..8."""
    integers: Tensor
    """Integers in -Q..Q, shape (N, ...), int8."""
    scale: Tensor
    """Scale per output channel, shape (N,), float32, positive."""
    kept: Tensor
    """Which integers are not pruned, shape (N, ...), bool; from a file: not known to be."""


class InputLevels(NamedTuple):
    """The levels that a layer's input is rounded to, see `activations.InputQuantizer`."""

    scale: float
    """Width of a level, positive, a number of float32."""
    zero_point: int
    """Number of the level that stands for 0, 0..255."""


class PackedWeight(NamedTuple):
    """How a file holds a quantized weight."""

    shape: tuple[int, ...]
    """Shape, (N, ...)."""
    bits: int
    """Bits per integer, 1..8."""
    encoded: EncodedIntegers
    """The integers as bytes."""


class Contents(NamedTuple):
    """What a packed file says."""

    architecture: Architecture | None
    """What `build_model` makes the unpruned network from, None for a class of the user's own."""
    tensors: dict[str, Tensor]
    """Float32 and integer tensors by their name in the state dict of the baked network."""
    weights: dict[str, QuantizedWeight]
    """Quantized weights by that name."""
    inputs: dict[str, InputLevels]
    """Levels of quantized inputs by the dotted name of the layer."""
    packed: dict[str, PackedWeight]
    """How the quantized weights are held; :func:`write` makes this itself."""


def max_tensor_bytes(n_bytes: int) -> int:
    """Return how many bytes all tensors of a file of that many bytes may have in memory.

    Anything larger is refused, written or read: 16 MiB, and 512 bytes for each byte, which only a
    large network that is nearly all zeros can exceed. Weights count as float32.
    """
    return max(2**24, 512 * n_bytes)


def write(contents: Contents) -> bytes:
    """Return the bytes of a packed file; equal contents give equal bytes.

    Args:
        contents: What is to be written.

    Raises:
        ValueError: If it is more than may be read again.
    """
    packed = {name: _pack(weight) for name, weight in contents.weights.items()}
    floats = [t for t in contents.tensors.values() if t.is_floating_point()]
    scales = [weight.scale for weight in contents.weights.values()]
    input_scales = torch.tensor([levels.scale for levels in contents.inputs.values()])
    integers = [t for t in contents.tensors.values() if not t.is_floating_point()]
    others = [
        *_encode_floats([*floats, input_scales]),
        *_encode_floats(scales),
        encode_symbols(np.concatenate([_NOTHING, *map(_bytes_of, integers)]), 256),
    ]
    architecture = contents.architecture
    header = {
        "code": version("compress-env"),
        "architecture": architecture and [*architecture],
        "tensors": [_tensor_record(name, t) for name, t in contents.tensors.items()],
        "weights": [_weight_record(name, weight) for name, weight in packed.items()],
        "inputs": [[name, levels.zero_point] for name, levels in contents.inputs.items()],
        "streams": [number for stream in others for number in _stream_record(stream)],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    coded = deflate(text, (zlib.Z_DEFAULT_STRATEGY,))
    streams = [stream.data for weight in packed.values() for stream in weight.encoded.streams]
    body = struct.pack("<I", len(coded)) + b"".join([coded, *streams, *(s.data for s in others)])
    needed = sum(t.nbytes for t in contents.tensors.values())
    needed += sum(FLOAT_BYTES * w.integers.numel() for w in contents.weights.values())
    allowed = max_tensor_bytes(_CHECKED_FROM + len(body))
    if max(len(contents.tensors), len(packed)) > _MAX_TENSORS:
        raise ValueError(f"expected at most {_MAX_TENSORS} tensors of either kind, got more")
    if len(text) > _MAX_HEADER_BYTES or needed > allowed:
        raise ValueError(
            f"expected a header of at most {_MAX_HEADER_BYTES} bytes and tensors of at most "
            f"{allowed} (512 for each byte of the file), got {len(text)} and {needed}"
        )
    return _MAGIC + bytes([FORMAT_VERSION]) + struct.pack("<I", zlib.crc32(body)) + body


def read(data: bytes) -> Contents:
    """Invert :func:`write`, for files that are not to be trusted.

    Args:
        data: The bytes of a file.

    Returns:
        The contents, on the CPU, bit for bit.

    Raises:
        ValueError: If the bytes are damaged, or are no packed file of this version.
    """
    try:
        return _Reader(data).contents()
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"damaged or not a packed network: {reason}") from error


def header_bytes(data: bytes) -> int:
    """Return the bytes of a file before its first stream; the file is taken to be intact."""
    *_, n_coded = _PREFIX.unpack_from(data)
    return _PREFIX.size + int(n_coded)


class _Reader:
    """Reads a packed file from its header on, taking the streams in their order."""

    def __init__(self, data: bytes) -> None:
        if len(data) < _PREFIX.size or not data.startswith(_MAGIC):
            raise ValueError(f"expected a file that starts with {_MAGIC!r}, got {data[:8]!r}")
        _, format_version, checksum, n_coded = _PREFIX.unpack_from(data)
        if format_version != FORMAT_VERSION:
            raise ValueError(f"expected format version {FORMAT_VERSION}, got {format_version}")
        if zlib.crc32(memoryview(data)[_CHECKED_FROM:]) != checksum:
            raise ValueError("the checksum is wrong")
        self._data = data
        self._place = _PREFIX.size
        self._n_bytes_left = max_tensor_bytes(len(data))
        header = json.loads(inflate(self._take(n_coded), _MAX_HEADER_BYTES))
        if not isinstance(header, dict):
            raise ValueError(f"expected a JSON object as header, got {type(header).__name__}")
        self._header: dict[str, Any] = header

    def contents(self) -> Contents:
        """Return all that there is, and check that nothing is left."""
        header = self._header
        architecture = _architecture(header["architecture"])
        shapes, dtypes = self._tensor_records(header["tensors"])
        packed = self._weight_records(header["weights"], shapes)
        inputs = {_text(name): _integer(zero, 0, 255) for name, zero in _list(header["inputs"])}
        if len(inputs) != len(header["inputs"]):
            raise ValueError("a layer's input is listed twice")
        others = self._streams(header["streams"])
        if self._place != len(self._data) or len(others) != 9:
            raise ValueError("the streams do not fill the file")
        n_floats = sum(math.prod(shapes[name]) for name in dtypes if dtypes[name] == "float32")
        floats = _decode_floats(others[:4], n_floats + len(inputs))
        scales = _decode_floats(others[4:8], sum(w.shape[0] for w in packed.values()))
        input_scales = floats[n_floats:]
        _check_scales(torch.cat([scales, input_scales]))
        by_weight = torch.split(scales, [weight.shape[0] for weight in packed.values()])
        levels = map(InputLevels, input_scales.tolist(), inputs.values())
        return Contents(
            architecture,
            _decode_tensors(shapes, dtypes, floats[:n_floats], others[8]),
            dict(zip(packed, map(_unpack, packed.values(), by_weight), strict=True)),
            dict(zip(inputs, levels, strict=True)),
            packed,
        )

    def _tensor_records(self, records: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
        """Return shape and type of each tensor by name."""
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, str] = {}
        for name, shape, *rest in _records(records):
            dtype = rest[0] if rest else "float32"
            if _text(name) in shapes or (dtype != "float32" and dtype not in _INTEGERS):
                raise ValueError(f"tensor {name!r:.80} is listed twice, or of an unknown type")
            shapes[name] = self._shape(shape, 0, _itemsize(dtype))
            dtypes[name] = dtype
        return shapes, dtypes

    def _weight_records(
        self, records: Any, shapes: dict[str, tuple[int, ...]]
    ) -> dict[str, PackedWeight]:
        """Return the quantized weights by name, still as bytes."""
        packed: dict[str, PackedWeight] = {}
        for name, shape, bits, index, n_runs, streams in _records(records):
            if _text(name) in packed or name in shapes:
                raise ValueError(f"tensor {name!r:.80} is listed twice")
            kind = INDEXES[_integer(index, 0, len(INDEXES) - 1)]
            encoded = EncodedIntegers(kind, _integer(n_runs, 0, 2**62), self._streams(streams))
            if len(encoded.streams) != (1 if kind in ("none", "nonzero") else 2):
                raise ValueError(f"{name!r:.80} has {len(encoded.streams)} streams")
            checked = self._shape(shape, 1, FLOAT_BYTES)
            if not checked:
                raise ValueError(f"{name!r:.80} is quantized and has no dimension")
            packed[name] = PackedWeight(checked, _integer(bits, 1, MAX_BITS), encoded)
        return packed

    def _shape(self, sizes: Any, smallest: int, itemsize: int) -> tuple[int, ...]:
        """Check a shape, and that so many bytes more are allowed."""
        limit = max_tensor_bytes(len(self._data))
        if len(_list(sizes)) > _MAX_DIMS:
            raise ValueError(f"expected up to {_MAX_DIMS} dimensions, got {len(sizes)}")
        shape = tuple(_integer(size, smallest, limit) for size in sizes)
        self._n_bytes_left -= math.prod(shape) * itemsize
        if self._n_bytes_left < 0:
            raise ValueError(
                f"a file of {len(self._data)} bytes may hold tensors of {limit} bytes, got more"
            )
        return shape

    def _streams(self, numbers: Any) -> tuple[Stream, ...]:
        """Take streams from the file: a list of code, length, code, length, ..."""
        pairs = zip(*[iter(_list(numbers))] * 2, strict=True)
        return tuple(
            Stream(CODES[_integer(code, 0, len(CODES) - 1)], self._take(n)) for code, n in pairs
        )

    def _take(self, n_bytes: Any) -> bytes:
        start, left = self._place, len(self._data) - self._place
        self._place += _integer(n_bytes, 0, left)
        return self._data[start : self._place]


def _pack(weight: QuantizedWeight) -> PackedWeight:
    encoded = encode_integers(weight.integers.numpy(), weight.bits, weight.kept.numpy())
    return PackedWeight(tuple(weight.integers.shape), weight.bits, encoded)


def _unpack(packed: PackedWeight, scale: Tensor) -> QuantizedWeight:
    decoded = decode_integers(packed.encoded, packed.bits, math.prod(packed.shape))
    integers, kept = (torch.from_numpy(array).reshape(packed.shape) for array in decoded)
    return QuantizedWeight(packed.bits, integers, scale.clone(), kept)


def _tensor_record(name: str, tensor: Tensor) -> list[Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return [name, list(tensor.shape), *([] if dtype == "float32" else [dtype])]


def _weight_record(name: str, packed: PackedWeight) -> list[Any]:
    shape, bits, encoded = packed
    streams = [number for stream in encoded.streams for number in _stream_record(stream)]
    return [name, list(shape), bits, INDEXES.index(encoded.index), encoded.n_runs, streams]


def _stream_record(stream: Stream) -> tuple[int, int]:
    return CODES.index(stream.code), len(stream.data)


def _bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    """Return a tensor's values as bytes, shape (n,)."""
    array = np.ascontiguousarray(tensor.numpy()).reshape(-1)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).view(np.uint8)


def _encode_floats(tensors: list[Tensor]) -> list[Stream]:
    """Return the lowest byte of every value as a stream, and so on up to the highest."""
    joined = np.concatenate([_NOTHING, *map(_bytes_of, tensors)])
    # (n * 4,) -> (n, 4) -> four of (n,)
    return [encode_symbols(plane.copy(), 256) for plane in joined.reshape(-1, 4).T]


def _decode_floats(planes: tuple[Stream, ...], n_values: int) -> Tensor:
    """Invert :func:`_encode_floats`, shape (n,)."""
    # four of (n,) -> (n, 4) -> (n,)
    columns = [decode_symbols(plane, 256, n_values) for plane in planes]
    values = np.stack(columns, axis=1).reshape(-1).view("<f4")
    return torch.from_numpy(values.astype(np.float32, copy=False))


def _decode_tensors(
    shapes: dict[str, tuple[int, ...]], dtypes: dict[str, str], floats: Tensor, stream: Stream
) -> dict[str, Tensor]:
    """Cut tensors out of all float32 values and the bytes of all others, in their order."""
    is_float = {name: dtype == "float32" for name, dtype in dtypes.items()}
    n_elements = {name: math.prod(shape) for name, shape in shapes.items()}
    n_bytes = sum(
        n_elements[name] * _itemsize(dtype) for name, dtype in dtypes.items() if not is_float[name]
    )
    data = decode_symbols(stream, 256, n_bytes)
    tensors: dict[str, Tensor] = {}
    for name, dtype in dtypes.items():
        n = n_elements[name]
        if is_float[name]:
            values, floats = floats[:n].clone(), floats[n:]
        else:
            stored = np.dtype("uint8" if dtype == "bool" else dtype).newbyteorder("<")
            part, data = data[: n * stored.itemsize], data[n * stored.itemsize :]
            array = part.copy().view(stored).astype(stored.newbyteorder("="))
            values = torch.from_numpy(array).to(_INTEGERS[dtype])
        tensors[name] = values.reshape(shapes[name])
    return tensors


def _itemsize(dtype: str) -> int:
    return FLOAT_BYTES if dtype == "float32" else int(_INTEGERS[dtype].itemsize)


def _architecture(record: Any) -> Architecture | None:
    """Return what the network was built from; whether the name is known is not checked here."""
    if record is None:
        return None
    name, num_classes, image_shape = _list(record)
    channels, height, width = (_integer(size, 1, 2**24) for size in _list(image_shape))
    return Architecture(_text(name), _integer(num_classes, 1, 2**24), (channels, height, width))


def _check_scales(scales: Tensor) -> None:
    if not bool((torch.isfinite(scales) & (scales > 0)).all()):
        raise ValueError("expected positive, finite scales, got others")


def _integer(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"expected an integer in {low}..{high}, got {str(value)[:40]}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"expected a name of printable characters, got {value!r:.40}")
    return value


def _records(value: Any) -> list[Any]:
    if len(_list(value)) > _MAX_TENSORS:
        raise ValueError(f"expected at most {_MAX_TENSORS} tensors, got {len(value)}")
    records: list[Any] = value
    return records


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list, got {type(value).__name__}")
    return value
