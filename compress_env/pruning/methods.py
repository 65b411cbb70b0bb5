"""What can be removed and how it is selected, by name, and which settings go together."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_env.names import check_name
from compress_env.pruning.channels.selection import (
    select_at_random,
    select_by_lasso,
    select_by_magnitude,
)
from compress_env.pruning.channels.statistics import LayerStatistics

__all__ = ["CHANNEL_SHARES", "MacsKind", "PruningMethod", "check_arguments", "select_channels"]

PruningMethod = Literal[
    "magnitude",
    "magnitude+reconstruction",
    "channel",
    "variational",
    "channel+variational",
    "random",
]
"""How channels and elements are selected."""
MacsKind = Literal["dense", "sparse"]
"""Multiply-accumulates of tensors as they are, or of non-zeros."""
CHANNEL_SHARES = {
    "magnitude": 1.0,
    "magnitude+reconstruction": 1.0,
    "channel": 1.0,
    "variational": 0.0,
    "channel+variational": 0.5,
    "random": 1.0,
}
"""Share of the rate that falls on channels, by method."""


def check_arguments(
    method: str,
    max_pruning_rate: float,
    channel_share: float | None,
    macs: str | None,
) -> None:
    """Check the settings of pruning that nothing else checks.

    Raises:
        ValueError: If a name is unknown, a setting out of range or without a meaning here.
    """
    check_name("method", method, CHANNEL_SHARES)
    if not 0.0 < max_pruning_rate <= 1.0:
        raise ValueError(f"max_pruning_rate must be in (0, 1], got {max_pruning_rate}")
    if channel_share is not None and method != "channel+variational":
        raise ValueError(f"channel_share is for method 'channel+variational', not {method!r}")
    if channel_share is not None and not 0.0 < channel_share < 1.0:
        raise ValueError(f"channel_share must be in (0, 1), got {channel_share}")
    if macs is not None:
        check_name("macs", macs, get_args(MacsKind))


def select_channels(
    method: PruningMethod,
    statistics: LayerStatistics | None,
    weight: Tensor,
    columns: Tensor,
    n_keep: int,
    generator: torch.Generator,
) -> NDArray[np.int64]:
    """Return the channels of a group that stay, (n_keep,), as numbers within the group.

    Args:
        method: How they are selected.
        statistics: Of the layer; None for methods that look at no image.
        weight: (N, D) of the layer.
        columns: (n_channels, k) columns of the weight that each channel of the group owns.
        n_keep: How many stay.
        generator: Of random choices.
    """
    if n_keep == len(columns):
        return np.arange(len(columns))
    if method == "random":
        keep = select_at_random(len(columns), n_keep, generator)
    elif statistics is None or method == "magnitude+reconstruction":
        keep = select_by_magnitude(weight, columns, n_keep)
    else:
        keep = select_by_lasso(statistics, weight, columns, n_keep)
    return np.asarray(keep.cpu().numpy(), np.int64)
