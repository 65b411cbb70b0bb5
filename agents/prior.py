"""Actions of the prior policy, which the clipped surrogate compares the policy with.

Shapes: B states, K actions sampled per state, D action dimensions, M pairs of state and action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch as th

from agents.common.losses import Advantage, scale_to_unit_rms
from agents.policies import QCriticPolicy

__all__ = ["Collected", "PriorActions", "PriorPolicy", "collected_actions", "sampled_actions"]

PriorPolicy: TypeAlias = Literal["target", "behavior"]
"""The target actor, asked for fresh actions at replayed states **(ours)**; or the policy that has
collected the newest transitions, and its own actions there (the paper)."""


class Collected(NamedTuple):
    """What the policy did in one step of N environments."""

    observations: th.Tensor
    """(N, *observation shape)"""
    actions: th.Tensor
    """(N, D), unclipped"""
    log_prob: th.Tensor
    """(N,), under the policy that has acted, in nats"""


class PriorActions(NamedTuple):
    """Actions of the prior policy; of K sampled ones action k of state b is in row k * B + b."""

    observations: th.Tensor
    """(M, *observation shape)"""
    actions: th.Tensor
    """(M, D), unclipped"""
    log_prob: th.Tensor
    """(M,), under the prior policy, in nats"""
    advantages: th.Tensor
    """(M,)"""


@th.no_grad()
def sampled_actions(
    policy: QCriticPolicy,
    observations: th.Tensor,
    n_action_samples: int,
    advantage: Advantage,
    normalize: bool,
) -> PriorActions:
    """Sample K actions per state from the target actor and judge them with the critic, M = K * B.

    Args:
        policy: Actor, critic and targets.
        observations: (B, *observation shape).
        n_action_samples: K.
        advantage: What the critic's values are compared with.
        normalize: Divide advantages by their root mean square.
    """
    # (B, ...) -> (K * B, ...)
    repeated = observations.repeat((n_action_samples,) + (1,) * (observations.ndim - 1))
    distribution = policy.actor_target.distribution(repeated)
    actions = distribution.sample()
    # (K * B, 1) -> (K * B,)
    advantages = policy.q_values(repeated, actions).squeeze(1)
    if advantage == "q_baseline":
        mean = distribution.mode()[: len(observations)]
        # (B, 1) -> (B,) -> (K * B,)
        baseline = policy.q_values(observations, mean).squeeze(1)
        advantages = advantages - baseline.repeat(n_action_samples)
    if normalize:
        advantages = scale_to_unit_rms(advantages)
    return PriorActions(repeated, actions, distribution.log_prob(actions), advantages)


@th.no_grad()
def collected_actions(
    policy: QCriticPolicy, rollout: Sequence[Collected], advantage: Advantage, normalize: bool
) -> PriorActions:
    """Judge the actions that the newest transitions were collected with, M = steps * N.

    Args:
        policy: Its critic judges them. Its actor, as earlier rounds of this update have left it, is
            the baseline's policy.
        rollout: Steps since the last update, one at least.
        advantage: What the critic's values are compared with.
        normalize: Divide advantages by their root mean square.
    """
    # steps of (N, ...) -> (steps * N, ...)
    observations, actions, log_prob = (th.cat(parts) for parts in zip(*rollout, strict=True))
    advantages = policy.q_values(observations, actions).squeeze(1)
    if advantage == "q_baseline":
        advantages = advantages - policy.predict_values(observations).squeeze(1)
    if normalize:
        advantages = scale_to_unit_rms(advantages)
    return PriorActions(observations, actions, log_prob, advantages)
