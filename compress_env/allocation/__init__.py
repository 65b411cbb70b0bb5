"""Importance of layers without reinforcement learning, and the pruning rates that follow."""

from compress_env.allocation.afie import afie
from compress_env.allocation.allocation import allocate, allocate_in_rounds, decision_scores
from compress_env.allocation.sensitivity import sensitivity

__all__ = ["afie", "allocate", "allocate_in_rounds", "decision_scores", "sensitivity"]
