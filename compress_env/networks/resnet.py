"""Residual networks for small images (He et al. 2015, arXiv 1512.03385, section 4.2).

Shapes: b images, C channels of the stream, H rows, W columns.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

__all__ = [
    "ResNet",
    "Shortcut",
    "resnet",
    "resnet18_cifar",
    "resnet20",
    "resnet20_padded",
    "resnet56",
    "resnet56_padded",
    "resnet110",
    "resnet110_padded",
]

Shortcut = Literal["projection", "padding"]
"""How the stream becomes wider: options B and A of the paper."""

_WIDTHS = (16, 32, 64)
_WIDE = (64, 128, 256, 512)


class PaddedShortcut(nn.Module):
    """Takes every other pixel and adds channels of zeros on both sides, without parameters."""

    def __init__(self, n_added: int, stride: int) -> None:
        """Build the shortcut.

        Args:
            n_added: Channels to be added, an even number.
            stride: Distance of the pixels taken.
        """
        super().__init__()
        self.n_added = n_added
        self.stride = stride

    def forward(self, stream: Tensor) -> Tensor:
        """Map the stream (b, C, H, W) to (b, C + n_added, H / stride, W / stride)."""
        each = self.n_added // 2
        return pad(stream[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, each, each))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions whose result is added to the stream.

    Where the stream becomes wider, it is either projected by a 1x1 convolution or padded with
    zeros. Padding has no layer that a channel could be cut out of: a padded stream stays as wide as
    it is, and only the channels inside the blocks can go.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut = "projection"
    ) -> None:
        """Build a block with random weights.

        Args:
            in_channels: Channels of the stream before the block.
            out_channels: Channels of the stream after the block.
            stride: Stride of the first convolution and the shortcut.
            shortcut: How the stream becomes wider.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 1 and in_channels == out_channels:
            return
        if shortcut == "padding":
            self.shortcut = PaddedShortcut(out_channels - in_channels, stride)
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, stream: Tensor) -> Tensor:
        """Map the stream (b, C, H, W) to (b, out_channels, H / stride, W / stride)."""
        hidden = torch.relu(self.bn1(self.conv1(stream)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.shortcut(stream))


class ResNet(nn.Module):
    """A convolution, stages of basic blocks, each half as large as the last, and a classifier."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        blocks_per_stage: int,
        shortcut: Shortcut = "projection",
        widths: Sequence[int] = _WIDTHS,
    ) -> None:
        """Build a network with random weights.

        Args:
            num_classes: Number of logits.
            in_channels: Channels of the images.
            blocks_per_stage: Basic blocks in each stage, n; the paper's depth is 6 n + 2.
            shortcut: How the stream becomes wider.
            widths: Channels of the stream in each stage.
        """
        super().__init__()
        self.conv = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.stages = nn.Sequential(
            *(
                _stage(before, width, blocks_per_stage, 1 if number == 0 else 2, shortcut)
                for number, (before, width) in enumerate(pairwise((widths[0], *widths)))
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images (b, C, H, W) to logits (b, num_classes)."""
        stream = self.stages(torch.relu(self.bn(self.conv(images))))
        # (b, N, 1, 1) -> (b, N)
        logits: Tensor = self.fc(self.pool(stream).flatten(1))
        return logits


def _stage(
    in_channels: int, out_channels: int, n_blocks: int, stride: int, shortcut: Shortcut
) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, shortcut)
    others = (BasicBlock(out_channels, out_channels, 1) for _ in range(n_blocks - 1))
    return nn.Sequential(first, *others)


def resnet(
    num_classes: int,
    image_shape: tuple[int, int, int],
    *,
    depth: int,
    shortcut: Shortcut = "projection",
) -> nn.Module:
    """Residual network for images of at least 8x8.

    With padding, for 3 channels and 10 classes, ResNet-20, 56 and 110 have the 269,722, 853,018 and
    1,727,962 parameters of the paper. Projections add 16 * 32 + 32 * 64 = 2,560, and their
    batch-norms 2 * (32 + 64) = 192.

    Args:
        num_classes: Number of logits.
        image_shape: Shape of one image, (C, H, W).
        depth: Layers with weights, projections not counted: 6 n + 2.
        shortcut: How the stream becomes wider.

    Raises:
        ValueError: If the images are too small, or there is no network of that depth.
    """
    channels, height, width = image_shape
    if min(height, width) < 8:
        raise ValueError(f"resnet{depth} takes images of at least 8x8, got {height}x{width}")
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6 n + 2 for a whole n of at least 1, got {depth}")
    return ResNet(num_classes, channels, (depth - 2) // 6, shortcut)


def resnet18_cifar(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """ResNet-18 (section 4.1) in the form commonly used on CIFAR, for images of at least 8x8.

    A 3x3 first convolution of stride 1 without pooling, then four stages of two blocks with 64 to
    512 channels: 11,173,962 parameters for 3 channels and 10 classes.
    """
    channels, height, width = image_shape
    if min(height, width) < 8:
        raise ValueError(f"resnet18_cifar takes images of at least 8x8, got {height}x{width}")
    return ResNet(num_classes, channels, 2, widths=_WIDE)


resnet20 = functools.partial(resnet, depth=20)
"""ResNet-20 with projections, for small images."""
resnet56 = functools.partial(resnet, depth=56)
"""ResNet-56 with projections."""
resnet110 = functools.partial(resnet, depth=110)
"""ResNet-110 with projections."""
resnet20_padded = functools.partial(resnet, depth=20, shortcut="padding")
"""ResNet-20 with the parameter-free shortcuts of the paper."""
resnet56_padded = functools.partial(resnet, depth=56, shortcut="padding")
"""ResNet-56 with these."""
resnet110_padded = functools.partial(resnet, depth=110, shortcut="padding")
"""ResNet-110 with these."""
