"""Agents by name, each built for a search of a known length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, PolicyPredictor, Schedule
from stable_baselines3.common.vec_env import VecEnv

from agents import SBPF, EpisodeSearch, Greedy, Portfolio, QCriticPPO, Random, Rule
from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.pruning import PruningEnv
from experiments.search.actors import synchronous_actors
from experiments.search.entrants import (
    BITS_ONLY,
    CONTRIB,
    ENTRANTS,
    LEARNERS,
    POLICIES,
    PRUNING_ONLY,
    SINGLE,
    agent_of,
    check_algorithm,
    learner_class,
    rule_of,
)
from experiments.search.episodes import EpisodeLog
from experiments.search.foreign import blaming, find
from experiments.search.hyperparameters import check_settings, stored_settings
from experiments.search.uniform import uniform_policy

__all__ = [
    "CONTRIB",
    "LEARNERS",
    "SINGLE",
    "Learner",
    "check_algorithm",
    "check_takes",
    "has_rate",
    "make_agent",
    "make_learner",
    "make_single",
]

Settings = Mapping[str, Any]
RATES = ("learning_rate", "actor_learning_rate")
"""Settings that a schedule may take the place of."""
SMALL = 0.01
"""What the weights of an actor's last layer are multiplied by, so that it starts near action 0."""
OF_POLICY = ("log_std_init", "n_critics", "ensemble")
"""Settings that an agent's policy takes."""


def has_rate(name: str) -> bool:
    """Tell whether an agent has a learning rate."""
    return "learning_rate" in stored_settings(name)


@runtime_checkable
class Learner(Protocol):
    """What learns by itself: the search is over when the environment says so."""

    def learn(self, total_timesteps: int) -> object:
        """Take steps in the environment that it was built with."""


def make_agent(
    name: str,
    env: LayerwiseCompressionEnv,
    log: EpisodeLog,
    *,
    n_steps: int,
    seed: int,
    settings: Settings,
) -> Any:
    """Build an agent.

    Args:
        name: A name that `check_agent` accepts.
        env: The environment in `log`, for agents that look at the network.
        log: What the agent acts on; a Stable-Baselines3 `VecEnv`.
        n_steps: Environment steps of the search.
        seed: Seed of the agent.
        settings: Hyper-parameters in place of those that are stored for the agent.

    Returns:
        A Stable-Baselines3 algorithm, a `Learner`, or something with `predict` alone.

    Raises:
        ValueError: If the agent cannot be used on this task.
        ImportError: If its module is missing.
        RuntimeError: If its constructor raises something.
    """
    if ":" in name:
        found = find(agent_of(name))
        with blaming(name):
            return found("MlpPolicy", log, seed=seed) if isinstance(found, type) else found
    if agent_of(name) == "random":
        check_settings(name, settings)
        own = stored_settings(name) | dict(settings)
        return Random(log.observation_space, log.action_space, seed, **own)
    if name in SINGLE:
        return make_single(name, env, log, seed)
    return make_learner(name, log, n_steps=n_steps, seed=seed, settings=settings)


def check_takes(
    name: str, env: gym.Env[Any, Any], *, n_envs: int, n_steps: int, settings: Settings
) -> None:
    """Build an agent that has settings and let it go again, so that what it refuses is known.

    Args:
        name: A name that `check_agent` accepts; others than those that learn or search are not
            built, as that evaluates networks, or runs somebody's code.
        env: The environment as the agent observes it.
        n_envs: Environments that it steps at once.
        n_steps: Environment steps of its search.
        settings: Hyper-parameters in place of stored ones.

    Raises:
        ValueError: If the agent does not take a setting, or cannot be used on this task.
    """
    if ":" in name or agent_of(name) in POLICIES:
        check_settings(name, settings)
        return
    actors = synchronous_actors(env, n_envs, None)
    make_learner(name, EpisodeLog(actors), n_steps=n_steps, seed=0, settings=settings)


def make_single(
    name: str, env: LayerwiseCompressionEnv, log: EpisodeLog, seed: int
) -> PolicyPredictor:
    """Build an agent of `SINGLE`; what it has evaluated for that is counted in `log`.

    Raises:
        ValueError: If the agent cannot be used on this task.
    """
    if name == "uniform":
        return uniform_policy(env, log.spend)
    agent: SBPF | Greedy | Portfolio | Rule
    if name == "portfolio":
        agent = Portfolio(env)
    elif name == "greedy":
        agent = Greedy(env)
    elif name in PRUNING_ONLY and not isinstance(env, PruningEnv):
        raise ValueError(f"{name} chooses pruning rates, not {env.value_name}")
    elif name in BITS_ONLY and isinstance(env, PruningEnv):
        raise ValueError(f"{name} chooses bits, not {env.value_name}")
    elif name == "sbpf":
        agent = SBPF(env, seed=seed)
    else:  # those of pruning that are not alone in that leave bits to a rule of their own
        is_of_stage = name in env.rules()
        agent = Rule(env, name if is_of_stage else "relative_error")
    log.spend(agent.n_evaluations, agent.seconds)
    return agent


