"""The quantization environment: one action per layer, the bits that its weights keep."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from gymnasium.utils import EzPickle
from torch import nn

from compress_env.data import DataBundle
from compress_env.envs.base import LayerwiseCompressionEnv, TaskOptions
from compress_env.layers import (
    FLOAT_BYTES,
    Layer,
    compute_layers,
    largest_bits_within,
    quantized_bytes,
)
from compress_env.quantization.fake_quant import MAX_BITS, attach, bake
from compress_env.quantization.packing import pack
from compress_env.snapshots import Network
from compress_env.store import Executed, Prefix, Transition, flatten

__all__ = ["QuantizationEnv"]

BITS = range(1, MAX_BITS + 1)


@dataclass
class _Quantized:
    """Quantized layers carry all that must be known of them."""

    model: nn.Module


class QuantizationEnv(LayerwiseCompressionEnv, EzPickle):
    """Allocate bits to every convolution and linear layer, in execution order.

    ## Observation

    `Box(0, 1, (9,), float32)`, a `LayerState` of the layer about to be decided. Counts are divided
    by their maximum over the walk of the uncompressed network, bits by 8.

    | Num | Name | Min | Max | Unit |
    | --- | --- | --- | --- | --- |
    | 0 | `index` | 0 | 1 | position in the walk |
    | 1 | `out_channels` | 0 | 1 | channels |
    | 2 | `in_channels` | 0 | 1 | channels |
    | 3 | `kernel_height` | 0 | 1 | elements |
    | 4 | `kernel_width` | 0 | 1 | elements |
    | 5 | `stride` | 0 | 1 | elements |
    | 6 | `action_low` | 0 | 1 | fewest bits of this layer |
    | 7 | `action_high` | 0 | 1 | most bits that still let the budget be met |
    | 8 | `flops` | 0 | 1 | multiply-accumulates |

    ## Action

    `Box(-1, 1, (1,), float32)`, mapped affinely onto [`action_low`, `action_high`] and rounded:
    `info["bits"]`, an integer in 1..8. Every action is feasible.

    ## Transition

    The layer's weights are fake-quantized per output channel (`compress_env.quantization`), the
    network is fine-tuned with straight-through gradients, batch-norm statistics are estimated
    anew and validation accuracy is measured. Layers not yet decided are float32.

    ## Reward

    `reward` of (accuracy, cost), see `compress_env.rewards`. Here the cost F is the size of the
    packed file in bytes: header, bit-packed weights, one float32 scale per output channel,
    everything else in float32.
    Every term is in `info["reward_terms"]`.

    ## Start and end

    An episode starts from the uncompressed network and ends, `terminated`, after the last layer,
    or when a step fails (loss not finite, CUDA out of memory): then with the reward's lower bound
    and `info["error"]`.

    ## Arguments

    | Name | Default | Meaning |
    | --- | --- | --- |
    | `model` | `"lenet5"` | a name or a trained module |
    | `data` | `"digits"` | a name or a `DataBundle` |
    | `size_budget` | None | highest size allowed, a fraction of the float32 size |
    | `min_bits` | 1 | fewest bits of any layer |
    | others | | see `LayerwiseCompressionEnv` |

    Without a budget the reward `err` is best served by 8 bits everywhere.

    ## Version history

    v0: first version.
    """

    value_name = "bits"
    value_scale = float(MAX_BITS)

    def __init__(
        self,
        model: str | nn.Module = "lenet5",
        data: str | DataBundle = "digits",
        *,
        size_budget: float | None = None,
        min_bits: int = 1,
        **options: Unpack[TaskOptions],
    ) -> None:
        """Load the task and check that the budget can be met.

        Args:
            model: A name in `compress_env.models.MODELS` or a trained module.
            data: A name in `compress_env.data.DATASETS` or a bundle.
            size_budget: Highest size in bytes, as a fraction of the float32 size; in (0, 1].
            min_bits: Fewest bits of any layer, 1..8.
            options: See `LayerwiseCompressionEnv`.

        Raises:
            ValueError: If an argument is out of range, a name unknown or the budget unreachable.
            FileNotFoundError: If data or checkpoint are not there.
        """
        EzPickle.__init__(self, model, data, size_budget=size_budget, min_bits=min_bits, **options)
        if not 1 <= min_bits <= MAX_BITS:
            raise ValueError(f"min_bits must be in 1..{MAX_BITS}, got {min_bits}")
        super().__init__(model, data, **options)
        if not self.table:
            raise ValueError("model has no Conv2d or Linear layer to quantize")
        self.min_bits = min_bits
        self._saved_bytes = [
            [FLOAT_BYTES * layer.n_weights - self._layer_bytes(layer, bits) for bits in BITS]
            for layer in self.table
        ]
        self._full_bytes, self._record_bytes = self._file_bytes()
        self._min_bytes = self.size_bytes([min_bits] * len(self.table))
        self.budget_bytes = self._budget(size_budget)
        self._start(self.table)

    def size_bytes(self, bits: list[int]) -> int:
        """Predicted bytes of the network with the first `len(bits)` layers quantized.

        The layers after them are float32, as are biases and norm layers. This is the size of the
        packed file, whose header grows with every quantized layer.
        """
        saved = sum(by_bits[b - 1] for by_bits, b in zip(self._saved_bytes, bits, strict=False))
        return self._full_bytes - saved + round(self._record_bytes * len(bits))

    def _layer_bytes(self, layer: Layer, bits: int) -> int:
        """Bytes of a layer; zeros from pruning need a third level, hence two bits."""
        weight = compute_layers(self.task.model)[layer.name].weight
        has_zeros = bool((weight == 0).any())
        return quantized_bytes(layer, 2 if bits == 1 and has_zeros else bits)

    def _file_bytes(self) -> tuple[int, float]:
        """Return the bytes of the float32 file, and what a quantized layer adds to the header."""
        full = len(pack(self.task.model))
        quantized = copy.deepcopy(self.task.model)
        for layer in self.table:
            attach(compute_layers(quantized)[layer.name], MAX_BITS)
        saved = sum(by_bits[-1] for by_bits in self._saved_bytes)
        return full, (len(pack(quantized)) - full + saved) / len(self.table)

    def _budget(self, size_budget: float | None) -> float:
        if size_budget is None:
            return float("inf")
        lowest = self._min_bytes / self._full_bytes
        if not lowest <= size_budget <= 1.0:
            raise ValueError(
                f"size_budget must be in [{lowest:.4f}, 1]: {self.min_bits} bit(s) everywhere "
                f"reach {lowest:.4f} of the float32 size, got {size_budget}"
            )
        return max(size_budget * self._full_bytes, self._min_bytes)

    def compressed_model(self) -> nn.Module:
        """Return the current network as an ordinary module, quantized weights in place."""
        model = super().compressed_model()
        bake(model)
        return model

    def uniform_value(self) -> float:
        """Return the most bits that, used for every layer, meet the budget."""

        def fits(bits: float) -> bool:
            return self.size_bytes([int(bits)] * len(self.table)) <= self.budget_bytes

        return float(largest_bits_within(self.min_bits, MAX_BITS, fits))

    @property
    def _settings(self) -> dict[str, Any]:
        return {}

    def _fresh(self) -> Network:
        return _Quantized(copy.deepcopy(self.task.model))

    def _bounds(self, executed: Prefix, result: Transition) -> tuple[float, float]:
        n_later = len(self.table) - len(executed) - 1

        def fits(bits: float) -> bool:
            plan = [*flatten(executed), int(bits), *[self.min_bits] * n_later]
            return self.size_bytes(plan) <= self.budget_bytes

        return self.min_bits, largest_bits_within(self.min_bits, MAX_BITS, fits)

    def _decide(self, before: Prefix, value: float) -> tuple[int, int]:
        bits = int(np.floor(value + 0.5))
        return bits, bits

    def _compress(self, network: Network, seed: int, t: int, executed: Executed) -> None:
        assert isinstance(executed, int)
        with self._timed("quantization"):
            attach(compute_layers(network.model)[self.table[t].name], executed)

    def _cost(self, result: Transition, executed: Prefix) -> tuple[float, float, float]:
        return self.size_bytes(list(flatten(executed))), self._min_bytes, self._full_bytes

    def _get_info(self) -> dict[str, Any]:
        size, _, _ = self._cost(self._current, self._executed)
        return super()._get_info() | {"size_bytes": int(size)}
