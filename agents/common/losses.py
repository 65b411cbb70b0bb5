"""Losses and targets of the agents: pure functions of tensors.

Shapes: B states, K sampled actions per state, D action dimensions.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch as th
from torch.nn import functional as F

__all__ = [
    "CIM_FORMS",
    "Advantage",
    "CIMForm",
    "adapted_coef",
    "cim_metric",
    "cim_penalty",
    "clip_fraction",
    "clipped_surrogate_loss",
    "imitation_loss",
    "parameter_shift",
    "q_loss",
    "regularized_action",
    "scale_to_unit_rms",
    "surrogate_loss",
    "td_target",
]

Advantage: TypeAlias = Literal["q", "q_baseline"]
"""Q itself, as in the paper, or Q minus its value at the policy's mean **(ours)**."""

CIMForm: TypeAlias = Literal["joint", "metric"]
"""The squared metric under one kernel of all parameters **(ours)**, or the metric itself, a mean
over kernels of one parameter each, as the literature defines it."""

COEF_RANGE = (1e-6, 1e6)
"""Bounds of an adapted coefficient."""


def clipped_surrogate_loss(
    advantages: th.Tensor,
    log_prob: th.Tensor,
    old_log_prob: th.Tensor,
    clip_range: float,
) -> th.Tensor:
    """Return the negated clipped surrogate ``-E[min(rho A, clip(rho, 1 - c, 1 + c) A)]``.

    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7; used with a Q-critic by
    Zhan, Lin & Cao 2021 (arXiv 1912.02254).

    Args:
        advantages: A, any shape, float; no gradient should flow through it.
        log_prob: log-probabilities in nats of the same actions under the policy being trained.
        old_log_prob: those under the prior policy; ``rho = exp(log_prob - old_log_prob)``.
        clip_range: c, 0 or more; ``math.inf`` switches the clipping off.

    Returns:
        A scalar to minimise.

    Raises:
        ValueError: if the shapes differ or ``clip_range`` is below 0.
    """
    _check_same_shape(advantages=advantages, log_prob=log_prob, old_log_prob=old_log_prob)
    _check_clip_range(clip_range)
    ratio = th.exp(log_prob - old_log_prob)
    clipped = th.clamp(ratio, 1.0 - clip_range, 1.0 + clip_range)
    return -th.min(ratio * advantages, clipped * advantages).mean()


