"""Networks without branches: LeNet-5, one of four layers, and AlexNet and VGG for small images.

LeNet-5 and the network of four layers are there with softplus too, for which information dropout
has another prior.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

__all__ = [
    "alexnet_small",
    "cnn4",
    "cnn4_softplus",
    "lenet5",
    "lenet5_softplus",
    "vgg8",
    "vgg16",
    "vgg19",
]


def lenet5(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """LeNet-5 (LeCun et al., 1998) with ReLU and max-pooling.

    Images smaller than 32x32 are padded in the first convolution, so that the number of parameters
    depends on the channels and the classes only: 61,706 for 1 channel and 10 classes.
    """
    channels, height, width = image_shape
    if max(height, width) > 32:
        raise ValueError(f"lenet5 takes images of up to 32x32, got {height}x{width}")
    padding = (math.ceil((32 - height) / 2), math.ceil((32 - width) / 2))
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 6, 5, padding=padding),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),  # (b, 16, 5, 5) -> (b, 400)
            fc1=nn.Linear(16 * 5 * 5, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, num_classes),
        )
    )


def cnn4(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Two 3x3 convolutions and two linear layers, for images of at least 4x4.

    Zhan, Lin & Cao (arXiv 1912.02254, Fig. 6) compare ways of pruning on a network of four layers;
    its widths are **(ours)**.
    """
    channels, height, width = image_shape
    if min(height, width) < 4:
        raise ValueError(f"cnn4 takes images of at least 4x4, got {height}x{width}")
    n_features = 64 * (height // 4) * (width // 4)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 32, 3, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),  # (b, 64, H / 4, W / 4) -> (b, 4 H W)
            fc1=nn.Linear(n_features, 128),
            relu3=nn.ReLU(),
            fc2=nn.Linear(128, num_classes),
        )
    )


def lenet5_softplus(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """LeNet-5 as in `lenet5` with softplus, ``log(1 + exp(x))``, in place of ReLU."""
    return _with_softplus(lenet5(num_classes, image_shape))


def cnn4_softplus(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """The network of four layers as in `cnn4` with softplus, ``log(1 + exp(x))``, for ReLU."""
    return _with_softplus(cnn4(num_classes, image_shape))


def _with_softplus(network: nn.Module) -> nn.Module:
    """Return the layers of a sequence with every `reluN` replaced by a `softplusN`."""
    return nn.Sequential(
        OrderedDict(
            (name.replace("relu", "softplus"), nn.Softplus())
            if isinstance(module, nn.ReLU)
            else (name, module)
            for name, module in network.named_children()
        )
    )


def alexnet_small(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Five convolutions and three linear layers, for images of at least 8x8 **(ours in detail)**.

    The order of layers and poolings is that of AlexNet (Krizhevsky et al. 2012); kernels are 3x3,
    it is much narrower, and there is neither dropout nor response normalisation.
    """
    _check_size("alexnet_small", image_shape, 8)
    channels, height, width = image_shape
    n_features = 48 * (height // 8) * (width // 8)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 16, 3, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(16, 40, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            conv3=nn.Conv2d(40, 64, 3, padding=1),
            relu3=nn.ReLU(),
            conv4=nn.Conv2d(64, 64, 3, padding=1),
            relu4=nn.ReLU(),
            conv5=nn.Conv2d(64, 48, 3, padding=1),
            relu5=nn.ReLU(),
            pool5=nn.MaxPool2d(2),
            flatten=nn.Flatten(),  # (b, 48, H / 8, W / 8) -> (b, 48 H W / 64)
            fc1=nn.Linear(n_features, 256),
            relu6=nn.ReLU(),
            fc2=nn.Linear(256, 128),
            relu7=nn.ReLU(),
            fc3=nn.Linear(128, num_classes),
        )
    )


def vgg16(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """VGG-16 for images of at least 32x32: 13 convolutions with batch-norm, one linear layer.

    The form commonly used on CIFAR; 14,724,042 parameters for 3 channels and 10 classes.
    """
    _check_size("vgg16", image_shape, 32)
    return _vgg(num_classes, image_shape[0], ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 5)


def vgg19(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """VGG-19 for images of at least 32x32: 16 convolutions with batch-norm, one linear layer.

    The form commonly used on CIFAR; 20,035,018 parameters for 3 channels and 10 classes.
    """
    _check_size("vgg19", image_shape, 32)
    return _vgg(num_classes, image_shape[0], ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)), 5)


def vgg8(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """A narrow VGG of eight convolutions and a linear layer, for images of at least 8x8 **(ours)**.

    Deep but cheap: made for images of 16x16.
    """
    _check_size("vgg8", image_shape, 8)
    return _vgg(num_classes, image_shape[0], ((16, 2), (32, 2), (64, 2), (64, 2)), 3)


def _check_size(name: str, image_shape: tuple[int, int, int], smallest: int) -> None:
    _, height, width = image_shape
    if min(height, width) < smallest:
        raise ValueError(
            f"{name} takes images of at least {smallest}x{smallest}, got {height}x{width}"
        )


def _vgg(
    num_classes: int, channels: int, stages: Sequence[tuple[int, int]], n_pools: int
) -> nn.Module:
    """Stages of (width, convolutions), the first `n_pools` followed by max-pooling."""
    features: list[nn.Module] = []
    for stage, (width, n_convolutions) in enumerate(stages):
        for _ in range(n_convolutions):
            features += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels = width
        if stage < n_pools:
            features.append(nn.MaxPool2d(2))
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*features),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),  # (b, N, 1, 1) -> (b, N)
            fc=nn.Linear(channels, num_classes),
        )
    )
