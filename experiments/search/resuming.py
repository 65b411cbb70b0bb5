"""Searches that go on where a stopped run has left them."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor

from agents import OverestimationCallback, Random
from experiments.common.run_folder import RunFolder
from experiments.search.agent_state import agent_state, restore_agent
from experiments.search.episodes import Episode, EpisodeLog, run_learner, run_policy

__all__ = ["ResumableSearch", "read_finished"]

Outcome = Callable[[], dict[str, Any]]
"""Returns plain Python values."""
SAVING_SHARE = 0.05
"""Most of the time that may go into saving."""


def read_finished(folder: RunFolder, name: str) -> list[Episode] | None:
    """Return the episodes of a search that has come to its end, or None."""
    saved = folder.read_state(name)
    if saved is None:
        return None
    with folder.using(name):
        if not saved["is_finished"]:
            return None
        return [Episode.from_state(state) for state in saved["episodes"]]


class ResumableSearch:
    """Runs a search and keeps, after its episodes, all that it needs to go on.

    A save is left out where saving would take more than `SAVING_SHARE` of the time.
    """

    def __init__(self, name: str, log: EpisodeLog, folder: RunFolder) -> None:
        """Read what there is of the search.

        Args:
            name: Name of the search within the run.
            log: Environments of the same task and number as before.
            folder: The run folder.

        Raises:
            ValueError: If the state cannot be read.
        """
        self._name = name
        self._log = log
        self._folder = folder
        self._saved = folder.read_state(name)
        self._next_save = 0.0

    def learn(
        self,
        agent: BaseAlgorithm,
        n_episodes: int,
        n_evaluations: int | None = None,
        *,
        watch: OverestimationCallback | None = None,
        outcome: Outcome = dict,
    ) -> None:
        """Let an agent learn on the log until there are enough episodes or evaluations.

        Args:
            agent: Built as it was when the search began.
            n_episodes: Episodes, those before the resumption included.
            n_evaluations: Evaluations after which it ends sooner.
            watch: Called at each step; what it has seen is kept beside the agent.
            outcome: Called when the search is over; what it returns is kept with the episodes.
        """
        if self._saved is not None:
            with self._folder.using(self._name):
                self._log.restore(self._saved["log"])
                restore_agent(agent, self._saved["agent"])
                if watch is not None:
                    watch.restore(self._saved["beside"])
        beside = dict if watch is None else watch.state
        run_learner(
            agent,
            self._log,
            n_episodes,
            lambda: self._save(lambda: {"agent": agent_state(agent), "beside": beside()}),
            n_evaluations=n_evaluations,
            callbacks=[] if watch is None else [watch],
        )
        self.finish(outcome)

    def act(
        self,
        policy: PolicyPredictor,
        n_episodes: int,
        n_evaluations: int | None = None,
        *,
        outcome: Outcome = dict,
    ) -> None:
        """Let a policy act that does not learn, until there are enough episodes or evaluations."""
        observations = None
        if self._saved is not None:
            with self._folder.using(self._name):
                observations = self._log.restore(self._saved["log"])
                _restore_policy(policy, self._saved["policy"])
        run_policy(
            policy,
            self._log,
            n_episodes=n_episodes,
            n_evaluations=n_evaluations,
            observations=observations,
            save=lambda: self._save(lambda: {"policy": _policy_state(policy)}),
        )
        self.finish(outcome)

    def finish(self, outcome: Outcome = dict) -> None:
        """Keep the episodes of a search that is over, and what it has come to."""
        content = {"is_finished": True, "episodes": self._log.state()["episodes"]}
        self._folder.write_state(self._name, content | {"outcome": outcome()})

    def _save(self, state: Outcome) -> None:
        start = perf_counter()
        if start < self._next_save:
            return
        content = {"is_finished": False, "log": self._log.state()} | state()
        self._folder.write_state(self._name, content)
        end = perf_counter()
        self._next_save = end + (end - start) * (1.0 / SAVING_SHARE - 1.0)


def _policy_state(policy: PolicyPredictor) -> dict[str, Any] | None:
    """Return the state of a policy that draws; others are done after an episode."""
    if not isinstance(policy, Random):
        return None
    return dict(policy.action_space.np_random.bit_generator.state)


def _restore_policy(policy: PolicyPredictor, state: dict[str, Any] | None) -> None:
    if isinstance(policy, Random) and state is not None:
        policy.action_space.np_random.bit_generator.state = state
