"""MobileNets: depthwise convolutions between 1x1 convolutions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["InvertedResidual", "mobilenet_v1", "mobilenet_v2_cifar", "mobilenet_v2_narrow"]

_V1_BLOCKS = (  # (width, stride)
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
_V2_STAGES = (  # (expansion, width, blocks, stride), Table 2 of the paper
    *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
_SMALL_IMAGE = 64  # below this, the first convolution takes every pixel


def mobilenet_v1(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """MobileNet (Howard et al. 2017, arXiv 1704.04861) of full width, for images of 16x16 or more.

    4,231,976 parameters for 3 channels and 1,000 classes. Where the images have fewer than 64 rows
    or columns the first convolution has stride 1 **(ours)**, not 2.
    """
    channels, height, width = image_shape
    if min(height, width) < 16:
        raise ValueError(f"mobilenet_v1 takes images of at least 16x16, got {height}x{width}")
    stride = 1 if min(height, width) < _SMALL_IMAGE else 2
    features = [_convolution(channels, 32, 3, stride, activation=nn.ReLU)]
    n_channels = 32
    for n_out, stride in _V1_BLOCKS:
        features += [
            _convolution(n_channels, n_channels, 3, stride, n_channels, activation=nn.ReLU),
            _convolution(n_channels, n_out, activation=nn.ReLU),
        ]
        n_channels = n_out
    return _classifier(features, n_channels, num_classes)


def mobilenet_v2_narrow(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """A narrow MobileNet-v2 (Sandler et al. 2018, arXiv 1801.04381) for images of at least 8x8.

    Ten inverted residual blocks of 8 to 32 channels, expanded four times; widths and strides are
    **(ours)**. Deep but cheap: made for images of 16x16.
    """
    channels, height, width = image_shape
    if min(height, width) < 8:
        raise ValueError(f"mobilenet_v2_narrow takes images of at least 8x8, got {height}x{width}")
    features: list[nn.Module] = [_convolution(channels, 8, 3)]
    n_channels = 8
    for n_out, n_blocks, stride in ((8, 2, 1), (16, 3, 2), (24, 3, 2), (32, 2, 1)):
        for block in range(n_blocks):
            features.append(InvertedResidual(n_channels, n_out, stride if block == 0 else 1))
            n_channels = n_out
    features.append(_convolution(n_channels, 96))
    return _classifier(features, 96, num_classes)


def mobilenet_v2_cifar(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """MobileNet-v2 (Sandler et al. 2018, arXiv 1801.04381) of full width, for images of 32x32.

    2,236,682 parameters for 3 channels and 10 classes. The first convolution and the stage of 24
    channels have stride 1, not 2, as is usual for CIFAR. Images of at least 8x8.
    """
    channels, height, width = image_shape
    if min(height, width) < 8:
        raise ValueError(f"mobilenet_v2_cifar takes images of at least 8x8, got {height}x{width}")
    features: list[nn.Module] = [_convolution(channels, 32, 3)]
    n_channels = 32
    for expansion, n_out, n_blocks, stride in _V2_STAGES:
        for block in range(n_blocks):
            first = stride if block == 0 else 1
            features.append(InvertedResidual(n_channels, n_out, first, expansion))
            n_channels = n_out
    features.append(_convolution(n_channels, 1280))
    return _classifier(features, 1280, num_classes)


class InvertedResidual(nn.Module):
    """Expands the channels, convolves each by itself, and projects them back onto the stream."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expansion: int = 4
    ) -> None:
        """Build a block with random weights; it adds to the stream where the shape stays."""
        super().__init__()
        hidden = in_channels * expansion
        self.adds = stride == 1 and in_channels == out_channels
        self.expand = _convolution(in_channels, hidden) if expansion > 1 else nn.Identity()
        self.depthwise = _convolution(hidden, hidden, 3, stride, hidden)
        self.project = _convolution(hidden, out_channels, activation=nn.Identity)

    def forward(self, stream: Tensor) -> Tensor:
        """Map the stream (b, C, H, W) to (b, out_channels, H / stride, W / stride)."""
        change: Tensor = self.project(self.depthwise(self.expand(stream)))
        return stream + change if self.adds else change


def _convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] = nn.ReLU6,
) -> nn.Module:
    """Return a convolution with batch-norm and activation."""
    padding = kernel_size // 2
    convolution = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
    )
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), activation())


def _classifier(features: Sequence[nn.Module], n_channels: int, num_classes: int) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*features),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),  # (b, N, 1, 1) -> (b, N)
            fc=nn.Linear(n_channels, num_classes),
        )
    )
