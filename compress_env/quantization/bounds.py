"""The most bytes that a packed file can take, known before anything is quantized **(ours)**.

What the entropy coder saves depends on the values, which fine-tuning changes. The bound does
without it: weights take their bits, or an index of the pruned ones, which stay, and the bits of the
others. So a budget that holds for the bound holds whatever happens later.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from torch import nn

from compress_env.quantization.activations import Range, attach_input
from compress_env.quantization.coding import encode_symbols, most_bytes
from compress_env.quantization.fake_quant import MAX_BITS, attach
from compress_env.quantization.format import header_bytes, read
from compress_env.quantization.packing import pack
from compress_env.task.layers import FLOAT_BYTES, compute_layers

__all__ = ["SizeBounds", "size_bounds"]

_SCALE_BYTES = 2
# How much longer a layer's part of the header can get, whose numbers have more or fewer digits.
_HEADER_SLACK = 8


class SizeBounds(NamedTuple):
    """Bounds of the parts of a packed file."""

    others: int
    """Most bytes of everything but the quantized weights."""
    weights: dict[str, tuple[int, ...]]
    """Most bytes of each layer's weight by its dotted name, at 1, 2, ..., 8 bits."""

    def total(self, bits: Mapping[str, int]) -> int:
        """Return the most bytes of the file.

        Args:
            bits: Bits, 1..8, of every quantized layer by its dotted name.
        """
        return self.others + sum(self.weights[name][n_bits - 1] for name, n_bits in bits.items())


def size_bounds(model: nn.Module, names: Iterable[str], *, inputs: bool = False) -> SizeBounds:
    """Return the bounds for a network some of whose layers are to be quantized.

    Args:
        model: The network, not quantized; zeros in its weights are taken for pruned.
        names: Dotted names of the layers to be quantized.
        inputs: Whether their inputs are quantized as well.
    """
    quantized = copy.deepcopy(model).cpu()
    layers = compute_layers(quantized)
    weights: dict[str, tuple[int, ...]] = {}
    n_scales = 0
    for name in names:
        layer = layers[name]
        kept = (layer.weight.detach() != 0).numpy()
        weights[name] = tuple(most_bytes(kept, bits) for bits in range(1, MAX_BITS + 1))
        n_scales += len(kept)
        # Any scale will do, here that of the largest weight at four bits.
        attach(layer, 4, layer.weight.detach().flatten(1).abs().amax(dim=1).clamp_min(1e-6) / 7)
        if inputs:
            attach_input(layer, Range(0.0, 1.0))
    data = pack(quantized)
    contents = read(data)
    zeros = encode_symbols(np.zeros(n_scales, np.uint8), 256)
    others = (
        header_bytes(data)
        + _HEADER_SLACK * (len(weights) + len(contents.inputs))
        + sum(tensor.nbytes for tensor in contents.tensors.values())
        + FLOAT_BYTES * len(contents.inputs)
        + _SCALE_BYTES * n_scales
        + 2 * len(zeros.data)  # the two bytes of a scale that are zero
    )
    return SizeBounds(others, weights)
