"""What `table.csv` says of a trial's best episode, and of its agent without exploration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from agents.overestimation import OverestimationRecord, settled_overestimation
from compress_env.envs.base import LayerwiseCompressionEnv
from experiments.common.stored import typed
from experiments.search.episodes import Episode, best_episode
from experiments.search.playing import format_actions, play_actions
from experiments.trial.snapshots import policy_candidate

__all__ = ["OF_BEST", "checked_outcome", "columns_of_best", "late_overestimation", "row_of"]

OF_BEST = {"validation_accuracy": "accuracy"} | {
    name: name
    for name in ("reward", "cost", "dense_macs", "dense_params", "sparse_macs", "sparse_params")
}
"""Columns of `table.csv` that are of the best episode, and what they are called of an episode."""


def checked_outcome(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a state holds of an agent without exploration.

    Raises:
        TypeError: If it is something else.
    """
    kinds = {"reward": float, "accuracy": float, "actions": tuple[float, ...]}
    values = {name: outcome[name] for name in kinds}
    for name, kind in kinds.items():
        if values[name] == values[name]:  # not NaN, as a failed episode's accuracy is
            typed(kind, values[name])
    records = [OverestimationRecord(*record) for record in outcome["records"]]
    has_failed = values["accuracy"] != values["accuracy"]
    state = {"has_failed": has_failed, "values": ()} | dict(outcome)
    return values | {
        "records": records,
        "noise_seed": outcome.get("noise_seed"),
        "policy": policy_candidate(state) if outcome.get("learns") else None,
        "episode_values": typed(tuple[float, ...], outcome.get("episode_values", [])),
        "by_budget": [
            checked_outcome(dict(outcome) | each | {"by_budget": []})
            for each in outcome.get("by_budget", [])
        ],
    }


def row_of(
    env: LayerwiseCompressionEnv,
    episodes: Sequence[Episode],
    outcome: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the row of `table.csv`; only the best network meets the test images."""
    best = best_episode(episodes)
    play_actions(env, best.actions, best.noise_seed)
    return columns_of_best(env, best) | {
        "actions": format_actions(best.actions),
        "best_reward": best.reward,
        "final_reward": outcome["reward"],
        "final_accuracy": outcome["accuracy"],
        "final_actions": format_actions(outcome["actions"]),
        "q_overestimation": late_overestimation(outcome["records"]),
        "q_settled": settled_overestimation(outcome["records"]),
        "n_evaluations": episodes[-1].n_evaluations,
        "n_episodes": len(episodes),
        "seconds": sum(episode.seconds for episode in episodes),
    }


def late_overestimation(records: Sequence[OverestimationRecord]) -> float:
    """Return by how much the critic overestimates, a mean over the second half of the episodes.

    In the first half it has hardly learnt **(ours)**; whether it has by the end is for
    `settled_overestimation` to say. NaN for an agent without a known critic.
    """
    late = [record.overestimation for record in records[len(records) // 2 :]]
    return sum(late) / len(late) if late else math.nan


def columns_of_best(env: LayerwiseCompressionEnv, episode: Episode) -> dict[str, Any]:
    """Return what `table.csv` says of the best episode, whose network `env` holds."""
    return {column: getattr(episode, name) for column, name in OF_BEST.items()} | {
        "test_accuracy": env.task.accuracy(env.compressed_model(), "test"),
        "cost_fraction": episode.cost / env.unpruned.cost_high,
    }
