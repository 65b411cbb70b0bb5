"""Agents of a trial: known by name, of sb3-contrib, or anybody's, as `my_module:MyAgent`."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from stable_baselines3.common.type_aliases import PolicyPredictor

from agents import AFIE, SBPF, Greedy, Random
from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.pruning import PruningEnv
from experiments.search.algorithms import (
    CONTRIB,
    LEARNERS,
    POLICIES,
    SINGLE,
    check_packages,
    make_learner,
)
from experiments.search.episodes import EpisodeLog
from experiments.search.uniform import uniform_policy

__all__ = ["Learner", "blaming", "check_agent", "goes_on", "make_agent", "source_of"]

NOT_RESUMABLE = ("ars",)
"""Learners whose state between two episodes is inside one call of `learn`."""


@runtime_checkable
class Learner(Protocol):
    """What learns by itself: the search is over when the environment says so."""

    def learn(self, total_timesteps: int) -> object:
        """Take steps in the environment that it was built with."""


def check_agent(name: str) -> None:
    """Check the name of an agent, and that what it needs is there.

    Raises:
        ValueError: If there is no such agent, or it is not called as an agent is.
        ImportError: If its module cannot be imported, or a package is missing.
    """
    valid = (*LEARNERS, *POLICIES, *CONTRIB)
    if ":" in name:
        _find(name)
    elif name not in valid:
        raise ValueError(f"unknown agent {name!r}; valid: {', '.join(valid)}, or my_module:MyAgent")
    check_packages(name)


def source_of(name: str) -> Path | None:
    """Return the file of an agent's module, which `check_agent` has imported; None for others."""
    module = sys.modules.get(name.partition(":")[0]) if ":" in name else None
    file = getattr(module, "__file__", None)
    return None if file is None else Path(file)


def goes_on(name: str) -> bool:
    """Whether a stopped search of this agent goes on episode by episode; others start again."""
    return ":" not in name and name not in NOT_RESUMABLE


def make_agent(
    name: str,
    env: LayerwiseCompressionEnv,
    log: EpisodeLog,
    *,
    n_steps: int,
    seed: int,
    settings: Mapping[str, Any],
) -> Any:
    """Build an agent.

    Args:
        name: A name that `check_agent` accepts.
        env: The environment in `log`, for agents that look at the network.
        log: What the agent acts on; a Stable-Baselines3 `VecEnv` of one environment.
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
        found = _find(name)
        with blaming(name):
            return found("MlpPolicy", log, seed=seed) if isinstance(found, type) else found
    if name == "random":
        return Random(log.observation_space, log.action_space, seed)
    if name in SINGLE:
        return _single(name, env, log, seed)
    return make_learner(name, log, n_steps=n_steps, seed=seed, settings=settings)


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """Turn whatever goes wrong in somebody's agent into one line with the place in its file.

    Raises:
        RuntimeError: If anything is raised inside the block.
    """
    try:
        yield
    except Exception as error:
        file = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == file]
        place = f" ({file}, line {lines[-1]})" if lines else ""
        message = f"agent {name!r} failed: {type(error).__name__}: {error}{place}"
        raise RuntimeError(message) from error


def _single(name: str, env: LayerwiseCompressionEnv, log: EpisodeLog, seed: int) -> PolicyPredictor:
    """Return an agent that always does the same; what it has evaluated for that is counted."""
    if name == "uniform":
        return uniform_policy(env, log.spend)
    agent: AFIE | SBPF | Greedy
    if name == "greedy":
        agent = Greedy(env)
    elif not isinstance(env, PruningEnv):
        raise ValueError(f"{name} chooses pruning rates, not {env.value_name}")
    else:
        agent = AFIE(env) if name == "afie" else SBPF(env, seed=seed)
    log.spend(agent.n_evaluations, agent.seconds)
    return agent


def _find(name: str) -> Any:
    """Return what `module:attribute` names; the current directory is searched too."""
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module_name), attribute, None)
    except Exception as error:  # whatever a module does when it is imported
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise ImportError(f"cannot import agent {name!r}: {kind}{error}") from None
    if found is None:
        raise ValueError(f"module {module_name!r} has no {attribute!r}")
    if not callable(getattr(found, "predict", None)):
        raise ValueError(f"agent {name!r} must have a method predict, got {found!r}")
    if isinstance(found, type):
        _check_takes(found, "seed", name, "__init__")
    _check_takes(found.predict, "deterministic", name, "predict")
    return found


def _check_takes(function: Any, argument: str, name: str, method: str) -> None:
    parameters = inspect.signature(function).parameters.values()
    if not any(p.name == argument or p.kind is p.VAR_KEYWORD for p in parameters):
        given = [p.name for p in parameters if p.name != "self"]
        raise ValueError(
            f"agent {name!r}: {method} must take {argument}=..., got ({', '.join(given)})"
        )
