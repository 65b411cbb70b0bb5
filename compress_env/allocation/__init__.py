"""How much of each layer can go, without a search? Importance, and the rates that follow."""

from compress_env.allocation.afie import afie
from compress_env.allocation.allocation import allocate, allocate_in_rounds, decision_scores
from compress_env.allocation.sensitivity import sensitivity

__all__ = ["afie", "allocate", "allocate_in_rounds", "decision_scores", "sensitivity"]
