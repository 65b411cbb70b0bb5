"""A small densely connected network (Huang et al. 2016, arXiv 1608.06993).

Shapes: b images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

__all__ = ["DenseLayer", "densenet_small"]

_GROWTH = 8  # channels that each layer adds
_BOTTLENECK = 4  # channels of a bottleneck, in multiples of the growth


class DenseLayer(nn.Module):
    """Adds new channels, computed from all channels so far, to these."""

    def __init__(self, in_channels: int) -> None:
        """Build a layer with random weights for `in_channels` channels."""
        super().__init__()
        hidden = _BOTTLENECK * _GROWTH
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, _GROWTH, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (b, C, H, W) to (b, C + growth, H, W)."""
        hidden = self.conv1(torch.relu(self.bn1(features)))
        return torch.cat([features, self.conv2(torch.relu(self.bn2(hidden)))], 1)


def densenet_small(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Three blocks of four dense layers, for images of at least 8x8 **(ours in detail)**.

    Deep but cheap: made for images of 16x16.
    """
    channels, height, width = image_shape
    if min(height, width) < 8:
        raise ValueError(f"densenet_small takes images of at least 8x8, got {height}x{width}")
    n_channels = 16
    features: list[nn.Module] = [nn.Conv2d(channels, n_channels, 3, padding=1, bias=False)]
    for block in range(3):
        if block > 0:
            features += _transition(n_channels, n_channels // 2)
            n_channels //= 2
        for _ in range(4):
            features.append(DenseLayer(n_channels))
            n_channels += _GROWTH
    features += [nn.BatchNorm2d(n_channels), nn.ReLU()]
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*features),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),  # (b, N, 1, 1) -> (b, N)
            fc=nn.Linear(n_channels, num_classes),
        )
    )


def _transition(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.AvgPool2d(2),
    ]
