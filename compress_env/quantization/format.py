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
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, BinaryIO

import torch
from torch import Tensor

from compress_env.networks.models import Architecture
from compress_env.quantization.coding import (
    CODES,
    INDEXES,
    EncodedIntegers,
    Stream,
    decode_integers,
    deflate,
    encode_integers,
    inflate,
)
from compress_env.quantization.contents import Contents, InputLevels, PackedWeight, QuantizedWeight
from compress_env.quantization.fake_quant import MAX_BITS
from compress_env.quantization.values import (
    INTEGERS,
    decode_floats,
    decode_tensors,
    encode_floats,
    encode_others,
    itemsize,
)
from compress_env.task.layers import FLOAT_BYTES

__all__ = [
    "FORMAT_VERSION",
    "Contents",
    "InputLevels",
    "PackedWeight",
    "QuantizedWeight",
    "header_bytes",
    "max_tensor_bytes",
    "read",
    "read_bytes",
    "write",
]

FORMAT_VERSION = 1
"""Of the files that are written."""
_MAGIC = b"CENV"
_PREFIX = struct.Struct("<4sBII")
_CHECKED_FROM = 9  # the CRC covers what follows it
_MAX_HEADER_BYTES = 2**20
_MAX_CODED_BYTES = _MAX_HEADER_BYTES + 2**12  # deflate may add a little
_MAX_DIMS = 8
_MAX_IMAGE = 2**28  # elements of one image
_MAX_TENSORS = 10_000  # of either kind; a ResNet-152 has 932


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
        *encode_floats([*floats, input_scales]),
        *encode_floats(scales),
        encode_others(integers),
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
    if contents.shared:
        header["shared"] = [[*names] for names in contents.shared.items()]
    text = json.dumps(header, separators=(",", ":")).encode()
    coded = deflate(text, (zlib.Z_DEFAULT_STRATEGY,))
    streams = [stream.data for weight in packed.values() for stream in weight.encoded.streams]
    body = struct.pack("<I", len(coded)) + b"".join([coded, *streams, *(s.data for s in others)])
    sizes = {name: t.nbytes for name, t in contents.tensors.items()}
    sizes |= {name: FLOAT_BYTES * w.integers.numel() for name, w in contents.weights.items()}
    needed = sum(sizes.values()) + sum(sizes[kept] for kept in contents.shared.values())
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
    with _damage_named():
        return _Reader(data).contents()


def read_bytes(file: BinaryIO) -> bytes:
    """Return the bytes of a file for :func:`read`, if it is as long as its header says.

    Args:
        file: A regular file at its beginning; of another kind or length, its header alone is read.

    Raises:
        ValueError: If it is no packed file of this version, or has another length.
    """
    with _damage_named():
        prefix = file.read(_PREFIX.size)
        n_coded = _parse_prefix(prefix)[1]
        coded = file.read(min(n_coded, _MAX_CODED_BYTES))
        header = _parse_header(coded)
        n_rest = sum(_stream_bytes(record[5]) for record in _records(header["weights"]))
        n_rest += _stream_bytes(header["streams"])
        n_bytes, expected = os.fstat(file.fileno()).st_size, len(prefix) + n_coded + n_rest
        if n_bytes != expected:
            raise ValueError(f"expected {expected} bytes, got {n_bytes}")
    return prefix + coded + file.read(n_rest)


def header_bytes(data: bytes) -> int:
    """Return the bytes of a file before its first stream; the file is taken to be intact."""
    *_, n_coded = _PREFIX.unpack_from(data)
    return _PREFIX.size + int(n_coded)


