"""Coding of integers: exact round trips, sizes near the entropy, damaged streams."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

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
    most_bytes,
)

ALL_BITS = range(1, 9)


def draw_integers(seed: int, bits: int, n: int, zeros: float = 0.0) -> NDArray[np.int8]:
    """Rounded Gaussian weights, a share of which is pruned; signs at one bit."""
    rng, largest = np.random.default_rng(seed), max(2 ** (bits - 1) - 1, 1)
    values = np.rint(rng.normal(size=n) * (largest / 2.5 if bits > 1 else 0.0))
    if bits == 1:
        values = rng.choice([-1, 1], n)
    values[rng.random(n) < zeros] = 0
    return np.clip(values, -largest, largest).astype(np.int8)


def entropy_bytes(values: NDArray[np.int8]) -> float:
    _, counts = np.unique(values, return_counts=True)
    return float(-(counts * np.log2(counts / len(values))).sum()) / 8


@given(n_levels=st.integers(2, 256), data=st.data())
def test_symbols_come_back(n_levels: int, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(st.integers(0, n_levels - 1), max_size=60))
    repeats = data.draw(st.sampled_from([1, 7, 300]))
    symbols = np.array(drawn * repeats, np.uint8)
    stream = encode_symbols(symbols, n_levels)
    assert decode_symbols(stream, n_levels, len(symbols)).tolist() == drawn * repeats


@given(
    seed=st.integers(0, 1000),
    bits=st.integers(1, 8),
    n=st.integers(0, 400),
    zeros=st.sampled_from([0.0, 0.3, 0.9, 0.999, 1.0]),
)
def test_integers_come_back_and_never_exceed_the_bound(
    seed: int, bits: int, n: int, zeros: float
) -> None:
    values = draw_integers(seed, bits, n, zeros)
    # At one bit, only pruned weights are 0; beyond, some weights that are kept round to it.
    pruned = values == 0 if bits == 1 else np.random.default_rng(seed).random(n) < zeros
    kept = ~pruned
    values[pruned] = 0
    encoded = encode_integers(values, bits, kept)
    decoded = decode_integers(encoded, bits, n)
    assert decoded.values.dtype == np.int8 and np.array_equal(decoded.values, values)
    assert decoded.kept[values != 0].all()
    assert encoded.n_bytes <= most_bytes(kept, bits)
    assert encode_integers(decoded.values, bits, decoded.kept) == encoded


def test_symbols_share_bytes_by_hand() -> None:
    # 5 symbols of 3 levels to a byte, the first one lowest: 1 + 2 * 3 + 0 + 2 * 27 + 1 * 81
    digits = Stream("digits", bytes([142, 2]))
    assert encode_symbols(np.array([1, 2, 0, 2, 1, 2], np.uint8), 3) in (
        digits,
        Stream("bits", bytes([0b10_00_10_01, 0b10_01])),
    )
    assert decode_symbols(digits, 3, 6).tolist() == [1, 2, 0, 2, 1, 2]
    # 3 bits each, lowest bit first
    packed = Stream("bits", bytes([0b01_110_001, 0b1]))
    assert decode_symbols(packed, 8, 3).tolist() == [0b001, 0b110, 0b101]


def test_runs_of_zeros_by_hand() -> None:
    values = np.zeros(700, np.int8)
    values[[2, 3, 513, 600]] = [1, -1, 1, 1]
    # 2 zeros, none, 509 = 255 + 254, 86; the 99 at the end go without saying
    runs = Stream("bits", bytes([2, 0, 255, 254, 86]))
    signs = Stream("bits", bytes([0b1101]))
    decoded = decode_integers(EncodedIntegers("runs", 5, (runs, signs)), 2, 700)
    assert np.array_equal(decoded.values, values)
    assert np.array_equal(decoded.kept, values != 0)
    assert encode_integers(values, 2).n_bytes == 6


@pytest.mark.parametrize("zeros", [0.0, 0.8])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_size_is_near_the_entropy(bits: int, zeros: float) -> None:
    values = draw_integers(0, bits, 48_000, zeros)
    assert encode_integers(values, bits).n_bytes <= 1.03 * entropy_bytes(values)


def test_dead_channels_cost_next_to_nothing() -> None:
    values = draw_integers(0, 4, 40_000)
    values[10_000:] = 0
    alone = encode_integers(values[:10_000], 4).n_bytes
    assert encode_integers(values, 4).n_bytes <= alone + 200


def test_the_bound_by_hand() -> None:
    everything = np.ones(1000, np.bool_)
    # bits for 2 levels, 5 digits of 3 levels to a byte, then bits for 7, 15, ... levels
    expected = [125, 200, 375, 500, 625, 750, 875, 1000]
    assert [most_bytes(everything, bits) for bits in ALL_BITS] == expected
    half = np.arange(1000) % 2 == 0
    bitmap = len(encode_symbols(half.astype(np.uint8), 2).data)
    assert [most_bytes(half, bits) for bits in (1, 8)] == [bitmap + 63, bitmap + 500]


def test_inflating_stops_at_the_limit() -> None:
    bomb = deflate(bytes(2**24))
    assert len(bomb) < 2**16
    with pytest.raises(ValueError, match="at most 1000 bytes"):
        inflate(bomb, 1000)
    assert inflate(deflate(b"abc"), 3) == b"abc"


DAMAGED: dict[str, tuple[Stream, int, int]] = {
    "too few bits": (Stream("bits", bytes(3)), 8, 9),
    "too many bits": (Stream("bits", bytes(5)), 8, 9),
    "a level too high": (Stream("bits", b"\xff"), 7, 2),
    "a digit too high": (Stream("digits", b"\xff"), 3, 5),
    "too few digits": (Stream("digits", b"\x01"), 3, 6),
    "too few bytes": (Stream("huffman", zlib.compress(bytes(5), wbits=-15)), 3, 6),
    "too many bytes": (Stream("huffman", zlib.compress(bytes(7), wbits=-15)), 3, 6),
    "more behind": (Stream("huffman", zlib.compress(bytes(6), wbits=-15) + b"x"), 3, 6),
    "cut off": (Stream("huffman digits", zlib.compress(bytes(99), wbits=-15)[:-1]), 256, 99),
    "no deflate": (Stream("huffman", b"\xff\xff\xff"), 3, 6),
}


@pytest.mark.parametrize(("stream", "n_levels", "n"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_streams_are_value_errors(stream: Stream, n_levels: int, n: int) -> None:
    with pytest.raises(ValueError, match=r"expected|not a deflate stream"):
        decode_symbols(stream, n_levels, n)


def test_runs_beyond_the_tensor_are_value_errors() -> None:
    signs = Stream("bits", b"\x01")
    for n_runs, runs in ((1, [5]), (2, [255, 0]), (6, [0] * 6)):
        stream = Stream("bits", bytes(runs))
        with pytest.raises(ValueError, match="runs of zeros"):
            decode_integers(EncodedIntegers("runs", n_runs, (stream, signs)), 2, 5)


def test_numbers_in_files_keep_their_meaning() -> None:
    assert CODES == ("bits", "digits", "huffman digits", "huffman")
    assert INDEXES == ("none", "nonzero", "bitmap", "runs", "kept bitmap", "kept runs")
