"""Run an agent on compression environments and keep every episode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from experiments.search.playing import Episode, UnfinishedEpisode

__all__ = [
    "Episode",
    "EpisodeLog",
    "best_episode",
    "is_over",
    "run_learner",
    "run_policy",
]

Save = Callable[[], None]
Progress = Callable[["Episode", "EpisodeLog"], None]


class EpisodeLog(VecEnvWrapper):
    """Keeps every finished episode of compression environments that run side by side.

    An evaluation counts once, whichever environment has asked for it. Where the order of the
    minibatches is drawn, the same decisions lead to another network in each episode.
    """

    def __init__(
        self, venv: VecEnv, progress: Progress | None = None, *, counts_prior: bool = False
    ) -> None:
        """Begin without an episode.

        Args:
            venv: The environments.
            progress: Called with each finished episode and the log.
            counts_prior: Whether what the environments' prior has taken counts.
        """
        super().__init__(venv)
        self.episodes: list[Episode] = []
        self._progress = progress
        self._value_name: str = venv.get_attr("value_name")[0]
        self._reward_at: str = venv.get_attr("reward_at")[0]
        self._is_stochastic: bool = venv.get_attr("transition_noise")[0]
        self.walk_length = len(venv.get_attr("walk")[0])
        self._evaluated: set[tuple[float, ...]] = set()
        self._n_spent, self._seconds_spent = 0, 0.0
        if counts_prior:
            self.spend(venv.get_attr("prior_evaluations")[0], venv.get_attr("prior_seconds")[0])
        self._unfinished = [UnfinishedEpisode() for _ in range(self.num_envs)]
        self._starts = [perf_counter()] * self.num_envs
        self._store_counts_before = self._store_counts()

    def spend(self, n_evaluations: int, seconds: float) -> None:
        """Count what a policy has evaluated before its first episode, and the time that it took."""
        self._n_spent += n_evaluations
        self._seconds_spent += seconds

    def reset(self) -> VecEnvObs:
        """Reset the environments and forget unfinished episodes."""
        for number in range(self.num_envs):
            self._begin(number)
        return self.venv.reset()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Tell the environments to step."""
        self._sent = np.array(actions, np.float32)  # as the action space says
        self.venv.step_async(self._sent)

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the environments, and note what has happened."""
        observations, rewards, dones, infos = self.venv.step_wait()
        finished = []
        for number, (done, info) in enumerate(zip(dones, infos, strict=True)):
            self._note(self._unfinished[number], number, info)
            if done:
                finished.append(self._finish(number, info))
        if self._progress is not None:
            for episode in finished:
                self._progress(episode, self)
        return observations, rewards, dones, infos

    def _begin(self, number: int) -> None:
        self._unfinished[number] = UnfinishedEpisode()
        self._starts[number] = perf_counter()

    def _note(self, now: UnfinishedEpisode, number: int, info: dict[str, Any]) -> None:
        tried = (*now.values, info[self._value_name])
        if self._reward_at == "layer" or len(tried) == self.walk_length:
            self._evaluated.add((info["noise_seed"], *tried) if self._is_stochastic else tried)
        now.note(float(self._sent[number][0]), info, self._value_name)

    def _finish(self, number: int, info: dict[str, Any]) -> Episode:
        now = self._unfinished[number]
        episode = now.finished(
            info,
            index=len(self.episodes),
            n_evaluations=self._n_spent + len(self._evaluated),
            seconds=now.seconds + perf_counter() - self._starts[number] + self._seconds_spent,
        )
        self._seconds_spent = 0.0
        self.episodes.append(episode)
        # What Stable-Baselines3's Monitor would say, for the agent's own log.
        info["episode"] = {"r": episode.reward, "l": len(now.layers), "t": episode.seconds}
        self._begin(number)
        return episode

    def hit_rate(self) -> float:
        """Return the fraction of steps since the log began that a store has answered."""
        pairs = zip(self._store_counts(), self._store_counts_before, strict=True)
        hits, lookups = (now - before for now, before in pairs)
        return hits / lookups if lookups else 0.0

    def _store_counts(self) -> tuple[int, int]:
        return sum(self.venv.get_attr("n_hits")), sum(self.venv.get_attr("n_lookups"))

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to go on from here, in plain Python values."""
        now = perf_counter()
        for number, start in enumerate(self._starts):
            self._unfinished[number].seconds += now - start
            self._starts[number] = now
        return {
            "episodes": [asdict(episode) for episode in self.episodes],
            "evaluated": sorted(self._evaluated),
            "unfinished": [asdict(episode) for episode in self._unfinished],
            "environments": self.venv.env_method("episode_state"),
        }

    def restore(self, state: dict[str, Any]) -> NDArray[np.float32]:
        """Go on from a state; return the observations that it stopped at, (n_envs, 9)."""
        self.episodes[:] = [Episode.from_state(episode) for episode in state["episodes"]]
        self._evaluated = {tuple(values) for values in state["evaluated"]}
        self._seconds_spent = 0.0 if self.episodes else self._seconds_spent
        self._unfinished = [UnfinishedEpisode(**episode) for episode in state["unfinished"]]
        self.venv.reset()
        observations = [
            self.venv.env_method("restore_episode", environment, indices=number)[0]
            for number, environment in enumerate(state["environments"])
        ]
        self._starts = [perf_counter()] * self.num_envs
        return np.stack(observations)


