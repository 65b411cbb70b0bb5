"""What `QCriticPPO` is built with to be the agent of its paper.

Source: Zhan, Lin & Cao 2021 (arXiv 1912.02254).
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["PAPER", "PAPER_ENVS"]

PAPER: Mapping[str, Any] = {
    "advantage": "q",
    "normalize_advantage": False,
    "prior_policy": "behavior",
    "target_steps": 1,
    "n_steps": 1,
    "clip_range": 0.2,
    "learning_rate": 1e-3,
    "actor_learning_rate": None,
    "learning_starts": 0,
    "random_starts": False,
    "n_epochs": 10,
    "gradient_steps": 1,
    "batch_size": 64,
}
"""Arguments of `QCriticPPO.paper`; numbers that the paper does not give are PPO's usual ones
**(ours)**."""
PAPER_ENVS = 4
"""Parallel actors there."""
