"""Variational pruning: which elements of a layer's weight go, by the information its outputs keep.

Information dropout (Achille & Soatto, arXiv 1611.01353) multiplies a unit's output f(x) by
log-normal noise of mean 1 whose width alpha(x) is learnt. A unit that needs its value narrows the
noise, at a price, the KL divergence to a prior; the price that a unit pays is the information that
it keeps, and with it the saliency of the weights that lead to it.

Shape legend: b images, N output channels, C input channels, D inputs of one output unit (input
channels times the elements of a kernel).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from compress_env.names import check_name

__all__ = [
    "ALPHA_MAX",
    "AlphaForm",
    "InformationDropout",
    "kl_log_normal",
    "kl_log_uniform",
    "log_normal_moments",
    "noise_of",
    "normal_from_moments",
    "remove_elements",
    "saliency",
]

AlphaForm = Literal["channel", "layer"]
"""What the width of a unit's noise follows from: its own output, or a second layer's."""
ALPHA_MAX = 0.7
"""Largest noise of a unit."""
MIN_INFORMATION = 1e-3
"""Keeps the saliency of units without information above zero, in nats."""


def noise_of(alpha: Tensor, xi: Tensor) -> Tensor:
    """Return log-normal noise of mean 1: ``eps = exp(alpha xi - alpha^2 / 2)``.

    Args:
        alpha: Standard deviation of ``log eps``, positive.
        xi: Standard normal numbers, broadcastable.
    """
    return torch.exp(alpha * xi - alpha.square() / 2)


def log_normal_moments(mu: float, sigma: float) -> tuple[float, float]:
    """Return mean and variance of ``exp(N(mu, sigma^2))``."""
    mean = math.exp(mu + sigma**2 / 2)
    return mean, mean**2 * math.expm1(sigma**2)


def normal_from_moments(mean: float, variance: float) -> tuple[float, float]:
    """Return mu and sigma of the normal under a log-normal with the given mean and variance.

    The inverse of :func:`log_normal_moments`: ``sigma^2 = log(1 + variance / mean^2)`` and
    ``mu = log(mean) - sigma^2 / 2``.

    Raises:
        ValueError: If the mean is not positive or the variance is negative.
    """
    if not mean > 0.0 or not variance >= 0.0:
        raise ValueError(f"expected mean > 0 and variance >= 0, got {mean} and {variance}")
    sigma_squared = math.log1p(variance / mean**2)
    return math.log(mean) - sigma_squared / 2, math.sqrt(sigma_squared)


def kl_log_uniform(alpha: Tensor, alpha_max: float = ALPHA_MAX) -> Tensor:
    """KL divergence to the log-uniform prior, up to its constant: ``-log(alpha / alpha_max)``.

    For units that may be zero, as after a ReLU (Achille & Soatto, Prop. 4). Zero at alpha_max.

    Args:
        alpha: Width of the noise, in (0, alpha_max].
        alpha_max: The largest width.

    Returns:
        Nats, at least 0, the shape of ``alpha``.
    """
    return math.log(alpha_max) - torch.log(alpha)


def kl_log_normal(alpha: Tensor, features: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """KL divergence of ``f eps`` to a log-normal prior, for features that are positive.

    With ``log(f eps) ~ N(log f - alpha^2 / 2, alpha^2)`` and the prior ``N(mu, sigma^2)`` of the
    logarithm it is ``log(sigma / alpha) + (alpha^2 + (log f - alpha^2 / 2 - mu)^2) /
    (2 sigma^2) - 1 / 2`` (Achille & Soatto, Prop. 5).

    Args:
        alpha: Width of the noise, positive.
        features: f, positive, as after a softplus.
        mu: Mean of the prior's logarithm.
        sigma: Its standard deviation, positive.

    Returns:
        Nats, at least 0, the broadcast shape.
    """
    variance = alpha.square()
    shift = torch.log(features) - variance / 2 - mu
    return torch.log(sigma / alpha) + (variance + shift.square()) / (2 * sigma.square()) - 0.5


class InformationDropout(nn.Module):
    """Multiplies a layer's output by noise whose width it learns.

    Where the width of a unit's noise comes from, the paper leaves open. With ``form="channel"``
    **(ours)** it is ``alpha_n(x) = alpha_max sigmoid(u_n f_n(x) + v_n)``, two parameters per
    channel; with ``form="layer"`` it is what a second layer makes of all channels at a place,
    ``alpha_n(x) = alpha_max sigmoid(sum_m U_nm f_m(x) + v_n)``, a 1x1 convolution or a linear
    layer, as implementations of information dropout have it.

    In evaluation mode the output passes unchanged: the noise has mean 1. Either way `information`
    and `divergence` hold the KL divergence of the last pass.

    Args:
        n_channels: N.
        dim: Dimension of the channels: 1 for a convolution's output, -1 for a linear layer's.
        is_positive: Whether the features are positive, as after a softplus; the prior is then
            log-normal with a learnt mean and width, otherwise log-uniform.
        alpha_max: Largest width of the noise.
        form: What the width of a unit's noise follows from.

    Raises:
        ValueError: If there is no such form.
    """

    information: Tensor
    """KL divergence of one unit of each channel, mean over images and positions, (N,), in nats."""
    divergence: Tensor
    """KL divergence of all units of an image together, mean over images, (), in nats."""

    def __init__(
        self,
        n_channels: int,
        dim: int,
        is_positive: bool = False,
        alpha_max: float = ALPHA_MAX,
        form: AlphaForm = "channel",
    ) -> None:
        """Begin at half the largest width, whatever the features are."""
        super().__init__()
        check_name("alpha", form, get_args(AlphaForm))
        self.dim = dim
        self.is_positive = is_positive
        self.alpha_max = alpha_max
        self.form = form
        shape = (n_channels,) if form == "channel" else (n_channels, n_channels)
        self.slope = nn.Parameter(torch.zeros(shape))
        self.offset = nn.Parameter(torch.zeros(n_channels))
        self.prior_mu = nn.Parameter(torch.zeros(n_channels))
        self.prior_log_sigma = nn.Parameter(torch.zeros(n_channels))

    def alpha(self, features: Tensor) -> Tensor:
        """Return the width of the noise, in (0, alpha_max], the shape of ``features``."""
        if self.form == "channel":
            slope, offset = (self._along(p, features) for p in (self.slope, self.offset))
            logits = slope * features + offset
        else:
            # (b, N, H, W) -> (b, H, W, N) and back; (b, N) stays
            last = features.movedim(self.dim, -1)
            logits = linear(last, self.slope, self.offset).movedim(-1, self.dim)
        floor = torch.finfo(features.dtype).tiny
        return (self.alpha_max * torch.sigmoid(logits)).clamp_min(floor)

    def kl(self, features: Tensor) -> Tensor:
        """Return the KL divergence to the prior, in nats, the shape of ``features``."""
        return self._kl(self.alpha(features), features)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features times the noise, when training."""
        alpha = self.alpha(features)
        kl = self._kl(alpha, features)
        others = [d for d in range(features.dim()) if d != self.dim % features.dim()]
        self.information = kl.mean(others)
        self.divergence = kl.sum() / len(kl)
        return features * noise_of(alpha, torch.randn_like(alpha)) if self.training else features

    def _kl(self, alpha: Tensor, features: Tensor) -> Tensor:
        if not self.is_positive:
            return kl_log_uniform(alpha, self.alpha_max)
        mu, log_sigma = (self._along(p, features) for p in (self.prior_mu, self.prior_log_sigma))
        floor = torch.finfo(features.dtype).tiny
        return kl_log_normal(alpha, features.clamp_min(floor), mu, log_sigma.exp())

    def _along(self, parameter: Tensor, features: Tensor) -> Tensor:
        shape = [1] * features.dim()
        shape[self.dim] = -1
        return parameter.view(shape)


