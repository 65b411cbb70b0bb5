"""Run an agent on a compression environment and keep every episode."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.type_aliases import PolicyPredictor

from compress_env.envs.base import LayerwiseCompressionEnv

__all__ = [
    "Episode",
    "EpisodeLog",
    "best_episode",
    "replay",
    "run_learner",
    "run_policy",
]

Observation = NDArray[np.float32]
Action = NDArray[np.float32]
Progress = Callable[["Episode"], None]


@dataclass(frozen=True)
class Episode:
    """One finished episode."""

    index: int
    """Number within the search, from 0."""
    layers: tuple[str, ...]
    """Decided layers, in order."""
    actions: tuple[float, ...]
    """Actions as given, in [-1, 1]."""
    values: tuple[float, ...]
    """Executed pruning rates or bits."""
    accuracy: float | None
    """Final validation accuracy; None when the episode failed."""
    reward: float
    """Sum of rewards."""
    cost: float
    """Final cost: MACs when pruning, bytes when quantizing."""
    dense_macs: int
    """Multiply-accumulates per image."""
    dense_params: int
    """Parameters as stored."""
    sparse_macs: int
    """Multiply-accumulates by non-zero weights."""
    sparse_params: int
    """Non-zero parameters."""
    n_evaluations: int
    """Distinct networks whose accuracy the search had asked for by then."""
    seconds: float
    """Wall-clock time of the episode."""
    error: str | None = None
    """Why the episode failed."""

    def row(self) -> dict[str, Any]:
        """Flatten into a CSV row, one column per layer."""
        fields = asdict(self)
        layers, values, actions = (fields.pop(k) for k in ("layers", "values", "actions"))
        fields["index"] = self.index
        columns = {f"value:{layer}": v for layer, v in zip(layers, values, strict=True)}
        return fields | columns | {"actions": " ".join(f"{a:.9g}" for a in actions)}


class EpisodeLog(gym.Wrapper[Observation, Action, Observation, Action]):
    """Keeps every finished episode of a compression environment."""

    def __init__(self, env: gym.Env[Observation, Action], progress: Progress | None = None) -> None:
        """Wrap `env`; `progress` is called with each finished episode."""
        super().__init__(env)
        self.episodes: list[Episode] = []
        self._progress = progress
        self._clear()

    def _clear(self) -> None:
        self._infos: list[dict[str, Any]] = []
        self._actions: list[float] = []
        self._reward = 0.0
        self._start = perf_counter()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Reset the environment and forget an unfinished episode."""
        self._clear()
        return super().reset(seed=seed, options=options)

    def step(self, action: Action) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment and note what happened."""
        observation, reward, terminated, truncated, info = super().step(action)
        self._infos.append(info)
        self._actions.append(float(action[0]))
        self._reward += float(reward)
        if terminated or truncated:
            self._finish(info)
        return observation, reward, terminated, truncated, info

    def _finish(self, info: dict[str, Any]) -> None:
        env = self.unwrapped
        assert isinstance(env, LayerwiseCompressionEnv)
        done = [i for i in self._infos if "error" not in i]
        episode = Episode(
            index=len(self.episodes),
            layers=tuple(i["layer"] for i in done),
            actions=tuple(self._actions[: len(done)]),
            values=tuple(i[env.value_name] for i in done),
            accuracy=None if math.isnan(info["accuracy"]) else info["accuracy"],
            reward=self._reward,
            cost=info["reward_terms"].get("cost", float("nan")),
            dense_macs=info["dense_macs"],
            dense_params=info["dense_params"],
            sparse_macs=info["sparse_macs"],
            sparse_params=info["sparse_params"],
            n_evaluations=info["n_evaluations"],
            seconds=perf_counter() - self._start,
            error=info.get("error"),
        )
        self.episodes.append(episode)
        if self._progress is not None:
            self._progress(episode)


def run_learner(agent: BaseAlgorithm, log: EpisodeLog, n_episodes: int) -> None:
    """Let a Stable-Baselines3 agent learn on `log` until it has `n_episodes` more episodes.

    Args:
        agent: An agent whose environment is `log`.
        log: The environment.
        n_episodes: Episodes to run.
    """
    env = log.unwrapped
    assert isinstance(env, LayerwiseCompressionEnv)
    target = len(log.episodes) + n_episodes
    stop: BaseCallback = StopTrainingOnMaxEpisodes(n_episodes)
    agent.learn(n_episodes * len(env.walk), callback=stop)
    if len(log.episodes) < target:  # only when failed episodes were shorter
        agent.learn(
            10 * n_episodes * len(env.walk),
            callback=StopTrainingOnMaxEpisodes(target - len(log.episodes)),
        )
    del log.episodes[target:]


def run_policy(
    policy: PolicyPredictor, log: EpisodeLog, *, n_episodes: int, n_evaluations: int | None = None
) -> None:
    """Let a policy that does not learn act for `n_episodes`, or until `n_evaluations` are spent."""
    for _ in range(n_episodes):
        observation, _ = log.reset()
        done = False
        while not done:
            action, _ = policy.predict(observation)
            observation, _, done, _, _ = log.step(np.asarray(action, np.float32))
        if n_evaluations is not None and log.episodes[-1].n_evaluations >= n_evaluations:
            return


def best_episode(episodes: list[Episode]) -> Episode:
    """Return the best finished episode: by validation accuracy, then lower cost, then the first.

    Every episode meets the budget, so that accuracy alone decides.

    Raises:
        RuntimeError: If every episode failed.
    """
    finished = [e for e in episodes if e.accuracy is not None]
    if not finished:
        reason = episodes[-1].error if episodes else "none was run"
        raise RuntimeError(f"no episode finished: {reason}")
    return max(finished, key=lambda e: (e.accuracy, -e.cost, -e.index))


def replay(env: LayerwiseCompressionEnv, episode: Episode) -> None:
    """Take the actions of an episode again; the environment then holds its network."""
    env.reset()
    for action in episode.actions:
        env.step(np.array([action], np.float32))
