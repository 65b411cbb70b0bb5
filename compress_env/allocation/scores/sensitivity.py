"""SBPF: the sensitivity of each layer to damage (Lu et al., arXiv 2208.04588)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from compress_env.seeding import derive_generator
from compress_env.task.layers import compute_layers

__all__ = ["damaged", "sensitivity"]


def sensitivity(
    model: nn.Module,
    score: Callable[[nn.Module], float],
    *,
    damage: float = 1.0,
    n_trials: int = 5,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure what the network loses when one layer at a time is damaged.

    In each trial Gaussian noise of standard deviation `damage` times that of the layer's weights is
    added to them, the network is scored, and the weights are put back, bit for bit, also when the
    scorer raises. The sensitivity is

        max(0, 1 - mean score of the damaged network / score of the network as it is) .

    The steps are ours in detail **(ours)**. Noise follows from the seed, the layer and the trial
    alone, on any device. A layer whose weights are all equal cannot be damaged so, and has
    sensitivity 0.

    Args:
        model: The network, scored as it is; afterwards as it was.
        score: Returns a score, the higher the better, such as `CompressionTask.score`.
        damage: Standard deviation of the noise in those of the weights, above 0.
        n_trials: Trials for each layer, at least 1.
        layers: Names of the layers to damage; every convolution and linear layer when None.
        seed: Of the noise, 0 or more.

    Returns:
        One row per layer, indexed by its name: `weight_std`, `score` of the network as it is,
        `damaged_mean` and `damaged_std` of the scores with damage (population), `lost` (their
        difference to `score`, below 0 if damage helps) and `sensitivity`, 0 or more. The number of
        calls of `score` is 1 + layers x trials.

    Raises:
        ValueError: If an argument is out of range, a layer unknown, or the network as it is has a
            score that is not above 0.
        FloatingPointError: If a score is not finite.
    """
    known = compute_layers(model)
    names = list(known if layers is None else layers)
    _check(damage, n_trials, names, known)
    whole = _score_of(model, score, "as it is")
    if whole <= 0.0:
        raise ValueError(f"expected a score above 0 of the network as it is, got {whole}")
    rows: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(known):
        if name in names:
            scores = []
            for trial in range(n_trials):
                with damaged(known[name], damage, derive_generator(seed, number, trial)):
                    scores.append(_score_of(model, score, f"with {name!r} damaged"))
            rows[name] = _row(_stored(known[name]), whole, scores)
    return pd.DataFrame.from_dict(rows, orient="index").loc[names].rename_axis("layer")


@contextmanager
def damaged(
    layer: nn.Conv2d | nn.Linear, damage: float, generator: torch.Generator
) -> Iterator[None]:
    """Add noise to a layer's weights inside the block; afterwards they are what they were.

    Args:
        layer: The layer.
        damage: Standard deviation of the noise in those of the weights.
        generator: A CPU generator.
    """
    weight = _stored(layer)
    before = weight.clone()
    # Drawn on the CPU, so that it does not depend on the device.
    noise = torch.randn(weight.shape, generator=generator).to(weight)
    try:
        weight.add_(noise * (damage * _std(weight)))
        yield
    finally:
        weight.copy_(before)


def _stored(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """Return the values of the weight, also below a parametrization."""
    return next(p for p in layer.parameters() if p.dim() > 1).detach()


def _std(weight: Tensor) -> float:
    return float(weight.double().std(correction=0))


def _score_of(model: nn.Module, score: Callable[[nn.Module], float], state: str) -> float:
    value = float(score(model))
    if not math.isfinite(value):
        raise FloatingPointError(f"the scorer returned {value} for the network {state}")
    return value


def _row(weight: Tensor, whole: float, scores: list[float]) -> dict[str, Any]:
    mean = float(np.mean(scores))
    return {
        "weight_std": _std(weight),
        "score": whole,
        "damaged_mean": mean,
        "damaged_std": float(np.std(scores)),
        "lost": whole - mean,
        "sensitivity": max(0.0, 1.0 - mean / whole),
    }


def _check(damage: float, n_trials: int, names: list[str], known: dict[str, Any]) -> None:
    if not 0.0 < damage < math.inf:
        raise ValueError(f"damage must be above 0 and finite, got {damage}")
    if n_trials < 1:
        raise ValueError(f"n_trials must be at least 1, got {n_trials}")
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        got = repr(unknown[0]) if unknown else "none"
        raise ValueError(f"expected layers among {', '.join(known)}, got {got}")
