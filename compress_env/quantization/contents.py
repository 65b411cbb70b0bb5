"""What a packed file says, as values: see `compress_env.quantization.format`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from compress_env.networks.models import Architecture
from compress_env.quantization.coding import EncodedIntegers

__all__ = ["Contents", "InputLevels", "PackedWeight", "QuantizedWeight"]


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
    """How the quantized weights are held; `format.write` makes this itself."""
    shared: Mapping[str, str] = MappingProxyType({})
    """First names of tensors and weights by their other names; a file holds each once. What is read
    has them under all names."""
