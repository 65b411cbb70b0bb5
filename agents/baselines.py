"""Agents that do not learn, behind Stable-Baselines3's ``predict``."""

from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.utils import is_vectorized_observation

from agents.common.arguments import SEED, Range, checked, in_a_line
from compress_env.envs.base import LayerwiseCompressionEnv

__all__ = ["Random", "Uniform", "actions_for", "asked_for_actions", "is_batch", "place_in_walk"]

_INDEX = Range(0, is_whole=True)
# How far bounds that are equal may lie apart in float32.
_TOLERANCE = 1e-6


class Random:
    """Uniform over the action space, or normal about its middle, whatever is observed.

    Args:
        observation_space: only tells one observation from a batch of them.
        action_space: sampled from; copied, so that the environment's own generator is untouched.
        seed: of the generator; None draws one from the operating system.
        spread: standard deviation about the middle of a Box, relative to half its width; what lies
            outside is cut to its bounds. Uniform when None.

    Raises:
        ValueError: if the seed is none, the spread is negative, or the action space is no Box to
            have one in.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        seed: int | None = None,
        spread: float | None = None,
    ) -> None:
        """Copy the action space and seed the copy; the class's docstring lists the arguments."""
        self.spread = checked("spread", spread, Range(0, may_be_none=True))
        if spread is not None and not isinstance(action_space, spaces.Box):
            raise ValueError(f"expected a Box, to draw about its middle, got {action_space}")
        self.observation_space = observation_space
        self.action_space = deepcopy(action_space)
        self.action_space.seed(checked("seed", seed, SEED))

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
        if not is_batch(observation, self.observation_space):
            return self._draw(), state
        return np.stack([self._draw() for _ in observation]), state

    def _draw(self) -> NDArray[Any]:
        space = self.action_space
        if self.spread is None:
            return np.asarray(space.sample())
        assert isinstance(space, spaces.Box)
        half = (space.high - space.low) / 2.0
        drawn = space.np_random.normal(space.low + half, self.spread * half)
        return np.clip(drawn, space.low, space.high).astype(space.dtype)


class Uniform:
    """The same value for every layer, as closely as each layer's interval allows.

    An observation says onto which interval ``[low, high]`` the action space ``Box(-1, 1, (1,))``
    is mapped affinely for the layer about to be decided. The action is the inverse of that map,
    ``2 (value - low) / (high - low) - 1``, clipped to [-1, 1]; 0 where the interval is one point.
    Where an environment has another prior than the middle, the observation does not tell the map:
    then the environment itself must be given, and is asked.

    Args:
        value: the pruning rate of every layer, or its bits divided by the largest bits, in [0, 1].
        low_index: which entry of the observation holds ``low``; 6 is `LayerState.action_low`.
        high_index: which entry holds ``high``; 7 is `LayerState.action_high`.
        env: that is acted on; needed if its `prior` is not ``"middle"``.

    Raises:
        ValueError: if ``value`` is outside [0, 1] or an index is negative.
    """

    def __init__(
        self,
        value: float,
        low_index: int = 6,
        high_index: int = 7,
        env: gym.Env[Any, Any] | None = None,
    ) -> None:
        """Check and keep the arguments, which the class's docstring lists."""
        self.value = checked("value", value, Range(0, 1))
        self.low_index = checked("indices", low_index, _INDEX)
        self.high_index = checked("indices", high_index, _INDEX)
        self._asked = asked_for_actions(env)

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
            ValueError: if the observation has another shape or too few entries, or is a dict, or is
                not the present one of an environment with a prior.
        """
        indices = self.low_index, self.high_index
        return actions_for(self.value, observation, *indices, self._asked), state


def actions_for(
    value: ArrayLike,
    observation: NDArray[Any] | dict[str, NDArray[Any]],
    low_index: int,
    high_index: int,
    asked: LayerwiseCompressionEnv | None = None,
) -> NDArray[np.float32]:
    """Return the actions that stand for values, each clipped to the interval observed.

    Args:
        value: one value, or one for each observation of a batch, (n,).
        observation: (n_entries,), or a batch (n, n_entries).
        low_index: which entry of the observation holds the interval's lower end.
        high_index: which entry holds its upper end.
        asked: the environment observed, from `asked_for_actions`.

    Returns:
        Actions in [-1, 1], (1,) or (n, 1).

    Raises:
        ValueError: if the observation has another shape or too few entries, is a dict, or what it
            holds is no interval, as where it has been normalised, or is not the present one of the
            environment that is asked.
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
    if not (width >= -_TOLERANCE).all() or not np.isfinite(width).all():
        raise ValueError(
            f"expected observations of intervals, not normalised, got {in_a_line(low)} as low and "
            f"{in_a_line(low + width)} as high"
        )
    if asked is not None:
        return _ask(asked, value, array)
    is_point = width == 0.0
    # () -> (1,), or (n,) -> (n, 1)
    fraction = (np.asarray(value, np.float64)[..., None] - low) / np.where(is_point, 1.0, width)
    actions = np.where(is_point, 0.0, np.clip(2.0 * fraction - 1.0, -1.0, 1.0))
    return actions.astype(np.float32)


def asked_for_actions(env: gym.Env[Any, Any] | None) -> LayerwiseCompressionEnv | None:
    """Return the environment that must be asked what actions stand for; None if observations tell.

    Args:
        env: that is acted on, with any wrappers that leave the action as it is.
    """
    stage = None if env is None else env.unwrapped
    if isinstance(stage, LayerwiseCompressionEnv) and stage.prior != "middle":
        return stage
    return None


def _ask(
    env: LayerwiseCompressionEnv, value: ArrayLike, observation: NDArray[Any]
) -> NDArray[np.float32]:
    """Return the action for the present observation, (1,), or a batch of it alone, (1, 1)."""
    if observation.ndim == 2 and len(observation) != 1:
        raise ValueError(
            f"expected one observation, as the environment has a prior, got {len(observation)}"
        )
    single = observation.reshape(-1)  # (n_entries,) or (1, n_entries) -> (n_entries,)
    action = env.action_for(np.asarray(value).item() * env.value_scale, single)
    return action.reshape(*observation.shape[:-1], 1)


def place_in_walk(index: NDArray[Any], n_decisions: int) -> NDArray[np.int64]:
    """Return the places, 0 to ``n_decisions - 1``, that scaled indices stand for, integers.

    Args:
        index: `LayerState.index` of observations, in [0, 1], any shape.
        n_decisions: T, of the walk.

    Raises:
        ValueError: if an index is none of a walk of so many decisions.
    """
    scaled = np.asarray(index, np.float64) * (n_decisions - 1)
    places = np.rint(scaled)
    is_known = (
        np.isclose(scaled, places, rtol=0.0, atol=0.01) & (places >= 0) & (places < n_decisions)
    )
    if not is_known.all():
        raise ValueError(
            f"expected the observations of a walk of {n_decisions} decisions, not normalised, got "
            f"the index {in_a_line(index)}"
        )
    return places.astype(np.int64)


def is_batch(observation: NDArray[Any] | dict[str, NDArray[Any]], space: spaces.Space[Any]) -> bool:
    """Return whether it is a batch of observations, not one.

    Raises:
        ValueError: if it has the shape of neither, or is a dict.
    """
    return is_vectorized_observation(_as_array(observation), space)


def _as_array(observation: NDArray[Any] | dict[str, NDArray[Any]]) -> NDArray[Any]:
    if isinstance(observation, dict):
        raise ValueError(f"Dict observations are not supported, got entries {list(observation)}")
    return np.asarray(observation)
