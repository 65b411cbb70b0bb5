"""What pruning and quantization differ in: the decisions, and how they are carried out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from torch import nn

from compress_env.store.snapshots import Network
from compress_env.store.store import Executed, Prefix, Transition

if TYPE_CHECKING:
    from compress_env.allocation.rules import Allocation

__all__ = ["Action", "CompressionStage", "Observation"]

Action = NDArray[np.float32]
"""(1,) float32 in [-1, 1]."""
Observation = NDArray[np.float32]
"""(9,) float32 in [0, 1]."""


class CompressionStage(gym.Env[Observation, Action]):
    """What an environment must say of its decisions; the walk over them is in `base`."""

    value_name: str
    """What `info` and files call the executed value."""
    runs_network: bool = True
    """Whether compressing a layer runs the network, in evaluation mode."""
    value_scale: float
    """What `action_low` and `action_high` are divided by in the observation."""
    values_are_whole: bool = False
    """Whether only whole values are executed."""
    _budget_keyword: str
    """The argument that the budget is given by; of several, the first."""

    @property
    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """What the subclass's transitions follow from, besides the task and the seeds."""

    @abstractmethod
    def _fresh(self) -> Network:
        """Return a copy of the uncompressed network."""

    @abstractmethod
    def _bounds(self, executed: Prefix, result: Transition) -> tuple[float, float]:
        """Return the interval of feasible values of the decision that follows the executed ones."""

    @abstractmethod
    def _decide(self, before: Prefix, value: float) -> tuple[Executed, float]:
        """Return what a value comes to, in whole channels or bits, and as a value again."""

    @abstractmethod
    def _compress(self, network: Network, seed: int, t: int, executed: Executed) -> None:
        """Compress layer `t` of a network, in place; `seed` is that of the transition."""

    def _noted(self, network: Network) -> dict[str, Any]:
        """Return what else the last decision has noted, by the field of a transition."""
        return {}

    @abstractmethod
    def _cost(self, result: Transition, executed: Prefix) -> tuple[float, float, float]:
        """Return the live cost, and the lowest and highest cost there is."""

    @abstractmethod
    def _get_obs(self) -> Observation:
        """Describe the layer about to be decided; after the last decision, the last layer."""

    @abstractmethod
    def compress_layer(self, t: int, value: float) -> nn.Module:
        """Return the uncompressed network with decision `t` alone carried out at a value."""

    @abstractmethod
    def uniform_value(self) -> float:
        """Return the one value that, used for every layer, just meets the budget."""

    @abstractmethod
    def _rules(self) -> dict[str, Callable[[], Allocation]]:
        """Return what gives each decision its value without a search, by name."""

    @property
    @abstractmethod
    def _has_budget(self) -> bool:
        """Whether there is any."""

    @abstractmethod
    def _set_budget(self, budget: float) -> None:
        """Put another budget in place of the present one.

        Raises:
            ValueError: If it cannot be met; all is as it was then.
        """

    @abstractmethod
    def budget_left(self, n_done: int) -> float:
        """Return the share of the budget's room that the first `n_done` decisions leave.

        The room is what the budget allows beyond the least that any episode costs **(ours)**.

        Returns:
            In [0, 1]; 1 where there is no budget, and the least share of several.
        """

    @property
    @abstractmethod
    def _range(self) -> tuple[float, float]:
        """The lowest and highest value of any decision."""

    @abstractmethod
    def _meets(self, executed: Prefix, values: Sequence[float], result: Transition) -> bool:
        """Return whether the budget can be met with these values for the next decisions."""

    @abstractmethod
    def _rescale(
        self, executed: Prefix, values: Sequence[float], result: Transition
    ) -> list[float]:
        """Return values near the given ones that use what the decisions so far leave."""
