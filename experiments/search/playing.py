"""Episodes, and how one is played: by a policy without exploration, or by given actions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.type_aliases import PolicyPredictor

from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.stage import Action, Observation
from experiments.common.stored import restore, typed
from experiments.search.policies import Script

__all__ = [
    "Episode",
    "UnfinishedEpisode",
    "format_actions",
    "play",
    "play_actions",
    "play_values",
    "read_values",
]


@dataclass(frozen=True)
class Episode:
    """One finished episode."""

    index: int
    """Number within the search, from 0."""
    layers: tuple[str, ...]
    """Decided layers, in order."""
    actions: tuple[float, ...]
    """Actions as given, in [-1, 1]; that at which the episode failed too."""
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
    noise_seed: int | None = None
    """Order of its minibatches; None where an earlier version has not kept it."""
    information_std: tuple[float | None, ...] = ()
    """Of each decided layer, how far the information of its outputs differs, in nats; None where
    it was not measured. Empty where it never was."""
    cost_budget: float | None = None
    """Its budget, a fraction, of a search for several; None where it is the task's own."""

    def row(self) -> dict[str, Any]:
        """Flatten into a CSV row, one column per layer."""
        fields = asdict(self)
        layers, values, actions = (fields.pop(k) for k in ("layers", "values", "actions"))
        columns = {f"value:{layer}": v for layer, v in zip(layers, values, strict=True)}
        spreads = zip(layers, fields.pop("information_std"), strict=False)
        if self.cost_budget is None:
            del fields["cost_budget"]
        columns |= {f"information_std:{layer}": spread for layer, spread in spreads}
        return fields | columns | {"actions": format_actions(actions)}

    @staticmethod
    def from_state(state: dict[str, Any]) -> Episode:
        """Make an episode again from what `dataclasses.asdict` has made of it.

        Raises:
            ValueError: If it is something else.
        """
        cost = state["cost"]
        failed = cost != cost  # NaN: it has none
        earlier = {"noise_seed": None, "information_std": (), "cost_budget": None}
        found = restore(Episode, earlier | state | {"cost": 0.0 if failed else cost})
        return replace(found, cost=cost, values=tuple(state["values"]))  # bits stay whole numbers


def format_actions(actions: Sequence[float]) -> str:
    """Format actions for a CSV file; nine digits are enough for float32."""
    return " ".join(f"{action:.9g}" for action in actions)


@dataclass
class UnfinishedEpisode:
    """What is known of an episode before it ends."""

    layers: list[str] = field(default_factory=list)
    actions: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    information_std: list[float | None] = field(default_factory=list)
    reward: float = 0.0
    seconds: float = 0.0
    """Up to the moment at which the state was taken that the episode goes on from."""

    def note(self, action: float, info: dict[str, Any], value_name: str) -> None:
        """Take note of a step.

        Args:
            action: In [-1, 1].
            info: What the environment has said of it.
            value_name: What the executed value is called there.
        """
        self.actions.append(action)
        # What a VecEnv returns may be rounded to float32.
        self.reward += info["reward_terms"]["reward"]
        if "error" not in info:
            self.layers.append(info["layer"])
            self.values.append(info[value_name])
            self.information_std.append(info.get("information_std"))

    def finished(
        self, info: dict[str, Any], *, index: int, n_evaluations: int, seconds: float
    ) -> Episode:
        """Return the episode; `info` is of its last step, the rest as in `Episode`."""
        spreads = self.information_std
        return Episode(
            index=index,
            layers=tuple(self.layers),
            actions=tuple(self.actions),
            values=tuple(self.values),
            accuracy=None if math.isnan(info["accuracy"]) else info["accuracy"],
            reward=self.reward,
            cost=info["reward_terms"].get("cost", math.nan),
            dense_macs=info["dense_macs"],
            dense_params=info["dense_params"],
            sparse_macs=info["sparse_macs"],
            sparse_params=info["sparse_params"],
            n_evaluations=n_evaluations,
            seconds=seconds,
            error=info.get("error"),
            noise_seed=info["noise_seed"],
            information_std=tuple(spreads) if set(spreads) != {None} else (),
            cost_budget=info.get("budget"),
        )


def play(
    env: gym.Env[Any, Any],
    policy: PolicyPredictor,
    noise_seed: int | None = None,
    budget: float | None = None,
) -> Episode:
    """Let a policy act for one episode; the environment then holds its network.

    Args:
        env: The environment, or a wrapper that adds to its observations.
        policy: Asked for its deterministic actions, on batches of one observation.
        noise_seed: Order of the minibatches; what the environment chooses when None.
        budget: That of the episode, of a `SeveralBudgets`; what it chooses when None.
    """

    def act(observation: Observation) -> Action:
        batch, _ = policy.predict(observation[None], deterministic=True)
        action: Action = np.asarray(batch, np.float32)[0]
        return action

    return _play(env, act, noise_seed, budget)


def play_actions(
    env: LayerwiseCompressionEnv, actions: Sequence[float], noise_seed: int | None = None
) -> Episode:
    """Take given actions; the environment then holds their network.

    Raises:
        ValueError: If there are more than layers, or fewer and the episode does not end with them.
    """
    try:
        if len(actions) <= len(env.walk):
            return play(env, Script(actions), noise_seed)
    except StopIteration:
        pass
    raise ValueError(f"expected {len(env.walk)} actions, one for each layer, got {len(actions)}")


def read_values(text: str) -> dict[str, float]:
    """Read the values of an allocation by layer, as a table keeps them.

    Args:
        text: A JSON object.

    Raises:
        ValueError: If it is something else.
    """
    try:
        content = json.loads(text)
    except (RecursionError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object of values by layer, got {text!r:.80}")
    try:
        return {name: typed(float, value) for name, value in content.items()}
    except TypeError as error:
        raise ValueError(f"values by layer must be {error}") from None


def play_values(
    env: LayerwiseCompressionEnv, values: Mapping[str, float], noise_seed: int | None = None
) -> Episode:
    """Execute given values, whatever the prior; the environment then holds their network.

    Args:
        env: The environment.
        values: Pruning rate or bits of each layer of the walk.
        noise_seed: As in `play`.

    Raises:
        ValueError: If they are of other layers, or one is not feasible where it is due.
    """
    walk = [layer.name for layer in env.walk]
    if list(values) != walk:
        raise ValueError(f"expected values of {', '.join(walk)}, got of {', '.join(values)}")
    wanted = iter(values.values())
    episode = _play(env, lambda _: env.action_for(next(wanted)), noise_seed)
    for layer, value, executed in zip(walk, values.values(), episode.values, strict=False):
        if not math.isclose(value, executed, rel_tol=1e-9, abs_tol=1e-9):
            raise ValueError(f"{value} is not feasible at {layer}, executed was {executed}")
    return episode


def _play(
    env: gym.Env[Any, Any],
    act: Callable[[Observation], Action],
    noise_seed: int | None,
    budget: float | None = None,
) -> Episode:
    start, now, ended = perf_counter(), UnfinishedEpisode(), False
    value_name = env.get_wrapper_attr("value_name")
    given = {"noise_seed": noise_seed, "budget": budget}
    options = {name: value for name, value in given.items() if value is not None}
    observation, before = env.reset(options=options or None)
    while not ended:
        action = act(observation)
        observation, _, ended, _, info = env.step(action)
        now.note(float(action[0]), info, value_name)
    n_evaluations = info["n_evaluations"] - before["n_evaluations"]
    seconds = perf_counter() - start
    return now.finished(info, index=0, n_evaluations=n_evaluations, seconds=seconds)
