"""Stable-Baselines3 algorithms and baselines for expensive sequential decision problems."""

from agents.baselines import Random, Uniform
from agents.black_box import CMAES, TPE, EpisodeSearch
from agents.greedy import Greedy
from agents.importance import AFIE, SBPF
from agents.overestimation import OverestimationCallback
from agents.penalty_ppo import CIMPPO, KLPPO
from agents.q_critic_ppo import QCriticPPO
from agents.rules import Rule

__all__ = [
    "AFIE",
    "CIMPPO",
    "CMAES",
    "KLPPO",
    "SBPF",
    "TPE",
    "EpisodeSearch",
    "Greedy",
    "OverestimationCallback",
    "QCriticPPO",
    "Random",
    "Rule",
    "Uniform",
]
