"""Agents that do not learn, behind Stable-Baselines3's ``predict``."""

from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.utils import is_vectorized_observation

__all__ = ["Random", "Uniform", "actions_for"]


class Random:
    """Uniform over the action space, whatever is observed.

    Args:
        observation_space: only tells one observation from a batch of them.
        action_space: sampled from; copied, so that the environment's own generator is untouched.
        seed: of the generator; None draws one from the operating system.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        seed: int | None = None,
    ) -> None:
        """Copy the action space and seed the copy; the class's docstring lists the arguments."""
        self.observation_space = observation_space
        self.action_space = deepcopy(action_space)
        self.action_space.seed(seed)

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Sample an action for one observation, or one each for a batch.

        Args:
            observation: of the observation space's shape, or a batch of these.
            state: handed back.
            episode_start: not used.
            deterministic: not used: the policy is random by definition.

        Returns:
            An action, or a batch (n, *action shape), and ``state``.

        Raises:
            ValueError: if the observation has neither shape, or is a dict.
        """
        array = _as_array(observation)
        if not is_vectorized_observation(array, self.observation_space):
            return np.asarray(self.action_space.sample()), state
        return np.stack([self.action_space.sample() for _ in array]), state


class Uniform:
    """The same value for every layer, as closely as each layer's interval allows.

    An observation says onto which interval ``[low, high]`` the action space ``Box(-1, 1, (1,))``
    is mapped affinely for the layer about to be decided. The action is the inverse of that map,
    ``2 (value - low) / (high - low) - 1``, clipped to [-1, 1]; 0 where the interval is one point.

    Args:
        value: the pruning rate of every layer, or its bits divided by the largest bits, in [0, 1].
        low_index: which entry of the observation holds ``low``; 6 is `LayerState.action_low`.
        high_index: which entry holds ``high``; 7 is `LayerState.action_high`.

    Raises:
        ValueError: if ``value`` is outside [0, 1] or an index is negative.
    """

    def __init__(self, value: float, low_index: int = 6, high_index: int = 7) -> None:
        """Check and keep the arguments, which the class's docstring lists."""
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"value must be in [0, 1], got {value}")
        if low_index < 0 or high_index < 0:
            raise ValueError(f"indices must be at least 0, got {low_index} and {high_index}")
        self.value = value
        self.low_index = low_index
        self.high_index = high_index

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Return the action that stands for ``value`` in each observed interval.

        Args:
            observation: (n_entries,), or a batch (n, n_entries).
            state: handed back.
            episode_start: not used.
            deterministic: not used: the policy is deterministic.

        Returns:
            Actions in [-1, 1], float32, (1,) or (n, 1), and ``state``.

        Raises:
            ValueError: if the observation has another shape or too few entries, or is a dict.
        """
        return actions_for(self.value, observation, self.low_index, self.high_index), state


def actions_for(
    value: ArrayLike,
    observation: NDArray[Any] | dict[str, NDArray[Any]],
    low_index: int,
    high_index: int,
) -> NDArray[np.float32]:
    """Return the actions that stand for values, each clipped to the interval observed.

    Args:
        value: one value, or one for each observation of a batch, (n,).
        observation: (n_entries,), or a batch (n, n_entries).
        low_index: which entry of the observation holds the interval's lower end.
        high_index: which entry holds its upper end.

    Returns:
        Actions in [-1, 1], (1,) or (n, 1).

    Raises:
        ValueError: if the observation has another shape or too few entries, or is a dict.
    """
    array = _as_array(observation)
    n_needed = max(low_index, high_index) + 1
    if array.ndim not in (1, 2) or array.shape[-1] < n_needed:
        raise ValueError(
            f"expected an observation (n_entries,) or a batch (n, n_entries) with at least "
            f"{n_needed} entries, got shape {array.shape}"
        )
    # (n, n_entries) -> (n, 1), or (n_entries,) -> (1,)
    low = array[..., low_index, None].astype(np.float64)
    width = array[..., high_index, None].astype(np.float64) - low
    is_point = width == 0.0
    # () -> (1,), or (n,) -> (n, 1)
    fraction = (np.asarray(value, np.float64)[..., None] - low) / np.where(is_point, 1.0, width)
    actions = np.where(is_point, 0.0, np.clip(2.0 * fraction - 1.0, -1.0, 1.0))
    return actions.astype(np.float32)


def _as_array(observation: NDArray[Any] | dict[str, NDArray[Any]]) -> NDArray[Any]:
    if isinstance(observation, dict):
        raise ValueError(f"Dict observations are not supported, got entries {list(observation)}")
    return observation
