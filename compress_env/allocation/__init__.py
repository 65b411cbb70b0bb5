"""What each layer gets without a search: scores, and the pruning rates or bits that follow."""

from compress_env.allocation.afie import afie
from compress_env.allocation.allocation import allocate, allocate_in_rounds, decision_scores
from compress_env.allocation.bits import choose_least, relative_errors
from compress_env.allocation.ranking import rank_channels
from compress_env.allocation.saliency import channel_norms
from compress_env.allocation.sensitivity import sensitivity

__all__ = [
    "afie",
    "allocate",
    "allocate_in_rounds",
    "channel_norms",
    "choose_least",
    "decision_scores",
    "rank_channels",
    "relative_errors",
    "sensitivity",
]
