"""Integers of a few bits as few bytes, and back, for reading from untrusted files.

A stream is a sequence of symbols, numbers below a known number of levels. It is stored in the
smallest of four forms: bit-packed; as many symbols to a byte as fit, as digits of a number; or one
of digits and single bytes behind the Huffman coder of deflate (RFC 1951). A tensor of integers is
one stream, or an index of zeros and a stream of the others **(ours)**.

Shape legend: n symbols or integers, Q = `largest_integer(bits)`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from compress_env.quantization.fake_quant import largest_integer

__all__ = [
    "CODES",
    "INDEXES",
    "Code",
    "DecodedIntegers",
    "EncodedIntegers",
    "Index",
    "Stream",
    "decode_integers",
    "decode_symbols",
    "deflate",
    "encode_integers",
    "encode_symbols",
    "inflate",
    "most_bytes",
]

Symbols: TypeAlias = NDArray[np.uint8]
Code = Literal["bits", "digits", "huffman digits", "huffman"]
"""How a stream of integers is written."""
Index = Literal["none", "nonzero", "bitmap", "runs", "kept bitmap", "kept runs"]
"""How the places of non-zeros are written."""
CODES: tuple[Code, ...] = ("bits", "digits", "huffman digits", "huffman")
"""Forms of a stream; files store their numbers."""
INDEXES: tuple[Index, ...] = ("none", "nonzero", "bitmap", "runs", "kept bitmap", "kept runs")
"""How zeros are told from the rest; files store their numbers. Zeros are a level as any other;
there are none; one bit for each integer says where they are; the zeros before each other integer
are counted. "kept" indexes are of pruned zeros only, and 0 is a level of the integers kept."""

_RAW = -15  # deflate without header and checksum, window of 2^15 bytes
_STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE)
# A count of zeros that no other integer follows, so that longer runs take several bytes.
_LONGEST_RUN = 255


class Stream(NamedTuple):
    """Symbols as bytes."""

    code: Code
    """Form of the bytes."""
    data: bytes
    """The bytes."""


class EncodedIntegers(NamedTuple):
    """A tensor's integers as bytes."""

    index: Index  # type: ignore[assignment]  # the field's name hides tuple.index
    """How zeros are told."""
    n_runs: int
    """Symbols of the index where it is one of runs, 0 elsewhere."""
    streams: tuple[Stream, ...]
    """The integers; with a bitmap or runs, the index and the integers that it leaves."""

    @property
    def n_bytes(self) -> int:
        """Bytes of all streams."""
        return sum(len(stream.data) for stream in self.streams)


class DecodedIntegers(NamedTuple):
    """A tensor's integers from a file."""

    values: NDArray[np.int8]
    """Integers in -Q..Q, shape (n,)."""
    kept: NDArray[np.bool_]
    """Which of them are not known to be pruned, shape (n,): all, or those that the index leaves."""


def encode_integers(
    integers: NDArray[np.int8], bits: int, kept: NDArray[np.bool_] | None = None
) -> EncodedIntegers:
    """Encode integers by the index that makes them smallest.

    Args:
        integers: Any shape, int8, in -Q..Q.
        bits: Bits per integer, 1..8.
        kept: Which of them are not pruned, in the same shape; the others are 0.
    """
    values, largest = integers.reshape(-1), largest_integer(bits)
    nonzero = values != 0
    if nonzero.all():
        return EncodedIntegers("nonzero", 0, (_encode_nonzero(values, largest),))
    others = _encode_nonzero(values[nonzero], largest)
    candidates = [
        EncodedIntegers("none", 0, (_encode_levels(values, largest),)),
        EncodedIntegers("bitmap", 0, (_encode_bitmap(nonzero), others)),
        EncodedIntegers("runs", *_encode_runs(nonzero, others)),
    ]
    left = None if kept is None else kept.reshape(-1)
    if left is not None and not left.all() and (left != nonzero).any():
        levels = _encode_levels(values[left], largest)
        candidates += [
            EncodedIntegers("kept bitmap", 0, (_encode_bitmap(left), levels)),
            EncodedIntegers("kept runs", *_encode_runs(left, levels)),
        ]
    return min(candidates, key=lambda candidate: candidate.n_bytes)


def decode_integers(encoded: EncodedIntegers, bits: int, n_integers: int) -> DecodedIntegers:
    """Invert :func:`encode_integers`.

    Args:
        encoded: From a file, hence not to be trusted.
        bits: Bits per integer, 1..8.
        n_integers: Number of integers; memory of this order is used, whatever the streams hold.

    Raises:
        ValueError: If the streams do not hold that many such integers.
    """
    largest, index = largest_integer(bits), encoded.index
    if index == "none":
        kept, decode = np.ones(n_integers, np.bool_), _decode_levels
    elif index == "nonzero":
        kept, decode = np.ones(n_integers, np.bool_), _decode_nonzero
    else:
        is_bitmap = index in ("bitmap", "kept bitmap")
        kept = (
            _decode_bitmap(encoded, n_integers) if is_bitmap else _decode_runs(encoded, n_integers)
        )
        decode = _decode_nonzero if index in ("bitmap", "runs") else _decode_levels
    values = np.zeros(n_integers, np.int8)
    values[kept] = decode(encoded.streams[-1], largest, int(np.count_nonzero(kept)))
    # At one bit, only pruned integers are 0.
    return DecodedIntegers(values, values != 0 if bits == 1 else kept)


