"""Black-box search over the whole sequence of actions, behind Stable-Baselines3's interface.

Nothing that is observed is used: an episode is one evaluation of a point, its actions, and its
value is the episode's return. Shape legend: T decisions in an episode, n environments.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from agents.baselines import is_batch, place_in_walk
from agents.common.arguments import SEED, Range, checked, in_a_line, of_length
from agents.common.checked_algorithm import CheckedAlgorithm
from agents.common.optimizers import CovarianceAdaptation, Optimizer, ParzenEstimator
from agents.common.spaces import check_bounds, check_observations

__all__ = ["CMAES", "TPE", "EpisodeSearch"]


class EpisodeSearch(CheckedAlgorithm):
    """Searches for the sequence of actions with the highest return; subclasses say how.

    Every episode plays one sequence; of environments side by side each plays one of its own. An
    episode that ends early, as when a step fails, counts with the return that it has.

    Args:
        policy: not used; there so that a search is built as a learner is.
        env: an environment with a ``Box`` of actions, of bounded episodes.
        start: its first episode, and where it starts, in [-1, 1]: (T,), or one number for all
            decisions; when None, it starts around 0 at random.
        n_decisions: T; the length of the environment's ``walk``, which may be left out.
        seed: of the search; drawn when None.
        verbose: 1 logs to the standard output.
        device: not used; there so that a saved search can be loaded.
        tensorboard_log: where TensorBoard's files go, if anywhere.

    Raises:
        ValueError: if the actions are no ``Box`` of floats between finite bounds, observations are
            dictionaries, or it is not known how many decisions there are.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": ActorCriticPolicy}
    ranges: ClassVar[Mapping[str, Range]] = {
        "n_decisions": Range(1, is_whole=True, may_be_none=True),
        "seed": SEED,
    }
    best_actions: NDArray[np.floating[Any]] | None
    """The sequence with the highest return so far, (T, *action shape)."""
    best_return: float
    """Its return; minus infinity before the first episode has ended."""

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        *,
        start: Sequence[float] | float | None = None,
        n_decisions: int | None = None,
        seed: int | None = None,
        verbose: int = 0,
        device: torch.device | str = "cpu",
        tensorboard_log: str | None = None,
        _init_setup_model: bool = True,
    ) -> None:
        """Wrap the environment; the class's docstring lists the arguments."""
        super().__init__(
            policy,
            env,
            learning_rate=0.0,
            seed=seed,
            verbose=verbose,
            device=device,
            tensorboard_log=tensorboard_log,
            support_multi_env=True,
        )
        self.start = None if start is None else np.array(start, np.float64)
        self.n_decisions = n_decisions
        self._observation_tells_place = False
        self._history: list[tuple[int, float | None]] = []
        self._playing: list[int] = []
        self._places: list[int] = []
        self._returns: list[float] = []
        if _init_setup_model:
            self._setup_model()

    @abstractmethod
    def _make_optimizer(self, n_dimensions: int, seed: int) -> Optimizer:
        """Return a new optimizer; the same calls must always get the same answers from it."""

    def _setup_model(self) -> None:
        """Build the optimizer, and have it live through the history again."""
        self._check_settings()
        if self.seed is None:
            self.seed = int(np.random.default_rng().integers(1, 2**31))
        if self.env is not None:
            self._look_at(self.env)
        assert isinstance(self.action_space, spaces.Box) and self.n_decisions is not None
        n_dimensions = self.n_decisions * int(np.prod(self.action_space.shape))
        self._optimizer = self._make_optimizer(n_dimensions, self.seed)
        self._pending: dict[int, NDArray[np.floating[Any]]] = {}
        self.best_actions, self.best_return = None, -np.inf
        history, self._history = self._history, []
        for number, value in history:
            if value is None:
                self._ask()
            else:
                self._tell(number, value)

    def _look_at(self, env: VecEnv) -> None:
        """Take the number of decisions from the environment's walk, if it has one."""
        has_walk = env.has_attr("walk")
        lengths = sorted({len(walk) for walk in env.get_attr("walk")}) if has_walk else []
        if self.n_decisions is None:
            if not lengths:
                raise ValueError("expected n_decisions, as the environment has no walk, got None")
            self.n_decisions = lengths[0]
        if has_walk and lengths != [self.n_decisions]:
            raise ValueError(f"expected walks of n_decisions={self.n_decisions}, got {lengths}")
        normalizer = unwrap_vec_normalize(env)
        self._observation_tells_place = has_walk and not (normalizer and normalizer.norm_obs)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Replace the environment by another with the same spaces and as many decisions."""
        env = self._wrap_env(env, self.verbose)
        self._look_at(env)
        super().set_env(env, force_reset)

    def _check_spaces(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        check_observations(observation_space)
        if not isinstance(action_space, spaces.Box):
            raise ValueError(f"expected a Box of actions, got {in_a_line(action_space)}")
        check_bounds(action_space)

    def _ask(self) -> int:
        """Ask for a sequence; return its number."""
        assert isinstance(self.action_space, spaces.Box) and self.n_decisions is not None
        number = sum(value is None for _, value in self._history)
        low, high = self.action_space.low, self.action_space.high
        # (T * size,) -> (T, *action shape)
        point = self._optimizer.ask().reshape(self.n_decisions, *self.action_space.shape)
        actions = np.clip(low + (point + 1.0) / 2.0 * (high - low), low, high)
        self._pending[number] = actions.astype(self.action_space.dtype)
        self._history.append((number, None))
        return number

    def _tell(self, number: int, value: float) -> None:
        """Tell what a sequence has come to."""
        actions = self._pending.pop(number)
        self._optimizer.tell(number, value)
        self._history.append((number, value))
        if value > self.best_return:
            self.best_actions, self.best_return = actions, value

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "search",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Play sequences for a number of steps, or until the callback says stop.

        Args:
            total_timesteps: steps of all environments together.
            callback: called before and after every step, each of which is a rollout.
            log_interval: episodes between two entries in the log.
            tb_log_name: name of the run in TensorBoard.
            reset_num_timesteps: start with fresh episodes; what has been found is kept.
            progress_bar: show one.

        Returns:
            The search itself.

        Raises:
            ValueError: if an episode is longer than ``n_decisions``, or an argument out of range.
        """
        log_interval = checked("log_interval", log_interval, Range(1, is_whole=True))
        is_fresh = reset_num_timesteps or self._last_obs is None
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        if is_fresh:
            self._begin()
        callback.on_training_start(locals(), globals())
        while self.num_timesteps < total_timesteps:
            callback.on_rollout_start()
            if not self._step(callback, log_interval):
                break
            callback.on_rollout_end()
        callback.on_training_end()
        return self

    def _begin(self) -> None:
        """Give each environment a sequence to play, first those that were not played to the end."""
        self._playing = list(self._pending)[: self.n_envs]
        self._playing += [self._ask() for _ in range(self.n_envs - len(self._playing))]
        self._places, self._returns = [0] * self.n_envs, [0.0] * self.n_envs

    def _step(self, callback: BaseCallback, log_interval: int) -> bool:
        """Take one step in every environment; return whether to go on."""
        assert self.env is not None
        if max(self._places) == self.n_decisions:
            raise ValueError(f"expected episodes of at most n_decisions={self.n_decisions} steps")
        pairs = zip(self._playing, self._places, strict=True)
        actions = np.stack([self._pending[number][place] for number, place in pairs])
        self._last_obs, rewards, dones, infos = self.env.step(actions)  # type: ignore[assignment]
        if self._vec_normalize_env is not None:
            rewards = self._vec_normalize_env.get_original_reward()
        self._last_episode_starts = dones
        self.num_timesteps += self.n_envs
        self._update_info_buffer(infos, dones)
        for i in range(self.n_envs):
            self._places[i] += 1
            self._returns[i] += float(rewards[i])
            if dones[i]:
                self._finish(i, log_interval)
        callback.update_locals(locals())
        return callback.on_step()

    def _finish(self, i: int, log_interval: int) -> None:
        """Tell the return of the episode that has ended in environment `i`; ask for another."""
        self._tell(self._playing[i], self._returns[i])
        self._episode_num += 1
        if self._episode_num % log_interval == 0:
            self.logger.record("rollout/return", self._returns[i])
            self.logger.record("rollout/best_return", self.best_return)
            self.logger.dump(self.num_timesteps)
        self._playing[i] = self._ask()
        self._places[i], self._returns[i] = 0, 0.0

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Return the next action of the best sequence.

        As with a recurrent policy, the place in the sequence is the state: hand back what the last
        call has returned. Only in an environment with a ``walk`` the observation tells the place,
        and the state may be left out.

        Args:
            observation: one observation, or a batch (n, ...).
            state: what the last call has returned; None at the start.
            episode_start: (n,) bool, where an episode begins.
            deterministic: not used: the sequence is fixed.

        Returns:
            An action, or a batch (n, *action shape), and the new state, the next places (n,).

        Raises:
            RuntimeError: if no episode has ended yet.
            ValueError: if an argument has another shape.
        """
        if self.best_actions is None:
            raise RuntimeError("expected a search of at least one episode: call learn first")
        has_rows = is_batch(observation, self.observation_space)
        n = len(np.asarray(observation)) if has_rows else 1
        places = self._places_of(np.asarray(observation), n) if state is None else state[0]
        places = of_length(n, "state", places).astype(np.int64)
        if episode_start is not None:
            places[of_length(n, "episode_start", episode_start).astype(bool)] = 0
        actions = self.best_actions[np.clip(places, 0, len(self.best_actions) - 1)]
        return actions if has_rows else actions[0], (places + 1,)

    def _places_of(self, observation: NDArray[Any], n: int) -> NDArray[np.int64]:
        """Return the places in the sequence that observations tell, or else the first, (n,)."""
        if not self._observation_tells_place or self.best_actions is None:
            return np.zeros(n, np.int64)
        # (9,) or (n, 9) -> (1,) or (n,); the first entry is LayerState.index
        return place_in_walk(np.atleast_2d(observation)[:, 0], len(self.best_actions))

    def search_state(self) -> dict[str, Any]:
        """Return what `restore_search` needs to go on from here, in plain Python values."""
        return {
            "seed": self.seed,
            "history": list(self._history),
            "playing": list(self._playing),
            "places": list(self._places),
            "returns": list(self._returns),
        }

    def restore_search(self, state: dict[str, Any]) -> None:
        """Go on from a state, by telling a new optimizer everything again."""
        self.seed = state["seed"]
        self._history = [(number, value) for number, value in state["history"]]
        self._setup_model()
        self._playing, self._places = list(state["playing"]), list(state["places"])
        self._returns = list(state["returns"])

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return [], []

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_optimizer", "_pending"]


class CMAES(EpisodeSearch):
    """Covariance matrix adaptation (Hansen & Ostermeier 2001), by the package ``cma``.

    A generation is told when as many episodes have ended as it has members, wherever. Points are
    kept in bounds by ``cma``'s own transformation. A search that has converged is followed by
    another from a random point, with generations of twice the size (Auger & Hansen 2005): where
    actions stand for a few numbers of bits, one soon finds nothing but sequences that it knows.
    With `start` that point is drawn around it, with a standard deviation of `sigma0` **(ours)**.

    Args:
        policy, env, others: see `EpisodeSearch`.
        sigma0: standard deviation of the first points, above 0; 0.5 is a quarter of [-1, 1].
        population_size: episodes in a first generation, at least 3; ``4 + floor(3 ln T)`` if None.

    Raises:
        ValueError: as `EpisodeSearch`, or if an argument is out of range, or T is 1.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        **EpisodeSearch.ranges,
        "sigma0": Range(0, is_open=True),
        "population_size": Range(3, is_whole=True, may_be_none=True),
    }

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        *,
        sigma0: float = 0.5,
        population_size: int | None = None,
        **others: Any,
    ) -> None:
        """Build the search; the class's docstring lists the arguments."""
        self.sigma0 = sigma0
        self.population_size = population_size
        super().__init__(policy, env, **others)

    def _make_optimizer(self, n_dimensions: int, seed: int) -> Optimizer:
        given = self.sigma0, self.population_size, self.start
        return CovarianceAdaptation(n_dimensions, seed, *given)


class TPE(EpisodeSearch):
    """Tree-structured Parzen estimator (Bergstra et al. 2011), by the package ``optuna``.

    Multivariate: one joint density over all decisions, as they are not independent: what one layer
    may keep depends on what the layers before it have used up. The first points are random.

    Args:
        policy, env, others: see `EpisodeSearch`.
        n_startup_episodes: random sequences before the first model, at least 1.
        spread: standard deviation of these in every coordinate, around `start`; uniform when None.

    Raises:
        ValueError: as `EpisodeSearch`, or if an argument is out of range.
        ImportError: if ``optuna`` is not installed.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        **EpisodeSearch.ranges,
        "n_startup_episodes": Range(1, is_whole=True),
        "spread": Range(0, may_be_none=True),
    }

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        *,
        n_startup_episodes: int = 10,
        spread: float | None = None,
        **others: Any,
    ) -> None:
        """Build the search; the class's docstring lists the arguments."""
        self.spread = spread
        self.n_startup_episodes = n_startup_episodes
        super().__init__(policy, env, **others)

    def _make_optimizer(self, n_dimensions: int, seed: int) -> Optimizer:
        given = self.n_startup_episodes, self.start, self.spread
        return ParzenEstimator(n_dimensions, seed, *given)
