"""What an environment says of the layer about to be decided, and remembers of the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compress_env.store.store import Transition
from compress_env.task.layers import (
    Layer,
    compute_layers,
    describe_layer,
    nonzero_params,
)
from compress_env.task.rewards import RewardInput

__all__ = [
    "COSTS",
    "LayerDecision",
    "LayerState",
    "action_to_value",
    "describe_costs",
    "describe_failure",
    "describe_network",
    "failed_transition",
    "is_within",
    "live_layer",
    "replace_weight",
    "reward_input",
    "scale_layer",
    "scales_of",
    "share_of_room",
    "timed",
    "value_to_action",
]

ROUNDING = 1e-5
"""How far an action may lie outside its bounds."""
COUNTS = ("out_channels", "in_channels", "kernel_height", "kernel_width", "stride", "macs")


COSTS = ("dense_macs", "dense_params", "sparse_macs", "sparse_params")
"""What `info` tells of every `Transition`."""


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
    cost: float | None


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


def share_of_room(least: float, lowest: float, limit: float) -> float:
    """Return the share of a budget's room that is left, in [0, 1]; 0 where there is none.

    Args:
        least: The least that can still be had.
        lowest: The least that there is.
        limit: What the budget allows.
    """
    room = limit - lowest
    return min(max((limit - least) / room, 0.0), 1.0) if room > 0 else 0.0


def describe_network(
    model: nn.Module,
    positions: dict[str, int],
    other_macs: int,
    layer: str,
    accuracy: float | None,
) -> Transition:
    """Measure what a network costs, and the layer to be decided next.

    Args:
        model: The live network.
        positions: Output positions per image of each layer, by name.
        other_macs: Multiply-accumulates per image of all other operations.
        layer: Name of the layer to be decided next.
        accuracy: Validation accuracy, None where the network is not scored.
    """
    layers = compute_layers(model)
    table = {name: describe_layer(name, layers[name], n) for name, n in positions.items()}
    live = table[layer]
    parameters = list(model.parameters())
    weights, others = nonzero_params(layers, parameters)
    return Transition(
        accuracy,
        other_macs + sum(row.macs for row in table.values()),
        sum(p.numel() for p in parameters),
        other_macs + sum(n * weights[name] for name, n in positions.items()),
        sum(weights.values()) + others,
        [weights[name] for name in positions],
        live.out_channels,
        live.in_channels,
    )


def replace_weight(before: Transition, table: Sequence[Layer], t: int, n_left: int) -> Transition:
    """Return what a network is after layer `t` alone has got another weight of the same shape.

    Args:
        before: The network with the former weight, layer `t` about to be decided.
        table: Its layers; all of them are decided, in this order.
        t: Number of the layer, not the last one.
        n_left: Non-zero elements of the new weight.
    """
    gone = before.nonzeros[t] - n_left
    return before._replace(
        accuracy=None,
        sparse_macs=before.sparse_macs - table[t].positions * gone,
        sparse_params=before.sparse_params - gone,
        nonzeros=[*before.nonzeros[:t], n_left, *before.nonzeros[t + 1 :]],
        out_channels=table[t + 1].out_channels,
        in_channels=table[t + 1].in_channels,
        size_bytes=0,
    )


def live_layer(planned: Layer, now: Transition) -> Layer:
    """Return the layer to be decided next as it is now, from what it was before compression."""
    kernel = planned.kernel_height * planned.kernel_width
    n_weights = now.out_channels * now.in_channels * kernel // planned.groups
    return planned._replace(
        out_channels=now.out_channels, in_channels=now.in_channels, n_weights=n_weights
    )


def reward_input(now: Transition, cost: tuple[float, float, float]) -> RewardInput:
    """Return what a reward is computed from.

    Args:
        now: The network after a step; accuracy counts as 0 where it is not scored.
        cost: The live cost, and the lowest and highest cost there is.
    """
    return RewardInput(now.accuracy or 0.0, *cost, now.dense_macs, now.dense_params)


def is_within(found: Transition, bound: Transition, is_scored: bool) -> bool:
    """Return whether a network of this task can have come to what a store says.

    Args:
        found: What it says, each field possible by itself.
        bound: The uncompressed network, at the widest layer of its walk.
        is_scored: Whether the step is scored.
    """
    if found.error is not None:
        return found.accuracy is None
    most = max(bound.dense_params, bound.sparse_params)
    return (
        (found.accuracy is not None) == is_scored
        and (found.size_bytes > 0) == (is_scored and bound.size_bytes > 0)
        and found.size_bytes <= 2 * bound.size_bytes + 2**16  # a packed file has its scales
        and found.dense_macs <= bound.dense_macs
        and found.dense_params <= bound.dense_params
        and found.sparse_macs <= max(bound.dense_macs, bound.sparse_macs)
        and found.sparse_params <= most
        and len(found.nonzeros) == len(bound.nonzeros)
        and max(found.nonzeros, default=0) <= most
        and 1 <= found.out_channels <= bound.out_channels
        and 1 <= found.in_channels <= bound.in_channels
    )


def describe_costs(now: Transition) -> dict[str, Any]:
    """Return what `info` says of a network, whatever is decided."""
    spread = {} if now.information_std is None else {"information_std": now.information_std}
    return {name: getattr(now, name) for name in COSTS} | spread


def failed_transition(uncompressed: Transition, planned: Layer) -> Transition:
    """Return what is shown after a step has failed: the uncompressed network at its layer."""
    return uncompressed._replace(out_channels=planned.out_channels, in_channels=planned.in_channels)


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the seconds that the block takes to those of a phase, but for phases within it."""
    start, before = perf_counter(), sum(seconds.values())
    try:
        yield
    finally:
        within = sum(seconds.values()) - before
        seconds[phase] = seconds.get(phase, 0.0) + perf_counter() - start - within


