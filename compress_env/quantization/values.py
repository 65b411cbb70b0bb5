"""Tensors of a packed file as streams of symbols, and back; see `compress_env.quantization.format`.

Shape legend: n values.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_env.quantization.coding import Stream, decode_symbols, encode_symbols
from compress_env.task.layers import FLOAT_BYTES

__all__ = [
    "INTEGERS",
    "decode_floats",
    "decode_tensors",
    "encode_floats",
    "encode_others",
    "itemsize",
]

_NOTHING = np.empty(0, np.uint8)
INTEGERS = {
    name: getattr(torch, name) for name in ("bool", "uint8", "int8", "int16", "int32", "int64")
}
"""Types of tensors that are not float32, by name."""


def _bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    """Return a tensor's values as bytes, shape (n,)."""
    array = np.ascontiguousarray(tensor.numpy()).reshape(-1)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).view(np.uint8)


def encode_floats(tensors: list[Tensor]) -> list[Stream]:
    """Return the lowest byte of every value as a stream, and so on up to the highest."""
    joined = np.concatenate([_NOTHING, *map(_bytes_of, tensors)])
    # (n * 4,) -> (n, 4) -> four of (n,)
    return [encode_symbols(plane.copy(), 256) for plane in joined.reshape(-1, 4).T]


def encode_others(tensors: list[Tensor]) -> Stream:
    """Return the bytes of tensors of integers as one stream."""
    return encode_symbols(np.concatenate([_NOTHING, *map(_bytes_of, tensors)]), 256)


def decode_floats(planes: tuple[Stream, ...], n_values: int) -> Tensor:
    """Invert :func:`encode_floats`, shape (n,)."""
    # four of (n,) -> (n, 4) -> (n,)
    columns = [decode_symbols(plane, 256, n_values) for plane in planes]
    values = np.stack(columns, axis=1).reshape(-1).view("<f4")
    return torch.from_numpy(values.astype(np.float32, copy=False))


def decode_tensors(
    shapes: dict[str, tuple[int, ...]], dtypes: dict[str, str], floats: Tensor, stream: Stream
) -> dict[str, Tensor]:
    """Cut tensors out of all float32 values and the bytes of all others, in their order."""
    is_float = {name: dtype == "float32" for name, dtype in dtypes.items()}
    n_elements = {name: math.prod(shape) for name, shape in shapes.items()}
    n_bytes = sum(
        n_elements[name] * itemsize(dtype) for name, dtype in dtypes.items() if not is_float[name]
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
            values = torch.from_numpy(array).to(INTEGERS[dtype])
        tensors[name] = values.reshape(shapes[name])
    return tensors


def itemsize(dtype: str) -> int:
    """Return the bytes of one element of a type that a file may have."""
    return FLOAT_BYTES if dtype == "float32" else int(INTEGERS[dtype].itemsize)
