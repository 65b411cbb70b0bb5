"""Measures of information dropout: the fit of its noise, and where in an image information is kept.

Shape legend: b images, N channels, H rows, W columns, n samples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from compress_env.pruning.variational import InformationDropout, normal_from_moments
from compress_env.seeding import global_seed

__all__ = [
    "NoiseFit",
    "Regions",
    "find_regions",
    "fit_noise",
    "ks_distance",
    "masked_mean",
    "pixel_information",
    "sample_noise",
]


class NoiseFit(NamedTuple):
    """A log-normal fitted to the noise of one unit, beside the true one."""

    alpha: float
    """True standard deviation of the noise's logarithm."""
    true_mu: float
    """True mean of the noise's logarithm, ``-alpha^2 / 2``."""
    fitted_sigma: float
    """Standard deviation by the two moment equations, from the first half of the samples."""
    fitted_mu: float
    """Mean by the two moment equations, from the first half of the samples."""
    ks_fitted: float
    """Kolmogorov-Smirnov distance of the second half to the fitted log-normal."""
    p_true: float
    """p-value of the Kolmogorov-Smirnov test of all samples against the true log-normal."""


def sample_noise(dropout: InformationDropout, features: Tensor, n: int, seed: int) -> Tensor:
    """Return what training multiplies features by, as the network does it.

    Args:
        dropout: Left in evaluation mode.
        features: (1, N, H, W), none of them zero.
        n: Number of samples.
        seed: Of the noise.

    Returns:
        (n, N, H, W) on the CPU.
    """
    repeated = features.detach().expand(n, -1, -1, -1)
    dropout.train()
    try:
        with global_seed(seed, features.device), torch.no_grad():
            noise: Tensor = dropout(repeated) / repeated
    finally:
        dropout.eval()
    return noise.cpu()


def fit_noise(samples: NDArray[np.float64], alpha: float) -> NoiseFit:
    """Fit a log-normal to one half of the samples of one unit, and judge it by the other half.

    Args:
        samples: (n,) positive.
        alpha: True standard deviation of their logarithm.
    """
    first, second = np.array_split(samples, 2)
    mu, sigma = normal_from_moments(float(first.mean()), float(first.var()))
    true_mu = -(alpha**2) / 2
    true_cdf = stats.lognorm(s=alpha, scale=math.exp(true_mu)).cdf
    p_value = float(stats.kstest(samples, true_cdf).pvalue)
    return NoiseFit(alpha, true_mu, sigma, mu, ks_distance(second, mu, sigma), p_value)


def ks_distance(samples: NDArray[np.float64], mu: float, sigma: float) -> float:
    """Return the largest gap between the samples' distribution and a log-normal's, in [0, 1]."""
    cdf = stats.lognorm(s=sigma, scale=math.exp(mu)).cdf
    return float(stats.kstest(samples, cdf).statistic)


@torch.no_grad()
def pixel_information(layer: nn.Module, dropout: InformationDropout, images: Tensor) -> Tensor:
    """Return the information that a first layer keeps at each pixel, summed over its channels.

    Args:
        layer: A convolution that keeps the size of its images, in evaluation mode.
        dropout: The information dropout behind it.
        images: (b, C, H, W).

    Returns:
        (b, H, W), in nats.

    Raises:
        ValueError: If the layer's output has another size than the images.
    """
    features = layer(images)
    if features.shape[2:] != images.shape[2:]:
        raise ValueError(
            "the first layer must keep the size of its images, "
            f"got {tuple(features.shape[2:])} from {tuple(images.shape[2:])}"
        )
    return dropout.kl(features).sum(1)


class Regions(NamedTuple):
    """Parts of images, each (b, H, W), boolean."""

    strokes: Tensor
    """Pixels brighter than halfway between the image's darkest and brightest."""
    background: Tensor
    """All other pixels."""
    far: Tensor
    """Background that no kernel sees a stroke from, nor the edge of the image."""


def find_regions(images: Tensor, reach: int) -> Regions:
    """Tell strokes from background.

    Args:
        images: (b, C, H, W), light strokes on a dark background.
        reach: Pixels that a kernel sees to each side.
    """
    grey = images.mean(1, keepdim=True)
    low, high = grey.amin((2, 3), keepdim=True), grey.amax((2, 3), keepdim=True)
    level = (grey - low) / (high - low).clamp_min(torch.finfo(grey.dtype).tiny)
    strokes = level > 0.5
    # Any grey pixel may belong to the edge of a stroke; padding is seen as something else.
    seen = torch.nn.functional.pad((level > 0.0).float(), [reach] * 4, value=1.0)
    seen = max_pool2d(seen, 2 * reach + 1, stride=1)
    return Regions(strokes[:, 0], ~strokes[:, 0], seen[:, 0] == 0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return each image's mean over the pixels of a mask, (b,); NaN where there is none."""
    return (values * mask).sum((1, 2)) / mask.sum((1, 2))