def most_bytes(kept: NDArray[np.bool_], bits: int) -> int:
    """Return the most bytes that integers of so many bits can take, whatever their values.

    Args:
        kept: Which of them are not pruned, any shape.
        bits: Bits per integer, 1..8.
    """
    left, n_kept = kept.reshape(-1), int(np.count_nonzero(kept))
    largest = largest_integer(bits)
    # At one bit, only pruned integers are 0.
    n_levels = 2 if bits == 1 else 2 * largest + 1
    if n_kept == len(left):
        return _plain_bytes(n_kept, n_levels)
    levels = _plain_bytes(n_kept, n_levels)
    _, (runs, _) = _encode_runs(left, Stream("bits", b""))
    index = min(len(_encode_bitmap(left).data), len(runs.data))
    return min(_plain_bytes(len(left), 2 * largest + 1), index + levels)


def encode_symbols(symbols: Symbols, n_levels: int) -> Stream:
    """Encode symbols in the smallest form.

    Args:
        symbols: Shape (n,), uint8, below `n_levels`.
        n_levels: Number of levels, 2..256.
    """
    digits = _to_digits(symbols, n_levels)
    plain = min(
        Stream("bits", _pack_bits(symbols, _n_bits(n_levels))), Stream("digits", digits), key=_size
    )
    candidates = [plain]
    if _entropy_bytes(digits) < _size(plain):
        candidates.append(Stream("huffman digits", deflate(digits)))
        if _n_digits(n_levels) > 1:
            candidates.append(Stream("huffman", deflate(symbols.tobytes())))
    return min(candidates, key=_size)


def decode_symbols(stream: Stream, n_levels: int, n_symbols: int) -> Symbols:
    """Invert :func:`encode_symbols`.

    Args:
        stream: From a file, hence not to be trusted.
        n_levels: Number of levels, 2..256.
        n_symbols: Number of symbols; memory of this order is used, whatever the stream holds.

    Returns:
        Shape (n,), uint8, below `n_levels`.

    Raises:
        ValueError: If the stream does not hold that many such symbols.
    """
    code, data = stream
    if code in ("huffman", "huffman digits"):
        n_digits = 1 if code == "huffman" else _n_digits(n_levels)
        data = inflate(data, -(-n_symbols // n_digits))
    if code == "bits":
        symbols = _unpack_bits(data, _n_bits(n_levels), n_symbols)
    elif code == "huffman":
        _check_length(data, n_symbols)
        symbols = np.frombuffer(data, np.uint8)
    else:
        symbols = _from_digits(data, n_levels, n_symbols)
    if n_symbols and int(symbols.max()) >= n_levels:
        raise ValueError(f"expected symbols below {n_levels}, got {int(symbols.max())}")
    return symbols


def deflate(data: bytes, strategies: Sequence[int] = _STRATEGIES) -> bytes:
    """Compress bytes by the best of some strategies of `zlib`, without header and checksum."""
    results = []
    for strategy in strategies:
        coder = zlib.compressobj(9, zlib.DEFLATED, _RAW, 9, strategy)
        results.append(coder.compress(data) + coder.flush())
    return min(results, key=len)


def inflate(data: bytes, max_bytes: int) -> bytes:
    """Invert :func:`deflate`, or any other deflate, in bounded memory.

    Args:
        data: What is to be decompressed, not to be trusted.
        max_bytes: Most bytes that may come; no more than one beyond them are ever made.

    Raises:
        ValueError: If more come, or the data are not one whole deflate stream.
    """
    decoder = zlib.decompressobj(_RAW)
    try:
        result = decoder.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"not a deflate stream: {error}") from None
    if len(result) > max_bytes or not decoder.eof or decoder.unused_data:
        raise ValueError(f"expected one deflate stream of at most {max_bytes} bytes")
    return result


def _encode_levels(integers: NDArray[np.int8], largest: int) -> Stream:
    """Encode integers in -Q..Q as 0..2Q."""
    return encode_symbols((integers + np.int16(largest)).astype(np.uint8), 2 * largest + 1)


def _decode_levels(stream: Stream, largest: int, n_integers: int) -> NDArray[np.int8]:
    symbols = decode_symbols(stream, 2 * largest + 1, n_integers).astype(np.int16)
    return (symbols - largest).astype(np.int8)


def _encode_nonzero(integers: NDArray[np.int8], largest: int) -> Stream:
    """Encode integers in -Q..-1 and 1..Q as 0..2Q-1."""
    symbols = integers + np.int16(largest) - (integers > 0)
    return encode_symbols(symbols.astype(np.uint8), 2 * largest)


def _decode_nonzero(stream: Stream, largest: int, n_integers: int) -> NDArray[np.int8]:
    symbols = decode_symbols(stream, 2 * largest, n_integers).astype(np.int16)
    return (symbols - largest + (symbols >= largest)).astype(np.int8)


def _encode_bitmap(mask: NDArray[np.bool_]) -> Stream:
    return encode_symbols(mask.astype(np.uint8), 2)


def _decode_bitmap(encoded: EncodedIntegers, n_integers: int) -> NDArray[np.bool_]:
    return decode_symbols(encoded.streams[0], 2, n_integers).astype(np.bool_)


def _encode_runs(mask: NDArray[np.bool_], rest: Stream) -> tuple[int, tuple[Stream, Stream]]:
    """Encode the zeros before each one; those after the last one are left out."""
    gaps = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    n_long = gaps // _LONGEST_RUN
    # One symbol for the remainder, after those for the long runs.
    runs = np.full(len(gaps) + int(n_long.sum()), _LONGEST_RUN, np.uint8)
    runs[np.cumsum(n_long + 1) - 1] = gaps % _LONGEST_RUN
    return len(runs), (encode_symbols(runs, 256), rest)


def _decode_runs(encoded: EncodedIntegers, n_integers: int) -> NDArray[np.bool_]:
    if not 0 <= encoded.n_runs <= n_integers:
        raise ValueError(f"expected at most {n_integers} runs of zeros, got {encoded.n_runs}")
    runs = decode_symbols(encoded.streams[0], 256, encoded.n_runs).astype(np.int64)
    ends = runs != _LONGEST_RUN
    places = np.cumsum(runs + ends)[ends] - 1
    if len(places) and places[-1] >= n_integers:
        raise ValueError(f"runs of zeros lead beyond {n_integers} integers")
    mask = np.zeros(n_integers, np.bool_)
    mask[places] = True
    return mask


def _entropy_bytes(digits: bytes) -> float:
    """Return the least bytes that any code of single bytes takes."""
    counts = np.bincount(np.frombuffer(digits, np.uint8))
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / max(len(digits), 1))).sum()) / 8


