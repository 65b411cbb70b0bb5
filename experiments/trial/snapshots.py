"""What a policy does without exploration when its search has used its part of a budget."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from stable_baselines3.common.type_aliases import PolicyPredictor

from compress_env.seeding import global_seed
from experiments.common.run_folder import RunFolder
from experiments.search.episodes import Episode
from experiments.search.playing import play
from experiments.trial.nomination import POLICY, Candidate, fresh_orders, searched

__all__ = ["PolicySnapshots", "policy_candidate"]


class PolicySnapshots:
    """Plays a policy beside its search, which goes on as if nobody had asked.

    It plays on an environment of its own and under global random states of its own. A snapshot is
    kept at once; a stopped search that comes by again makes the same one again.
    """

    def __init__(
        self, env: gym.Env[Any, Any], folder: RunFolder, budgets: Sequence[int], seed: int
    ) -> None:
        """Begin without one.

        Args:
            env: The search's own, as the agent observes it; it is copied when that is needed.
            folder: The run folder.
            budgets: Budgets that end before the search does.
            seed: The trial's seed.
        """
        self._env, self._folder, self._budgets, self._seed = env, folder, budgets, seed
        self._own: gym.Env[Any, Any] | None = None

    def note(self, policy: PolicyPredictor, episodes: Sequence[Episode]) -> None:
        """Take the snapshots that are due with the last episode."""
        before = episodes[-2].n_evaluations if len(episodes) > 1 else 0
        for budget in self._budgets:
            if before < searched(budget) <= episodes[-1].n_evaluations:
                self._folder.write_state(_name(budget), self._play(policy))

    def read(self, budget: int) -> Candidate | None:
        """Return the snapshot of a budget; None if there is none, or its episode failed.

        Raises:
            ValueError: If it cannot be read.
        """
        state = self._folder.read_state(_name(budget))
        if state is None:
            return None
        with self._folder.using(_name(budget)):
            return policy_candidate(state)

    def _play(self, policy: PolicyPredictor) -> dict[str, Any]:
        with global_seed(self._seed, self._env.get_wrapper_attr("task").device):
            if self._own is None:
                self._own = copy.deepcopy(self._env)
            # The order is the first that it would be run under again.
            episode = play(self._own, policy, fresh_orders(self._seed, 1)[0])
        return {
            "actions": episode.actions,
            "values": episode.values,
            "has_failed": episode.accuracy is None,
        }


def policy_candidate(state: dict[str, Any]) -> Candidate | None:
    """Return what a policy did as a candidate; None if its episode failed.

    Args:
        state: `actions`, `values` and `has_failed`.
    """
    if state["has_failed"]:
        return None
    return Candidate(POLICY, tuple(state["actions"]), tuple(state["values"]))


def _name(budget: int) -> str:
    return f"policy-{budget}"