def make_learner(
    name: str,
    env: GymEnv,
    *,
    n_steps: int,
    seed: int,
    settings: Settings | None = None,
    rate: Callable[[float], Schedule] | None = None,
) -> BaseAlgorithm:
    """Build a learner for a search of `n_steps` environment steps.

    Args:
        name: One of `LEARNERS` or `CONTRIB`.
        env: The environment.
        n_steps: Environment steps of the search.
        seed: Seed of the agent.
        settings: Hyper-parameters in place of stored ones, by name.
        rate: Makes a schedule of each of the agent's learning rates.

    Raises:
        ValueError: If the agent does not have one of the settings, or does not take its value.
        ImportError: If it is one of `CONTRIB` and sb3-contrib is not installed.
    """
    given = dict(settings or {})
    check_settings(name, given)
    agent = learner_class(name)
    n_envs = env.num_envs if isinstance(env, VecEnv) else 1
    fixed = dict(ENTRANTS[agent_of(name)].fixed)
    arguments = fixed | _arguments(stored_settings(name) | given, n_steps, n_envs)
    policy = {**fixed.get("policy_kwargs", {}), **arguments.get("policy_kwargs", {})}
    if policy:
        arguments["policy_kwargs"] = policy
    if rate is not None:
        given_rates = {name: arguments[name] for name in RATES if arguments.get(name) is not None}
        arguments |= {name: rate(value) for name, value in given_rates.items()}
    if issubclass(agent, EpisodeSearch) and rule_of(name) is not None:
        arguments["start"] = 0.0
    if issubclass(agent, OnPolicyAlgorithm | OffPolicyAlgorithm):
        arguments["gamma"] = 1.0
    if {"n_steps", "batch_size"} <= arguments.keys() and not issubclass(agent, QCriticPPO):
        # A minibatch is of the rollout, and no larger.
        rollout = arguments["n_steps"] * n_envs
        arguments["batch_size"] = min(arguments["batch_size"], rollout)
    spread = None
    if issubclass(agent, OffPolicyAlgorithm):
        spread = arguments.pop("spread", None)
        arguments |= {"buffer_size": max(n_steps, 1), "policy_kwargs": {"net_arch": [64, 64]}}
        # As many updates per transition as with one environment.
        arguments["gradient_steps"] = arguments.get("gradient_steps", 1) * n_envs
    try:
        learner = agent("MlpPolicy", env, seed=seed, device="cpu", **arguments)
    except AssertionError as error:  # as which Stable-Baselines3 refuses some values
        raise ValueError(f"{name} does not take its settings: {error}") from None
    if isinstance(learner, OffPolicyAlgorithm) and spread is not None:
        _start_around(learner, spread, seed)
    return learner


class Around(spaces.Box):
    """A box of actions whose samples are normal around its middle."""

    def __init__(self, box: spaces.Box, spread: float) -> None:
        """Take the bounds of a box.

        Args:
            box: The space, any shape.
            spread: Standard deviation, in halves of its width.
        """
        super().__init__(box.low, box.high, dtype=np.float32)
        self.spread = spread

    def sample(self, mask: None = None, probability: None = None) -> NDArray[Any]:
        """Return an action of the space's shape, clipped to its bounds."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        drawn = middle + self.spread * half * self.np_random.standard_normal(self.shape)
        return np.clip(drawn, self.low, self.high).astype(np.float32)


def _start_around(agent: OffPolicyAlgorithm, spread: float, seed: int) -> None:
    """Let an agent start around action 0: its first, random steps, and its policy's actions.

    Args:
        agent: One of Stable-Baselines3's that learn from a replay buffer; changed.
        spread: Standard deviation of the first actions, and of the policy where it has one.
        seed: Of the random steps.
    """
    assert isinstance(agent.action_space, spaces.Box)
    agent.action_space = Around(agent.action_space, spread)
    agent.action_space.seed(seed)
    actor: Any = agent.policy.actor
    is_gaussian = hasattr(actor, "log_std")
    with torch.no_grad():
        last = actor.mu if is_gaussian else actor.mu[-2]  # before tanh
        last.weight.mul_(SMALL)
        last.bias.zero_()
        if is_gaussian:
            actor.log_std.weight.mul_(SMALL)
            actor.log_std.bias.fill_(float(np.log(spread)))
    target: Any = getattr(agent.policy, "actor_target", None)
    if target is not None:
        target.load_state_dict(actor.state_dict())


def _arguments(settings: dict[str, Any], n_steps: int, n_envs: int) -> dict[str, Any]:
    """Turn hyper-parameters into arguments of an agent's class, for a search of `n_steps`.

    Args:
        settings: Hyper-parameters.
        n_steps: Environment steps of the search, over all environments.
        n_envs: Environments that are stepped at once.
    """
    given = dict(settings)
    if "n_updates" in given:
        steps = _rollout(n_steps, given.pop("n_updates"), given.pop("n_steps_max"))
        each = -(-steps // n_envs)
        given |= {"n_steps": each, "batch_size": each * n_envs // 2}
    if "learning_starts_fraction" in given:
        highest = given.pop("learning_starts_max")
        given["learning_starts"] = min(
            highest, int(given.pop("learning_starts_fraction") * n_steps)
        )
    if "action_noise" in given:
        std = np.full(1, given["action_noise"])
        given["action_noise"] = NormalActionNoise(np.zeros(1), std)
    of_policy = {name: given.pop(name) for name in OF_POLICY if name in given}
    return given | ({"policy_kwargs": of_policy} if of_policy else {})


def _rollout(n_steps: int, n_updates: int, highest: int) -> int:
    """Steps between two updates, over all environments: even, from 8 to `highest`."""
    return int(np.clip(n_steps // (2 * n_updates), 4, max(highest // 2, 4))) * 2
