"""The keywords that every environment takes, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

import torch

from compress_env.rewards import Reward
from compress_env.store import TransitionStore
from compress_env.task import FinetuneConfig, Scorer

__all__ = [
    "SNAPSHOT_BYTES",
    "FinetuneAt",
    "RewardAt",
    "StoreOption",
    "TaskOptions",
    "check_options",
    "finetune_config_of",
    "fingerprint_of",
    "open_store",
]

RewardAt = Literal["layer", "episode"]
FinetuneAt = Literal["layer", "episode"]
StoreOption: TypeAlias = TransitionStore | Path | str | None
SNAPSHOT_BYTES = 2**28


class TaskOptions(TypedDict, total=False):
    """Keywords of every environment, described at `LayerwiseCompressionEnv`."""

    checkpoint: str | Path | None
    data_root: str | Path | None
    download: bool
    device: str | torch.device
    scorer: Scorer | None
    finetune_steps: int
    finetune_at: FinetuneAt
    finetune_config: FinetuneConfig | Mapping[str, Any] | None
    reward: str | Reward
    reward_at: RewardAt
    seed: int
    transition_noise: bool
    render_mode: str | None
    store: StoreOption
    snapshot_bytes: int


def check_options(
    counts: dict[str, Any],
    moments: Mapping[str, str],
    render_mode: str | None,
    render_modes: list[str],
) -> None:
    """Check the keywords that nothing else checks.

    Raises:
        TypeError: If a count is not an int.
        ValueError: If a count is negative or a name unknown.
    """
    for name, value in counts.items():
        if not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")
    for name, moment in moments.items():
        if moment not in ("layer", "episode"):
            raise ValueError(f"unknown {name} {moment!r}; valid: layer, episode")
    if render_mode is not None and render_mode not in render_modes:
        valid = ", ".join(render_modes)
        raise ValueError(f"unknown render_mode {render_mode!r}; valid: None, {valid}")


def finetune_config_of(option: FinetuneConfig | Mapping[str, Any] | None) -> FinetuneConfig:
    """Return the settings of fine-tuning that an option stands for.

    Raises:
        ValueError: If a field is unknown or out of range.
    """
    if isinstance(option, FinetuneConfig):
        return option
    given, known = dict(option or {}), [field.name for field in fields(FinetuneConfig)]
    for name in given:
        if name not in known:
            raise ValueError(f"unknown finetune_config {name!r}; valid: {', '.join(known)}")
    return FinetuneConfig(**given)


def fingerprint_of(scorer: Scorer | None) -> str | None:
    """Return the name of what a scorer does, None if it has none.

    Raises:
        TypeError: If the name is not a string.
    """
    fingerprint = getattr(scorer, "fingerprint", None)
    if not isinstance(fingerprint, str | None):
        raise TypeError(f"the scorer's fingerprint must be a string, got {fingerprint!r}")
    return fingerprint


def open_store(option: StoreOption, scorer: Scorer | None) -> TransitionStore | None:
    """Return the store that an option stands for.

    A scorer may say something else each time it is asked, so with one there is a store only if it
    has an attribute `fingerprint`.

    Raises:
        TypeError: If the option is something else.
    """
    if not isinstance(option, TransitionStore | Path | str | None):
        raise TypeError(
            f"store must be 'memory', a path, a TransitionStore or None, got {option!r}"
        )
    if option is None or (scorer is not None and fingerprint_of(scorer) is None):
        return None
    if isinstance(option, TransitionStore):
        return option
    return TransitionStore(None if option == "memory" else option)