def saliency(weight: Tensor, input_rms: Tensor, information: Tensor) -> Tensor:
    """Return how much each element of a weight matters: ``|w| rms(x_c) (I_n + 1e-3)`` **(ours)**.

    Args:
        weight: Flattened weight, (N, D).
        input_rms: Root mean square of each input, (D,).
        information: I_n, information that each output channel keeps, (N,), in nats.

    Returns:
        (N, D), at least 0.
    """
    return weight.abs() * input_rms * (information.clamp_min(0.0) + MIN_INFORMATION)[:, None]


def remove_elements(
    scores: Tensor, n_remove: int, temperature: float, generator: torch.Generator
) -> Tensor:
    """Choose elements at random without replacement, the less salient the likelier.

    Gumbel top-k on ``-log s / temperature``: an element is chosen first with probability
    proportional to ``s^(-1 / temperature)``, and so on with those left (Kool et al., 2019, arXiv
    1903.06059).

    Args:
        scores: Saliencies, any shape, at least 0. Elements of saliency 0 go before all others.
        n_remove: How many to choose, exactly.
        temperature: 0 chooses the least salient ones, without chance; larger is more random.
        generator: A CPU generator, not drawn from at temperature 0.

    Returns:
        Boolean, the shape of ``scores``, True where an element is chosen.

    Raises:
        ValueError: If `n_remove` is not in 0..number of elements, or the temperature is negative.
    """
    if not 0 <= n_remove <= scores.numel():
        raise ValueError(f"expected n_remove in 0..{scores.numel()}, got {n_remove}")
    if not temperature >= 0.0:
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    flat = scores.detach().double().flatten()
    priority = -torch.log(flat)  # infinite for elements that do nothing
    if temperature > 0.0:
        uniform = torch.rand(flat.shape, generator=generator, dtype=torch.float64)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
        priority = priority / temperature + gumbel.to(flat.device)
    # Sorted stably, so that ties do not depend on the device.
    order = torch.argsort(priority, descending=True, stable=True)
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[order[:n_remove]] = True
    return chosen.reshape(scores.shape)