class _StopAndSave(BaseCallback):
    """Ends learning after enough episodes or evaluations; has the state saved after each episode.

    The state is complete between two rollouts only: what the agent has learnt from the last
    transitions is part of it.
    """

    def __init__(
        self, log: EpisodeLog, n_episodes: int, n_evaluations: int | None, save: Save
    ) -> None:
        super().__init__()
        self._log = log
        self._limits = n_episodes, n_evaluations
        self._save = save
        self._n_saved = len(log.episodes)

    def _on_rollout_start(self) -> None:
        if len(self._log.episodes) > self._n_saved:
            self._n_saved = len(self._log.episodes)
            self._save()

    def _on_step(self) -> bool:
        return not is_over(self._log.episodes, *self._limits)


def run_learner(
    agent: BaseAlgorithm,
    log: EpisodeLog,
    n_episodes: int,
    save: Save = lambda: None,
    *,
    n_evaluations: int | None = None,
    callbacks: Sequence[BaseCallback] = (),
) -> None:
    """Let a Stable-Baselines3 agent learn on `log` until it has enough episodes or evaluations.

    Args:
        agent: An agent whose environment is `log`; it goes on from the steps that it has taken.
        log: The environments.
        n_episodes: Episodes of the search, those before a resumption included.
        save: Called whenever the agent's state is complete and new episodes have finished.
        n_evaluations: Evaluations after which it ends sooner.
        callbacks: Called at each step too.
    """
    n_rounds = math.ceil(n_episodes / log.num_envs)
    n_steps = n_rounds * log.num_envs * log.walk_length
    agent.learn(
        n_steps - agent.num_timesteps,
        callback=CallbackList([*callbacks, _StopAndSave(log, n_episodes, n_evaluations, save)]),
        reset_num_timesteps=agent.num_timesteps == 0,
    )
    _trim(log.episodes, n_episodes, n_evaluations)


def run_policy(
    policy: PolicyPredictor,
    log: EpisodeLog,
    *,
    n_episodes: int,
    n_evaluations: int | None = None,
    observations: NDArray[np.float32] | None = None,
    save: Save = lambda: None,
) -> None:
    """Let a policy that does not learn act until it has enough episodes or evaluations.

    Args:
        policy: Chooses the actions.
        log: The environments.
        n_episodes: Episodes of the search, those before a resumption included.
        n_evaluations: Evaluations after which it ends sooner.
        observations: Where a resumed search stopped; the environments are reset when None.
        save: Called after each step with which an episode has finished.
    """
    observed: Any = log.reset() if observations is None else observations
    while not is_over(log.episodes, n_episodes, n_evaluations):
        n_before = len(log.episodes)
        actions, _ = policy.predict(observed)
        observed, _, _, _ = log.step(np.asarray(actions, np.float32))
        if len(log.episodes) > n_before:
            save()
    _trim(log.episodes, n_episodes, n_evaluations)


def _trim(episodes: list[Episode], n_episodes: int, n_evaluations: int | None) -> None:
    """Forget episodes that have ended at the same moment as the last."""
    while len(episodes) > 1 and is_over(episodes[:-1], n_episodes, n_evaluations):
        del episodes[-1]


def is_over(episodes: Sequence[Episode], n_episodes: int, n_evaluations: int | None) -> bool:
    """Tell whether a search has had enough episodes or, unless None, evaluations."""
    if not episodes:
        return False
    spent = episodes[-1].n_evaluations
    return len(episodes) >= n_episodes or (n_evaluations is not None and spent >= n_evaluations)


def best_episode(episodes: Sequence[Episode]) -> Episode:
    """Return the best finished episode: by reward, then accuracy, then lower cost, then the first.

    Raises:
        RuntimeError: If every episode failed.
    """
    finished = [e for e in episodes if e.accuracy is not None]
    if not finished:
        reason = episodes[-1].error if episodes else "none was run"
        raise RuntimeError(f"no episode finished: {reason}")
    return max(finished, key=lambda e: (e.reward, e.accuracy, -e.cost, -e.index))
