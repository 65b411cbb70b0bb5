"""What can be removed and how it is selected, by name, and which settings go together."""

from __future__ import annotations

from typing import Literal, get_args

from compress_env.names import check_name

__all__ = ["CHANNEL_SHARES", "MacsKind", "PruningMethod", "check_arguments"]

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
