"""Residual networks for small images (He et al. 2015, arXiv 1512.03385, section 4.2).

Shapes: b images, C channels of the stream, H rows, W columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ResNet", "resnet20"]

_WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions whose result is added to the stream.

    Where the stream becomes wider, a 1x1 convolution projects it (option B of the paper). Option A
    pads it with zeros, without parameters: such channels have no layer to be cut out of.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Build a block with random weights.

        Args:
            in_channels: Channels of the stream before the block.
            out_channels: Channels of the stream after the block.
            stride: Stride of the first convolution and the projection.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, stream: Tensor) -> Tensor:
        """Map the stream (b, C, H, W) to (b, out_channels, H / stride, W / stride)."""
        hidden = torch.relu(self.bn1(self.conv1(stream)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.shortcut(stream))


class ResNet(nn.Module):
    """A convolution, three stages of basic blocks with 16, 32 and 64 channels, and a classifier."""

    def __init__(self, num_classes: int, in_channels: int, blocks_per_stage: int) -> None:
        """Build a network with random weights.

        Args:
            num_classes: Number of logits.
            in_channels: Channels of the images.
            blocks_per_stage: Basic blocks in each stage, n; the paper's depth is 6 n + 2.
        """
        super().__init__()
        self.conv = nn.Conv2d(in_channels, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(_WIDTHS[0])
        self.stages = nn.Sequential(
            *(
                _stage(before, width, blocks_per_stage, stride)
                for before, width, stride in zip((16, 16, 32), _WIDTHS, (1, 2, 2), strict=True)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(_WIDTHS[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images (b, C, H, W) to logits (b, num_classes)."""
        stream = self.stages(torch.relu(self.bn(self.conv(images))))
        # (b, 64, 1, 1) -> (b, 64)
        logits: Tensor = self.fc(self.pool(stream).flatten(1))
        return logits


def _stage(in_channels: int, out_channels: int, n_blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    others = (BasicBlock(out_channels, out_channels, 1) for _ in range(n_blocks - 1))
    return nn.Sequential(first, *others)


def resnet20(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """ResNet-20 for images of at least 8x8, with 1x1 projections where the stream widens.

    272,474 parameters for 3 channels and 10 classes: 269,722 with the paper's padded shortcuts,
    16 * 32 + 32 * 64 = 2,560 in the projections, and 2 * (32 + 64) = 192 in their batch norms.
    """
    channels, height, width = image_shape
    if min(height, width) < 8:
        raise ValueError(f"resnet20 takes images of at least 8x8, got {height}x{width}")
    return ResNet(num_classes, channels, blocks_per_stage=3)