class _Reader:
    """Reads a packed file from its header on, taking the streams in their order."""

    def __init__(self, data: bytes) -> None:
        checksum, n_coded = _parse_prefix(data)
        if zlib.crc32(memoryview(data)[_CHECKED_FROM:]) != checksum:
            raise ValueError("the checksum is wrong")
        self._data = data
        self._place = _PREFIX.size
        self._n_bytes_left = max_tensor_bytes(len(data))
        self._header = _parse_header(self._take(n_coded))

    def contents(self) -> Contents:
        """Return all that there is, and check that nothing is left."""
        header = self._header
        architecture = _architecture(header["architecture"])
        shapes, dtypes = self._tensor_records(header["tensors"])
        packed = self._weight_records(header["weights"], shapes)
        shared = self._shared(header.get("shared", []), shapes, dtypes, packed)
        inputs = {_text(name): _integer(zero, 0, 255) for name, zero in _list(header["inputs"])}
        if len(inputs) != len(header["inputs"]):
            raise ValueError("a layer's input is listed twice")
        others = self._streams(header["streams"])
        if self._place != len(self._data) or len(others) != 9:
            raise ValueError("the streams do not fill the file")
        n_floats = sum(math.prod(shapes[name]) for name in dtypes if dtypes[name] == "float32")
        floats = decode_floats(others[:4], n_floats + len(inputs))
        scales = decode_floats(others[4:8], sum(w.shape[0] for w in packed.values()))
        input_scales = floats[n_floats:]
        _check_scales(torch.cat([scales, input_scales]))
        by_weight = torch.split(scales, [weight.shape[0] for weight in packed.values()])
        levels = map(InputLevels, input_scales.tolist(), inputs.values())
        tensors = decode_tensors(shapes, dtypes, floats[:n_floats], others[8])
        weights = dict(zip(packed, map(_unpack, packed.values(), by_weight), strict=True))
        tensors |= {name: tensors[kept] for name, kept in shared.items() if kept in tensors}
        weights |= {name: weights[kept] for name, kept in shared.items() if kept in weights}
        return Contents(
            architecture, tensors, weights, dict(zip(inputs, levels, strict=True)), packed, shared
        )

    def _tensor_records(self, records: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
        """Return shape and type of each tensor by name."""
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, str] = {}
        for name, shape, *rest in _records(records):
            dtype = rest[0] if rest else "float32"
            if _text(name) in shapes or (dtype != "float32" and dtype not in INTEGERS):
                raise ValueError(f"tensor {name!r:.80} is listed twice, or of an unknown type")
            shapes[name] = self._shape(shape, 0, itemsize(dtype))
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

    def _shared(
        self,
        records: Any,
        shapes: dict[str, tuple[int, ...]],
        dtypes: dict[str, str],
        packed: dict[str, PackedWeight],
    ) -> dict[str, str]:
        """Return the first name of each tensor and weight by its other names."""
        shared: dict[str, str] = {}
        for name, kept in _records(records):
            if _text(name) in shared or name in shapes or name in packed:
                raise ValueError(f"tensor {name!r:.80} is listed twice")
            shape = shapes[kept] if kept in shapes else packed[kept].shape
            self._shape([*shape], 0, itemsize(dtypes.get(kept, "float32")))
            shared[name] = kept
        return shared

    def _shape(self, sizes: Any, smallest: int, element_bytes: int) -> tuple[int, ...]:
        """Check a shape, and that so many bytes more are allowed."""
        limit = max_tensor_bytes(len(self._data))
        if len(_list(sizes)) > _MAX_DIMS:
            raise ValueError(f"expected up to {_MAX_DIMS} dimensions, got {len(sizes)}")
        shape = tuple(_integer(size, smallest, limit) for size in sizes)
        self._n_bytes_left -= math.prod(shape) * element_bytes
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


@contextmanager
def _damage_named() -> Iterator[None]:
    """Turn whatever goes wrong with a file into a ValueError of one line."""
    try:
        yield
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"damaged or not a packed network: {reason}") from error


def _parse_prefix(data: bytes) -> tuple[int, int]:
    """Return the checksum of a file, and how many bytes its header takes."""
    if len(data) < _PREFIX.size or not data.startswith(_MAGIC):
        raise ValueError(f"expected a file that starts with {_MAGIC!r}, got {data[:8]!r}")
    _, format_version, checksum, n_coded = _PREFIX.unpack_from(data)
    if format_version != FORMAT_VERSION:
        raise ValueError(f"expected format version {FORMAT_VERSION}, got {format_version}")
    return checksum, n_coded


def _parse_header(coded: bytes) -> dict[str, Any]:
    """Return what a header says, none of it checked."""
    header = json.loads(inflate(coded, _MAX_HEADER_BYTES), object_pairs_hook=_object)
    if not isinstance(header, dict):
        raise ValueError(f"expected a JSON object as header, got {type(header).__name__}")
    return header


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of pairs, no two of which have one name."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("the header says something twice")
    return dict(pairs)


def _stream_bytes(numbers: Any) -> int:
    """Return how many bytes streams take: a list of code, length, code, length, ..."""
    return sum(_integer(length, 0, 2**62) for length in _list(numbers)[1::2])


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


def _architecture(record: Any) -> Architecture | None:
    """Return what the network was built from; whether the name is known is not checked here."""
    if record is None:
        return None
    name, num_classes, image_shape = _list(record)
    channels, height, width = (_integer(size, 1, 2**24) for size in _list(image_shape))
    if channels * height * width > _MAX_IMAGE:
        raise ValueError(f"expected images of at most {_MAX_IMAGE} elements, got more")
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
