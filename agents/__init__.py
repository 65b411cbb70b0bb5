"""Who decides? Algorithms, searches and rules behind the interface of Stable-Baselines3."""

from agents.baselines import Random, Uniform
from agents.black_box import CMAES, TPE, EpisodeSearch
from agents.greedy import Greedy
from agents.importance import AFIE, SBPF
from agents.overestimation import OverestimationCallback
from agents.penalty_ppo import CIMPPO, KLPPO
from agents.q_critic_ppo import QCriticPPO
from agents.rules import Portfolio, Rule

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
    "Portfolio",
    "QCriticPPO",
    "Random",
    "Rule",
    "Uniform",
]
