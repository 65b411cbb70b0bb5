"""How much a channel weighs: norms of all weights that go with it, comparable across groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress_env.names import check_name
from compress_env.pruning.graph.groups import ChannelGroup, Member
from compress_env.pruning.graph.surgery import Decision

__all__ = ["Norm", "by_mean", "channel_norms", "lamp_scores"]

Norm = Literal["l1", "l2", "batch_norm", "lamp"]
"""What scores channels: sums of |w|, of w^2, of the scales |gamma|, or LAMP of the sums of w^2."""

_READ = (nn.modules.conv._ConvNd, nn.Linear, _BatchNorm, nn.LayerNorm)
_POWERS = {"l1": 1, "l2": 2, "batch_norm": 1, "lamp": 2}


def channel_norms(
    model: nn.Module, decisions: Sequence[Decision], norm: Norm = "l1"
) -> list[NDArray[np.float64]]:
    """Score the channels of every decision by the weights that go with them.

    A channel's weights are those of all members of its group: the filters that produce it, the
    depthwise filters and norm scales on its way, and the weights by which any layer reads it. The
    sum over them is divided by its mean over the group, so that groups compare: this is
    Torch-Pruning's `GroupMagnitudeImportance(p=1 or 2, normalizer="mean")`, with depthwise filters
    **(ours)**. `"lamp"` divides instead by the sum over all channels of the group that are not
    smaller (Lee et al., arXiv 2010.07611). `"batch_norm"` looks at scales of batch norms alone (Liu
    et al., arXiv 1708.06519), and where a group has none at `"l1"` **(ours)**.

    Args:
        model: The unpruned network.
        decisions: Its walk, as in `PruningPlan.decisions`.
        norm: What is summed.

    Returns:
        (n_t,) scores for each decision: of its groups one after the other, 0 or more.

    Raises:
        ValueError: If the norm is unknown, or a weight is not finite.
    """
    check_name("norm", norm, get_args(Norm))
    scale = lamp_scores if norm == "lamp" else by_mean
    return [
        np.concatenate([scale(_sums(model, group, norm)) for group in decision.groups])
        for decision in decisions
    ]


def by_mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide the scores of a group by their mean; if all are 0 they count as equal."""
    mean = scores.mean()
    return scores / mean if mean > 0 else np.ones_like(scores)


def lamp_scores(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide each score of a group by the sum over those that are not smaller (LAMP)."""
    order = np.argsort(scores, kind="stable")
    rising = scores[order]
    left = np.cumsum(rising[::-1])[::-1]  # of this channel and all that come after it
    result = np.empty_like(rising)
    result[order] = np.divide(rising, left, out=np.zeros_like(rising), where=left > 0)
    return result


def _sums(model: nn.Module, group: ChannelGroup, norm: Norm) -> NDArray[np.float64]:
    """Return the sum over a channel's weights for each channel of a group."""
    modules = [model.get_submodule(member.module) for member in group.members]
    has_norm = any(isinstance(module, _BatchNorm) for module in modules)
    read = _BatchNorm if norm == "batch_norm" and has_norm else _READ
    total = np.zeros(group.n_channels)
    for member, module in zip(group.members, modules, strict=True):
        weight = getattr(module, "weight", None)
        if isinstance(module, read) and isinstance(weight, Tensor):
            total += _by_channel(weight, member, _POWERS[norm])
    if not np.isfinite(total).all():
        raise ValueError(f"expected finite weights, got some that are not with {group.members[0]}")
    return total


def _by_channel(weight: Tensor, member: Member, power: int) -> NDArray[np.float64]:
    """Return the sum of |w|^power over the slices of each channel, (n_channels,)."""
    magnitude = weight.detach().double().abs().pow(power)
    # (N, C, ...) -> (N,), or (C,) where inputs are cut
    if member.side == "in":
        magnitude = magnitude.transpose(0, 1)
    slices = magnitude.flatten(1).sum(1) if magnitude.dim() > 1 else magnitude
    # (n_channels, k) -> (n_channels,)
    picked = slices.cpu()[torch.from_numpy(member.positions)].sum(1)
    sums: NDArray[np.float64] = picked.numpy()
    return sums
