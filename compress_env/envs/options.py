"""The keywords that every environment takes, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, TypeVar

import torch
from numpy.typing import NDArray

from compress_env.counts import check_count
from compress_env.names import check_name
from compress_env.store.store import TransitionStore
from compress_env.task.rewards import Reward
from compress_env.task.task import FinetuneConfig, Finetuner, Scorer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "DRAWN",
    "SEEDS",
    "SNAPSHOT_BYTES",
    "FinetuneAt",
    "PriorOption",
    "RewardAt",
    "StoreOption",
    "TaskOptions",
    "check_options",
    "config_of",
    "fingerprints_of",
    "noise_seed_of",
    "open_store",
]

RewardAt = Literal["layer", "episode"]
"""When a network is scored."""
FinetuneAt = Literal["layer", "episode"]
"""When it is fine-tuned."""
StoreOption: TypeAlias = TransitionStore | Path | str | None
"""What `store` may be."""
PriorOption: TypeAlias = str | Sequence[float] | NDArray[Any]
"""What `prior` may be."""
Functions: TypeAlias = Mapping[str, Callable[..., Any] | None]
Config = TypeVar("Config", bound="DataclassInstance")
SNAPSHOT_BYTES = 2**28
"""Default bound of the networks that are kept to start from."""
DRAWN = 2**31
"""Noise seeds that an environment draws itself are below; those from here on are left to whoever
measures what was found, so that no search ever sees them."""
SEEDS = 2**32
"""All noise seeds are below."""


class TaskOptions(TypedDict, total=False):
    """Keywords of every environment, described at `LayerwiseCompressionEnv`."""

    checkpoint: str | Path | None
    data_root: str | Path | None
    download: bool
    device: str | torch.device
    scorer: Scorer | None
    finetuner: Finetuner | None
    finetune_steps: int
    finetune_at: FinetuneAt
    finetune_config: FinetuneConfig | Mapping[str, Any] | None
    reward: str | Reward
    reward_at: RewardAt
    seed: int
    transition_noise: bool
    prior: PriorOption
    render_mode: str | None
    store: StoreOption
    snapshot_bytes: int


def check_options(
    moments: Mapping[str, str], render_mode: str | None, render_modes: list[str]
) -> None:
    """Check the keywords that nothing else checks.

    Raises:
        ValueError: If a name is unknown.
    """
    for name, moment in moments.items():
        if moment not in ("layer", "episode"):
            raise ValueError(f"unknown {name} {moment!r}; valid: layer, episode")
    if render_mode is not None and render_mode not in render_modes:
        valid = ", ".join(render_modes)
        raise ValueError(f"unknown render_mode {render_mode!r}; valid: None, {valid}")


def config_of(
    kind: type[Config],
    option: Config | Mapping[str, Any] | str | None,
    name: str,
    presets: Mapping[Any, Config] | None = None,
) -> Config:
    """Return the settings that an option stands for.

    Args:
        kind: A dataclass of settings that all have defaults.
        option: Such settings, some of them by name, or the name of a preset; None for the defaults.
        name: What the option is called.
        presets: Settings by name, if there are any.

    Raises:
        TypeError: If it is something else.
        ValueError: If a preset or a field is unknown or out of range.
    """
    if presets and isinstance(option, str):
        check_name(name, option, presets)
        return presets[option]
    if isinstance(option, kind):
        return option
    if not isinstance(option, Mapping | None):
        raise TypeError(f"{name} must be a {kind.__name__} or a mapping, got {option!r}")
    given, known = dict(option or {}), [field.name for field in fields(kind)]
    for key in given:
        if key not in known:
            raise ValueError(f"unknown {name} {key!r}; valid: {', '.join(known)}")
    return kind(**given)


def fingerprints_of(functions: Functions) -> dict[str, str | None]:
    """Return the names of what a caller's functions do, None for those that have none.

    Args:
        functions: What is called with a network, by the name of the option; None if not given.

    Raises:
        TypeError: If one cannot be called, or its fingerprint is not a string.
    """
    return {name: _fingerprint(name, function) for name, function in functions.items()}


def _fingerprint(name: str, function: Callable[..., Any] | None) -> str | None:
    if not (function is None or callable(function)):
        got = " ".join(repr(function).split())
        raise TypeError(f"{name} must be a function of a network, got {got:.80}")
    fingerprint = getattr(function, "fingerprint", None)
    if not isinstance(fingerprint, str | None):
        raise TypeError(f"the {name}'s fingerprint must be a string, got {fingerprint!r}")
    return fingerprint


def open_store(option: StoreOption, functions: Functions) -> TransitionStore | None:
    """Return the store that an option stands for.

    A caller's function may do something else each time it is called, so with one there is a store
    only if it has an attribute `fingerprint`.

    Args:
        option: The option.
        functions: As in `fingerprints_of`.

    Raises:
        TypeError: If the option is something else.
    """
    if not isinstance(option, TransitionStore | Path | str | None):
        raise TypeError(
            f"store must be 'memory', a path, a TransitionStore or None, got {option!r}"
        )
    named = fingerprints_of(functions)
    if option is None or any(
        f is not None and named[name] is None for name, f in functions.items()
    ):
        return None
    if isinstance(option, TransitionStore):
        return option
    return TransitionStore(None if option == "memory" else option)


def noise_seed_of(options: Mapping[str, Any] | None, *others: str) -> int | None:
    """Return the noise seed among the options of a reset, or None.

    Args:
        options: The options.
        others: Names of those that are valid besides.

    Raises:
        TypeError: If it is no integer.
        ValueError: If there is no such option, or it is out of range.
    """
    for name in options or {}:
        check_name("option of reset", name, ("noise_seed", *others))
    given = (options or {}).get("noise_seed")
    if given is None:
        return None
    noise_seed = check_count("noise_seed", given)
    if noise_seed >= SEEDS:
        raise ValueError(f"noise_seed must be below 2**32, got {noise_seed}")
    return noise_seed
