"""PPO that collects into a replay buffer, the buffer's file, and the ends of the episodes in it."""

from __future__ import annotations

import io
import pathlib
from typing import Any, Self, cast

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import NStepReplayBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from stable_baselines3.common.type_aliases import MaybeCallback, TensorDict
from stable_baselines3.common.vec_env import VecEnv

from agents.common.arguments import in_a_line
from agents.common.checked_algorithm import CheckedAlgorithm
from agents.common.episodes import estimated_returns, steps_of, stored_episodes
from agents.overestimation import OverestimationCallback
from agents.policies import QCriticPolicy
from agents.prior import Collected

__all__ = ["ReplayPPO", "load_buffer", "truncate_last_episode"]


class ReplayPPO(CheckedAlgorithm, PPO):
    """What an actor does in its environments: it acts, and stores every transition."""

    policy: QCriticPolicy
    replay_buffer: NStepReplayBuffer | None = None
    overestimation: OverestimationCallback
    learning_starts: int
    """Steps before the first update, over all environments."""
    random_starts: bool
    """Whether actions are uniformly random before it."""
    _rollout: list[Collected]
    """Steps since the last update in which the policy has acted."""

    def _check_state(
        self, name: str, own: TensorDict, given: TensorDict, exact_match: bool
    ) -> None:
        super()._check_state(name, own, given, exact_match)
        for key in {"actor.low", "actor.high"} & given.keys():
            if not th.equal(own[key], given[key].to(own[key])):
                bound = key.removeprefix("actor.")
                raise ValueError(
                    f"expected an actor whose actions' {bound} is {own[key].tolist()}, got "
                    f"{given[key].tolist()}"
                )

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Step the environments and store each transition, also one at which a callback stops.

        Args:
            env: the training environments.
            callback: called after each step, and before and after the rollout.
            rollout_buffer: not used; a parameter of the parent class.
            n_rollout_steps: steps in each environment.

        Returns:
            False if a callback asked to stop.
        """
        self.policy.set_training_mode(False)
        self._rollout = []
        callback.on_rollout_start()
        for _ in range(n_rollout_steps):
            actions = self._sample_actions(env.num_envs)
            assert isinstance(self._last_obs, np.ndarray)
            values = self.policy.predict_q_values(self._last_obs, actions)  # for callbacks
            target_values = self.policy.predict_q_values(self._last_obs, actions, True)
            new_obs, rewards, dones, infos = env.step(actions)
            assert isinstance(new_obs, np.ndarray)  # Dict observations are rejected at construction
            self.num_timesteps += env.num_envs
            self._store_transition(actions, new_obs, rewards, dones, infos)
            self._update_info_buffer(infos, dones)
            callback.update_locals(locals())
            if not callback.on_step():
                return False
        callback.on_rollout_end()
        return True

    def _sample_actions(self, n_envs: int) -> np.ndarray:
        """Return the actions to execute, inside the bounds, (n_envs, *action shape)."""
        if self.random_starts and self.num_timesteps < self.learning_starts:
            return np.stack([self.action_space.sample() for _ in range(n_envs)])
        assert self._last_obs is not None
        observations, _ = self.policy.obs_to_tensor(self._last_obs)
        assert isinstance(observations, th.Tensor)
        with th.no_grad():
            distribution = self.policy.get_distribution(observations)
            actions = distribution.get_actions()
            log_prob = distribution.log_prob(actions)
        self._rollout.append(Collected(observations, actions, log_prob))
        space = cast(spaces.Box, self.action_space)
        # (N, D) -> (N, *action shape)
        shaped = actions.cpu().numpy().reshape((-1, *space.shape))
        clipped: np.ndarray = np.clip(shaped, space.low, space.high)
        return clipped

    def _store_transition(
        self,
        actions: np.ndarray,
        new_obs: np.ndarray,
        rewards: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Add one unnormalised transition per environment and advance the last observation."""
        assert self.replay_buffer is not None
        normalizer = self._vec_normalize_env
        obs, raw_obs, raw_rewards = self._last_obs, new_obs, rewards
        if normalizer is not None:
            obs = self._last_original_obs
            raw_obs = cast(np.ndarray, normalizer.get_original_obs())
            raw_rewards = normalizer.get_original_reward()
        assert isinstance(obs, np.ndarray)
        next_obs = raw_obs.copy()
        # A vectorised environment has already reset: what it returns is the next episode's start.
        for i in np.flatnonzero(dones):
            terminal = infos[i]["terminal_observation"]
            next_obs[i] = terminal if normalizer is None else normalizer.unnormalize_obs(terminal)
        self.replay_buffer.add(obs, next_obs, actions, raw_rewards, dones, infos)
        self._last_obs, self._last_original_obs = new_obs, raw_obs
        self._last_episode_starts = dones

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:  # the environments will be reset
            assert self.replay_buffer is not None
            truncate_last_episode(self.replay_buffer)
        return super()._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "QCriticPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train for ``total_timesteps`` environment steps, over all environments.

        Args:
            total_timesteps: steps; with ``reset_num_timesteps=False``, further steps.
            callback: called after each step.
            log_interval: updates between two dumps of the log; an update is as short as a step.
            tb_log_name: name of the run for TensorBoard.
            reset_num_timesteps: start counting anew, and reset the environments.
            progress_bar: show one; needs tqdm and rich.

        Returns:
            The agent itself.
        """
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        given = super()._init_callback(callback, progress_bar)
        self.overestimation.init_callback(self)
        both = CallbackList([self.overestimation, given])
        both.model = self  # its `init_callback` would call the given one's a second time
        return both

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "overestimation", "_rollout"]

    @th.no_grad()
    def episode_values(self) -> NDArray[np.float64]:
        """Return the critic's estimate of the return of each whole episode in the replay buffer.

        It averages over what alike decisions have come to, whereas an episode's own return is one
        draw: see `agents.common.episodes.estimated_returns`.

        Returns:
            (n,), in the order of ending, then by environment.
        """
        assert self.replay_buffer is not None
        episodes = stored_episodes(self.replay_buffer)
        if not episodes:
            return np.empty(0)
        steps = steps_of(self.replay_buffer, episodes, self._vec_normalize_env)
        # (n, 1) -> (n,)
        q_values, values = (
            found.double().cpu().numpy().squeeze(1)
            for found in (self.policy.q_values(*steps), self.policy.predict_values(steps[0]))
        )
        lengths = [len(each.rows) for each in episodes]
        return estimated_returns(q_values, values, lengths, self.gamma)

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Save the replay buffer, which `save` leaves out, as a pickle file at ``path``."""
        assert self.replay_buffer is not None
        save_to_pkl(path, self.replay_buffer, self.verbose)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Replace the replay buffer by a saved one. Unpickling runs code: trust the file.

        Raises:
            ValueError: if the file does not fit, see `agents.replay.load_buffer`.
        """
        assert self.replay_buffer is not None
        self.replay_buffer = load_buffer(path, self.replay_buffer, self.verbose)


def load_buffer(
    path: str | pathlib.Path | io.BufferedIOBase, present: NStepReplayBuffer, verbose: int = 0
) -> NStepReplayBuffer:
    """Read a replay buffer, whose last episode ends there. Unpickling runs code: trust the file.

    Args:
        path: a file, or where to read one.
        present: the buffer to be replaced; its device, discount and steps per target are kept.
        verbose: 2 to print where the file was found.

    Raises:
        ValueError: if the file holds something else, or was saved with another number of
            environments or with other spaces.
    """
    loaded = load_from_pkl(path, verbose)
    if not isinstance(loaded, NStepReplayBuffer):
        raise ValueError(f"expected an NStepReplayBuffer, got {type(loaded).__name__}")
    if loaded.n_envs != present.n_envs:
        raise ValueError(f"expected a buffer of {present.n_envs} envs, got {loaded.n_envs}")
    for name in ("observation_space", "action_space"):
        theirs, ours = getattr(loaded, name), getattr(present, name)
        if theirs != ours:
            raise ValueError(
                f"expected a buffer whose {name} is {in_a_line(ours)}, got {in_a_line(theirs)}"
            )
    for name in ("device", "n_steps", "gamma"):
        setattr(loaded, name, getattr(present, name))
    truncate_last_episode(loaded)
    return loaded


def truncate_last_episode(buffer: NStepReplayBuffer) -> None:
    """Keep targets over several steps from running into an episode that does not follow."""
    if buffer.size() > 0:
        last = buffer.pos - 1
        buffer.timeouts[last] = np.maximum(buffer.timeouts[last], 1.0 - buffer.dones[last])
