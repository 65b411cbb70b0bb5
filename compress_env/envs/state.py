"""What an environment says of the layer about to be decided, and remembers of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compress_env.layers import (
    Layer,
    compute_layers,
    dense_macs,
    dense_params,
    describe_layer,
    nonzero_weights,
    sparse_params,
)
from compress_env.store import Transition

__all__ = [
    "LayerDecision",
    "LayerState",
    "action_to_value",
    "describe_network",
    "scale_layer",
    "scales_of",
]

COUNTS = ("out_channels", "in_channels", "kernel_height", "kernel_width", "stride", "macs")


class LayerState(NamedTuple):
    """The layer about to be decided, each entry scaled into [0, 1]."""

    index: float  # type: ignore[assignment]  # the field's name hides tuple.index
    out_channels: float
    in_channels: float
    kernel_height: float
    kernel_width: float
    stride: float
    action_low: float
    action_high: float
    flops: float


class LayerDecision(NamedTuple):
    """One row of an episode: what was decided for a layer and what came of it."""

    layer: str
    value: float
    accuracy: float | None
    cost: float


def scales_of(walk: Sequence[Layer]) -> dict[str, int]:
    """Return the largest of each count over the walk of the uncompressed network."""
    return {name: max(1, *(getattr(layer, name) for layer in walk)) for name in COUNTS}


def scale_layer(
    layer: Layer, index: float, interval: tuple[float, float], scales: dict[str, int]
) -> NDArray[np.float32]:
    """Return the observation of a live layer, (9,) float32, a `LayerState`.

    Args:
        layer: The layer as it is now.
        index: Its place in the walk, scaled.
        interval: Bounds of its decision, scaled.
        scales: What counts are divided by, from `scales_of`.
    """
    scaled = {name: getattr(layer, name) / scale for name, scale in scales.items()}
    flops = scaled.pop("macs")
    low, high = interval
    state = LayerState(index=index, action_low=low, action_high=high, flops=flops, **scaled)
    return np.array(state, dtype=np.float32)


def describe_network(
    model: nn.Module, positions: dict[str, int], layer: str, accuracy: float | None
) -> Transition:
    """Measure what a network costs, and the layer to be decided next."""
    live = describe_layer(layer, compute_layers(model)[layer], positions[layer])
    nonzeros = nonzero_weights(model, positions)
    return Transition(
        accuracy,
        dense_macs(model, positions),
        dense_params(model),
        sum(n * area for n, area in zip(nonzeros, positions.values(), strict=True)),
        sparse_params(model),
        nonzeros,
        live.out_channels,
        live.in_channels,
    )


def action_to_value(action: NDArray[Any], interval: tuple[float, float]) -> float:
    """Map an action affinely onto the interval of the layer about to be decided.

    Args:
        action: (1,) in [-1, 1].
        interval: What -1 and 1 stand for.

    Raises:
        ValueError: If the action has the wrong shape, is not finite or is out of bounds.
    """
    array = np.asarray(action, dtype=np.float64)
    if array.shape != (1,):
        raise ValueError(f"action must have shape (1,), got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"action must be finite and in [-1, 1], got {array[0]}")
    if abs(array[0]) > 1.0:
        raise ValueError(
            f"action must be in [-1, 1], got {array[0]}; gymnasium.wrappers.ClipAction clips"
        )
    low, high = interval
    return float(low + (array[0] + 1.0) / 2.0 * (high - low))
