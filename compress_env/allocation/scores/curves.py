"""What one decision alone does to the answers: KL divergences of the logits.

Shapes: T decisions, B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from compress_env.allocation.ladder import Ladder

__all__ = ["Probes", "kl_curves", "kl_divergence", "losses_at", "rungs_to_measure"]

N_RATES = 9
"""Rates of a decision that are measured."""


class Probes(NamedTuple):
    """How networks with a single decision carried out come about, and what they answer."""

    network: Callable[[int, float | None], nn.Module]
    """Returns the network with one decision carried out at a value, batch-norm statistics estimated
    anew; at None with these estimated anew on the same images, and nothing else done."""
    answers: Callable[[nn.Module], Tensor]
    """Returns the logits of a network on the same training images each time, (B, K)."""


def kl_curves(probes: Probes, values: Sequence[Sequence[float]]) -> list[NDArray[np.float64]]:
    """Return the divergence of the answers when one decision alone is carried out at each value.

    It is KL(before || after), the mean over images, in nats. Statistics of batch norms before are
    estimated on the same images as after, so that doing nothing comes to 0 **(ours)**. No label is
    looked at.

    Args:
        probes: How networks come about and answer.
        values: Values of each decision, T sequences.

    Returns:
        T arrays, one divergence for each value, 0 or more.

    Raises:
        FloatingPointError: If an answer is not finite.
    """
    curves = []
    for t, each in enumerate(values):
        before = probes.answers(probes.network(t, None))
        after = (probes.answers(probes.network(t, value)) for value in each)
        curves.append(np.array([kl_divergence(before, logits) for logits in after], np.float64))
    return curves


def kl_divergence(before: Tensor, after: Tensor) -> float:
    """Return KL(before || after) of logits (B, K), the mean over images, in nats.

    Raises:
        FloatingPointError: If a logit is not finite.
    """
    if not bool(torch.isfinite(before).all() and torch.isfinite(after).all()):
        raise FloatingPointError("expected finite logits, got some that are not")
    p, q = log_softmax(before.double(), dim=1), log_softmax(after.double(), dim=1)
    return max(0.0, float((p.exp() * (p - q)).sum(dim=1).mean()))  # below 0 by rounding alone


def rungs_to_measure(ladder: Ladder, n_rates: int = N_RATES) -> NDArray[np.int64]:
    """Return the rungs, `n_rates` at most, at about equal steps of what is removed; not the first.

    Args:
        ladder: Of a decision.
        n_rates: How many.
    """
    wanted = np.linspace(0.0, ladder.shares[-1], n_rates + 1)[1:]
    # (n, K) -> (n,)
    nearest = np.abs(ladder.shares - wanted[:, None]).argmin(axis=1)
    rungs: NDArray[np.int64] = np.unique(nearest[nearest > 0])
    return rungs


def losses_at(
    ladder: Ladder, rungs: NDArray[np.int64], measured: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what is lost at every rung: what was measured at some, made monotone in the width.

    In between it is interpolated, and nothing is lost at the first rung.

    Args:
        ladder: Of a decision, K rungs.
        rungs: (n,) rising, those measured.
        measured: (n,) 0 or more.

    Returns:
        (K,) rising from 0.
    """
    rising = np.concatenate([[0.0], np.maximum.accumulate(measured)])
    shares = np.concatenate([[0.0], ladder.shares[rungs]])
    losses: NDArray[np.float64] = np.interp(ladder.shares, shares, rising)
    return losses