def describe_failure(failure: Exception) -> str:
    """Return the kind of an error and the first line of its message."""
    reason = next(iter(str(failure).splitlines()), "no reason given")
    return f"{type(failure).__name__}: {reason}"


def action_to_value(
    action: NDArray[Any], interval: tuple[float, float], prior: float | None = None
) -> float:
    """Map an action onto the interval of the layer about to be decided, affinely in two parts.

    Args:
        action: (1,) in [-1, 1]; beyond by no more than rounding, as `RescaleAction` may give it, is
            clipped.
        interval: What -1 and 1 stand for.
        prior: What 0 stands for, within the interval; None for its middle.

    Raises:
        ValueError: If the action has the wrong shape, is not finite or is out of bounds.
    """
    array = np.asarray(action, dtype=np.float64)
    if array.shape != (1,):
        raise ValueError(f"action must have shape (1,), got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"action must be finite and in [-1, 1], got {array[0]}")
    if abs(array[0]) > 1.0 + ROUNDING:
        raise ValueError(
            f"action must be in [-1, 1], got {array[0]}; gymnasium.wrappers.ClipAction clips"
        )
    low, high = interval
    clipped = float(min(max(array[0], -1.0), 1.0))
    if prior is None:
        return float(low + (clipped + 1.0) / 2.0 * (high - low))
    value = prior + abs(clipped) * ((low if clipped < 0.0 else high) - prior)
    return float(min(max(value, low), high))


def value_to_action(
    value: float, interval: tuple[float, float], prior: float | None = None
) -> NDArray[np.float32]:
    """Return the action that `action_to_value` maps onto a value, (1,) float32 in [-1, 1].

    Args:
        value: What it is to stand for; clipped to the interval.
        interval: What -1 and 1 stand for.
        prior: What 0 stands for, within the interval; None for its middle.
    """
    low, high = interval
    middle = (low + high) / 2.0 if prior is None else prior
    away = min(max(value, low), high) - middle
    if away == 0.0:
        return np.zeros(1, np.float32)
    return np.array([away / abs((low if away < 0.0 else high) - middle)], np.float32)
