"""What does each layer get without a search? Scores, and the rates or bits that follow."""

from compress_env.allocation.allocation import allocate, allocate_in_rounds, decision_scores
from compress_env.allocation.bits import choose_least, relative_errors
from compress_env.allocation.descent import least_loss
from compress_env.allocation.per_cost import rank_per_cost
from compress_env.allocation.ranking import rank_channels
from compress_env.allocation.rounds import rank_in_rounds
from compress_env.allocation.scores.afie import afie
from compress_env.allocation.scores.curvature import fisher_losses, hessian_traces
from compress_env.allocation.scores.curves import Probes, kl_curves
from compress_env.allocation.scores.gates import fisher_scores, gate_gradients, taylor_scores
from compress_env.allocation.scores.saliency import channel_norms
from compress_env.allocation.scores.sensitivity import sensitivity

__all__ = [
    "Probes",
    "afie",
    "allocate",
    "allocate_in_rounds",
    "channel_norms",
    "choose_least",
    "decision_scores",
    "fisher_losses",
    "fisher_scores",
    "gate_gradients",
    "hessian_traces",
    "kl_curves",
    "least_loss",
    "rank_channels",
    "rank_in_rounds",
    "rank_per_cost",
    "relative_errors",
    "sensitivity",
    "taylor_scores",
]
