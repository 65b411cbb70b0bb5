"""What does an agent see, decide and earn? The environments, and the walk that they share."""

from compress_env.envs.base import LayerState
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.envs.wrappers.context import LayerContext
from compress_env.envs.wrappers.several import SeveralBudgets
from compress_env.envs.wrappers.shaping import PotentialReward

__all__ = [
    "LayerContext",
    "LayerState",
    "PotentialReward",
    "PruningEnv",
    "QuantizationEnv",
    "SeveralBudgets",
]
