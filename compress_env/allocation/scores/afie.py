"""AFIE: the average filter information entropy of each layer (Lu et al., arXiv 2208.06660).

Shapes: N filters (output channels), C input channels, H x W kernel, p singular values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from compress_env.task.layers import compute_layers

__all__ = ["afie", "entropy_of"]


def afie(model: nn.Module) -> pd.DataFrame:
    """Score every convolution and linear layer by the entropy of its singular values.

    The weight, averaged over the kernel, is a matrix M (N x C). Its p = min(N, C) singular values
    are brought to [0, 1] by min-max scaling, turned into probabilities by a softmax, and

        K = - sum_i p_i ln p_i ,        AFIE = K / N .

    A low score means redundant filters. K is at most ln p and, as the softmax of numbers in [0, 1]
    is nearly flat, at least ln p - 0.1234 for any weights **(ours)**. `width_only` = ln(p) / N
    is what the score would be if they did not matter at all **(ours)**.

    With a single input channel (grey images, depthwise convolutions) the averaged matrix would have
    one singular value, whose entropy is 0 whatever the weights: there the kernel is not averaged,
    and M is (N x C H W) **(ours)**. What then still has a single singular value (one filter, or one
    input feature) scores 0. Where all singular values are equal, min-max scaling is 0/0: they count
    as equally likely **(ours)**, K = ln p.

    Args:
        model: The network; not changed.

    Returns:
        One row per layer, indexed by its dotted name, in the order of the modules:

        - `n_filters`: N.
        - `averaged`: whether the kernel was averaged.
        - `n_singular`: p.
        - `smallest`, `largest`: extremes of the singular values.
        - `entropy`: K, nats, in [0, ln p].
        - `entropy_ratio`: K / ln p; 1 where p = 1.
        - `width_only`: ln(p) / N.
        - `afie`: K / N.

    Raises:
        ValueError: If the network has no such layer, or a weight is not finite.
    """
    layers = compute_layers(model)
    if not layers:
        raise ValueError("expected a network with a Conv2d or Linear layer, got none")
    rows = {name: _score(name, layer) for name, layer in layers.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer")


def _score(name: str, layer: nn.Conv2d | nn.Linear) -> dict[str, Any]:
    weight = layer.weight.detach().double().cpu()
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"expected finite weights, got some in {name!r} that are not")
    # (N, C, H, W) -> (N, C, H*W)
    kernels = weight.reshape(weight.shape[0], weight.shape[1], -1)
    averaged = kernels.shape[1] > 1 or kernels.shape[2] == 1
    # (N, C, H*W) -> (N, C), or (N, C*H*W)
    matrix = kernels.mean(dim=2) if averaged else kernels.flatten(1)
    singular = torch.linalg.svdvals(matrix).numpy()
    n_filters, n_singular = len(weight), len(singular)
    entropy, most = entropy_of(singular), float(np.log(n_singular))
    return {
        "n_filters": n_filters,
        "averaged": averaged,
        "n_singular": n_singular,
        "smallest": singular.min(),
        "largest": singular.max(),
        "entropy": entropy,
        "entropy_ratio": entropy / most if n_singular > 1 else 1.0,
        "width_only": most / n_filters,
        "afie": entropy / n_filters,
    }


def entropy_of(singular: NDArray[np.float64]) -> float:
    """Return the entropy of min-max scaled singular values after a softmax, in nats.

    Args:
        singular: (p,) singular values, p at least 1. Differences within rounding count as none.
    """
    low, high = float(singular.min()), float(singular.max())
    is_flat = high - low <= len(singular) * np.finfo(np.float64).eps * high
    scaled = np.zeros(len(singular)) if is_flat else (singular - low) / (high - low)
    weights = np.exp(scaled)
    probabilities = weights / weights.sum()
    return max(0.0, float(-(probabilities * np.log(probabilities)).sum()))
