"""What does each layer get without a search? Scores, and the rates or bits that follow."""

from compress_env.allocation.afie import afie
from compress_env.allocation.allocation import allocate, allocate_in_rounds, decision_scores
from compress_env.allocation.bits import choose_least, relative_errors
from compress_env.allocation.gates import fisher_scores, gate_gradients, taylor_scores
from compress_env.allocation.per_cost import rank_per_cost
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
    "fisher_scores",
    "gate_gradients",
    "rank_channels",
    "rank_per_cost",
    "relative_errors",
    "sensitivity",
    "taylor_scores",
]
