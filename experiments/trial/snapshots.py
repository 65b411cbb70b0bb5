"""What an agent has learnt when its search has used its part of a budget.

That is what its policy does without exploration and, where it is asked for, what its critic gives
the episodes so far.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
from stable_baselines3.common.type_aliases import PolicyPredictor

from compress_env.seeding import global_seed
from experiments.common.run_folder import RunFolder
from experiments.common.stored import typed
from experiments.search.episodes import Episode
from experiments.search.playing import play
from experiments.trial.nomination import POLICY, Candidate, fresh_orders, searched

__all__ = ["PolicySnapshots", "Snapshot", "episode_values", "policy_candidate"]


class Snapshot(NamedTuple):
    """What an agent has learnt at some moment."""

    policy: Candidate | None
    """What its policy did; None if it does not learn, or the episode failed."""
    values: tuple[float, ...] = ()
    """What its critic gives each of the first episodes; none where nobody has asked."""


class PolicySnapshots:
    """Plays a policy beside its search, which goes on as if nobody had asked.

    It plays on an environment of its own and under global random states of its own. A snapshot is
    kept at once; a stopped search that comes by again makes the same one again.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        folder: RunFolder,
        budgets: Sequence[int],
        seed: int,
        *,
        with_values: bool = False,
    ) -> None:
        """Begin without one.

        Args:
            env: The search's own, as the agent observes it; it is copied when that is needed.
            folder: The run folder.
            budgets: Budgets that end before the search does.
            seed: The trial's seed.
            with_values: Whether the critic is asked too, see `episode_values`.
        """
        self._env, self._folder, self._budgets, self._seed = env, folder, budgets, seed
        self._with_values = with_values
        self._own: gym.Env[Any, Any] | None = None

    def note(self, policy: PolicyPredictor, episodes: Sequence[Episode]) -> None:
        """Take the snapshots that are due with the last episode."""
        before = episodes[-2].n_evaluations if len(episodes) > 1 else 0
        for budget in self._budgets:
            if before < searched(budget) <= episodes[-1].n_evaluations:
                values = episode_values(policy) if self._with_values else []
                state = self._play(policy) | {"episode_values": values}
                self._folder.write_state(_name(budget), state)

    def read(self, budget: int) -> Snapshot:
        """Return the snapshot of a budget, one of nothing if there is none.

        Raises:
            ValueError: If it cannot be read.
        """
        state = self._folder.read_state(_name(budget))
        if state is None:
            return Snapshot(None)
        with self._folder.using(_name(budget)):
            values = typed(tuple[float, ...], state.get("episode_values", []))
            return Snapshot(policy_candidate(state), values)

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


def episode_values(agent: Any) -> list[float]:
    """Return what an agent's critic gives its episodes so far, in their order.

    An episode that ends at this moment may be missing.

    Args:
        agent: With a method `episode_values`, as `agents.QCriticPPO`.
    """
    values: list[float] = agent.episode_values().tolist()
    return values


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