def surrogate_loss(
    advantages: th.Tensor, log_prob: th.Tensor, old_log_prob: th.Tensor
) -> th.Tensor:
    """Return the negated surrogate ``-E[rho A]``, without a clip.

    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 6.

    Args:
        advantages: A, any shape, float; no gradient should flow through it.
        log_prob: log-probabilities in nats of the same actions under the policy being trained.
        old_log_prob: those under the policy that has acted.

    Returns:
        A scalar to minimise.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_same_shape(advantages=advantages, log_prob=log_prob, old_log_prob=old_log_prob)
    return -(th.exp(log_prob - old_log_prob) * advantages).mean()


def adapted_coef(coef: float, kl: float, target: float) -> float:
    """Return the coefficient of a penalty for the next rollout.

    Source: Schulman et al. 2017 (arXiv 1707.06347), section 4: halved below ``target / 1.5``,
    doubled above ``1.5 target``, otherwise kept; not beyond `COEF_RANGE` **(ours)**, so that what
    has shrunk for long can grow again.

    Args:
        coef: the present one, above 0.
        kl: mean KL(old || new) after the update, in nats.
        target: what it should be, above 0.
    """
    if kl < target / 1.5:
        return max(coef / 2.0, COEF_RANGE[0])
    return min(coef * 2.0, COEF_RANGE[1]) if kl > 1.5 * target else coef


def parameter_shift(
    new: th.distributions.Distribution, old: th.distributions.Distribution
) -> th.Tensor:
    """Return the change of a distribution's parameters at each state, (B, K).

    Of D independent Gaussians the parameters are the means and the standard deviations, K = 2D; of
    a categorical distribution the probabilities.

    Args:
        new: the policy being trained at B states.
        old: the policy that has acted, of the same kind.

    Raises:
        ValueError: if it is neither.
    """
    pair = (new, old)
    if all(isinstance(d, th.distributions.Normal) for d in pair):
        now, then = (th.cat([d.mean, d.stddev], dim=-1) for d in pair)
    elif all(isinstance(d, th.distributions.Categorical) for d in pair):
        now, then = (d.probs for d in pair)  # type: ignore[attr-defined]
    else:
        raise ValueError(f"expected two normal or two categorical distributions, got {pair}")
    shift: th.Tensor = now - then
    return shift


def cim_penalty(shift: th.Tensor, width: float) -> th.Tensor:
    """Return the squared correntropy-induced metric ``1 - exp(-||d||^2 / (2 width^2))``.

    Source: Guo et al. 2021 (arXiv 2110.10522); the sign is corrected **(ours)**, so that it is 0
    for no change and grows to 1.

    Args:
        shift: d, (B, K).
        width: of the Gaussian kernel, above 0.

    Returns:
        (B,), in [0, 1].

    Raises:
        ValueError: if ``width`` is not above 0.
    """
    _check_width(width)
    return -th.expm1(-shift.square().sum(dim=-1) / (2.0 * width**2))


def cim_metric(shift: th.Tensor, width: float) -> th.Tensor:
    """Return the correntropy-induced metric ``sqrt(k(0) - mean_i k(d_i))``.

    Source: Liu, Pokharel & Principe 2007, "Correntropy: Properties and Applications in Non-Gaussian
    Signal Processing", with the Gaussian kernel ``k(d) = exp(-d^2 / (2 width^2))``, so k(0) = 1.
    Near 0 it grows as ``||d|| / (width sqrt(2 K))``, a norm, whose gradient is not defined at 0
    itself: 1e-8 is added under the root, and its root taken off again **(ours)**, so that an update
    can start from no change.

    Args:
        shift: d, (B, K).
        width: of the kernel, above 0.

    Returns:
        (B,), in [0, 1].

    Raises:
        ValueError: if ``width`` is not above 0.
    """
    _check_width(width)
    mean = -th.expm1(-shift.square() / (2.0 * width**2)).mean(dim=-1)
    return th.sqrt(mean + 1e-8) - 1e-4


CIM_FORMS: dict[CIMForm, Callable[[th.Tensor, float], th.Tensor]] = {
    "joint": cim_penalty,
    "metric": cim_metric,
}
"""Penalties on a shift (B, K) with a width, by name."""


def clip_fraction(log_prob: th.Tensor, old_log_prob: th.Tensor, clip_range: float) -> float:
    """Return the share of ratios further than ``clip_range`` from 1, in [0, 1].

    Args:
        log_prob: log-probabilities in nats under the policy being trained, any shape.
        old_log_prob: log-probabilities of the same actions under the prior policy, same shape.
        clip_range: c, 0 or more.

    Raises:
        ValueError: if the shapes differ or ``clip_range`` is below 0.
    """
    _check_same_shape(log_prob=log_prob, old_log_prob=old_log_prob)
    _check_clip_range(clip_range)
    ratio = th.exp(log_prob - old_log_prob)
    return float((th.abs(ratio - 1.0) > clip_range).float().mean().item())


def regularized_action(
    actions: th.Tensor,
    noise: th.Tensor,
    noise_clip: float,
    low: th.Tensor,
    high: th.Tensor,
) -> th.Tensor:
    """Return the target action ``clip(pi'(s') + clip(noise, -c', c'), low, high)``.

    Source: target policy regularization of Zhan, Lin & Cao 2021 (arXiv 1912.02254); the form is
    that of Fujimoto et al. 2018 (arXiv 1802.09477), equation 14.

    Args:
        actions: pi'(s'), the target policy's mean, (B, D), in the units of the action space.
        noise: a draw of N(0, sigma), (B, D), relative to half the width of the action space
            **(ours)**: the same numbers for every Box, and the usual ones for bounds -1 and 1.
        noise_clip: c', at least 0, relative likewise.
        low: lower bounds of the action space, (D,).
        high: upper bounds of the action space, (D,).

    Returns:
        The actions, (B, D), inside the bounds.

    Raises:
        ValueError: if the shapes disagree or ``noise_clip`` is negative.
    """
    _check_same_shape(actions=actions, noise=noise)
    _check_same_shape(low=low, high=high)
    if actions.shape[-1:] != low.shape:
        raise ValueError(
            f"bounds must have shape {tuple(actions.shape[-1:])}, got {tuple(low.shape)}"
        )
    if not noise_clip >= 0.0:
        raise ValueError(f"noise_clip must be at least 0, got {noise_clip}")
    half_width = (high - low) / 2.0
    return th.clamp(actions + half_width * th.clamp(noise, -noise_clip, noise_clip), low, high)


def td_target(
    rewards: th.Tensor, dones: th.Tensor, next_q_values: th.Tensor, discounts: th.Tensor
) -> th.Tensor:
    """Return ``y = r + gamma (1 - done) Q'(s', a')``.

    Source: Zhan, Lin & Cao 2021 (arXiv 1912.02254), with a' from `regularized_action`. Over n steps
    **(ours)** r is the discounted sum of n rewards, s' the state after them and the discount
    gamma^n.

    Args:
        rewards: r, (B, 1).
        dones: 1 where the episode *terminated*, 0 elsewhere and where it was truncated, (B, 1).
        next_q_values: Q'(s', a') of the target critic, (B, 1).
        discounts: gamma, or gamma^n, in [0, 1], (B, 1).

    Returns:
        y, (B, 1).

    Raises:
        ValueError: if the shapes differ.
    """
    _check_same_shape(
        rewards=rewards, dones=dones, next_q_values=next_q_values, discounts=discounts
    )
    return rewards + discounts * (1.0 - dones) * next_q_values


def q_loss(q_values: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """Return the critic's loss ``mean((y - Q(s, a))^2)``.

    Source: Zhan, Lin & Cao 2021 (arXiv 1912.02254).

    Args:
        q_values: Q(s, a), (B, 1).
        targets: y, (B, 1), without gradient.

    Returns:
        A scalar.

    Raises:
        ValueError: if the shapes differ; broadcasting (B,) against (B, 1) would be silent.
    """
    _check_same_shape(q_values=q_values, targets=targets)
    return F.mse_loss(q_values, targets)


def imitation_loss(means: th.Tensor, actions: th.Tensor, half_width: th.Tensor) -> th.Tensor:
    """Return ``mean(((pi(s) - a) / half width)^2)`` **(ours)**.

    Args:
        means: pi(s), the policy's means, (B, D).
        actions: a, what is imitated, (B, D), inside the bounds, so that no density is asked for
            the clipped ones among them.
        half_width: of the action space, (D,).

    Returns:
        A scalar to minimise.

    Raises:
        ValueError: if the shapes disagree.
    """
    _check_same_shape(means=means, actions=actions)
    return ((means - actions) / half_width).square().mean()


def scale_to_unit_rms(advantages: th.Tensor, epsilon: float = 1e-8) -> th.Tensor:
    """Divide by the root mean square **(ours)**.

    Unlike the usual standardisation nothing is subtracted, so no advantage changes its sign and
    ``Q(s, a)`` used as its own advantage stays free of any baseline.

    Args:
        advantages: any shape, float.
        epsilon: added to the root mean square, above 0.

    Returns:
        A tensor of the same shape.

    Raises:
        ValueError: if ``epsilon`` is not above 0.
    """
    if not epsilon > 0.0:
        raise ValueError(f"epsilon must be above 0, got {epsilon}")
    return advantages / (advantages.square().mean().sqrt() + epsilon)


def _check_same_shape(**tensors: th.Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes must be the same, got {shapes}")


def _check_width(width: float) -> None:
    if not width > 0.0:
        raise ValueError(f"width must be above 0, got {width}")


def _check_clip_range(clip_range: float) -> None:
    if not clip_range >= 0.0:
        raise ValueError(f"clip_range must be 0 or more, got {clip_range}")