def _plain_bytes(n_symbols: int, n_levels: int) -> int:
    """Return the bytes of symbols that are bit-packed, or digits, whichever is smaller."""
    return min(-(-n_symbols * _n_bits(n_levels) // 8), -(-n_symbols // _n_digits(n_levels)))


def _size(stream: Stream) -> int:
    return len(stream.data)


def _n_bits(n_levels: int) -> int:
    return (n_levels - 1).bit_length()


def _n_digits(n_levels: int) -> int:
    """Return how many symbols one byte holds: 8 of 2 levels, 5 of 3, and 1 of more than 16."""
    return max(k for k in range(1, 9) if n_levels**k <= 256)


def _to_digits(symbols: Symbols, n_levels: int) -> bytes:
    """Join symbols to bytes, the first one being the lowest digit, (n,) -> (ceil(n / k),)."""
    k = _n_digits(n_levels)
    padded = np.zeros(len(symbols) + -len(symbols) % k, np.uint8)
    padded[: len(symbols)] = symbols
    rows = padded.reshape(-1, k)  # (n + padding,) -> (ceil(n / k), k)
    joined = rows[:, k - 1].copy()
    for place in range(k - 2, -1, -1):
        joined *= np.uint8(n_levels)
        joined += rows[:, place]
    return joined.tobytes()


def _from_digits(data: bytes, n_levels: int, n_symbols: int) -> Symbols:
    """Invert :func:`_to_digits`."""
    k = _n_digits(n_levels)
    _check_length(data, -(-n_symbols // k))
    left = np.frombuffer(data, np.uint8)
    if k == 1:
        return left
    rows = np.empty((len(left), k), np.uint8)
    for place in range(k - 1):
        left, rows[:, place] = np.divmod(left, np.uint8(n_levels))
    rows[:, k - 1] = left
    # (ceil(n / k), k) -> (n,)
    return rows.reshape(-1)[:n_symbols]


def _pack_bits(symbols: Symbols, bits: int) -> bytes:
    """Concatenate the lowest bits of each symbol, (n,) -> (ceil(n * bits / 8),)."""
    # (n,) -> (n, 1) -> (n, bits)
    rows = np.unpackbits(symbols[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(rows, bitorder="little").tobytes()


def _unpack_bits(data: bytes, bits: int, n_symbols: int) -> Symbols:
    """Invert :func:`_pack_bits`."""
    _check_length(data, -(-n_symbols * bits // 8))
    packed = np.frombuffer(data, np.uint8)
    # (n * bits,) -> (n, bits) -> (n, 1) -> (n,)
    rows = np.unpackbits(packed, count=n_symbols * bits, bitorder="little").reshape(-1, bits)
    return np.packbits(rows, axis=1, bitorder="little")[:, 0]


def _check_length(data: bytes, expected: int) -> None:
    if len(data) != expected:
        raise ValueError(f"expected {expected} bytes of symbols, got {len(data)}")
