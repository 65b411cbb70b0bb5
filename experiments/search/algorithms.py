"""Agents by name, each built for a search of a known length."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.type_aliases import GymEnv

from agents import CIMPPO, CMAES, KLPPO, TPE, QCriticPPO
from agents.q_critic_ppo import Advantage
from experiments.search.hyperparameters import check_settings, stored_settings

__all__ = [
    "CONTRIB",
    "LEARNERS",
    "POLICIES",
    "PRUNING_ONLY",
    "SINGLE",
    "UNIFORM_BITS",
    "check_algorithm",
    "check_packages",
    "make_learner",
]

Settings = Mapping[str, Any]
Builder = Callable[[GymEnv, int, int, Settings], BaseAlgorithm]
"""Takes environment, environment steps of the search, seed and all hyper-parameters."""


def _q_critic_ppo(advantage: Advantage) -> Builder:
    def build(env: GymEnv, n_steps: int, seed: int, settings: Settings) -> BaseAlgorithm:
        given = dict(settings)
        return QCriticPPO(
            "MlpPolicy",
            env,
            advantage=advantage,
            gamma=1.0,
            learning_starts=_pop_learning_starts(given, n_steps),
            seed=seed,
            device="cpu",
            policy_kwargs={"log_std_init": given.pop("log_std_init")},
            **given,
        )

    return build


def _on_policy(agent: Callable[..., BaseAlgorithm]) -> Builder:
    def build(env: GymEnv, n_steps: int, seed: int, settings: Settings) -> BaseAlgorithm:
        given = dict(settings)
        rollout = _rollout(n_steps, given.pop("n_updates"), given.pop("n_steps_max"))
        return agent(
            "MlpPolicy",
            env,
            n_steps=rollout,
            batch_size=rollout // 2,
            gamma=1.0,
            seed=seed,
            device="cpu",
            policy_kwargs={"log_std_init": given.pop("log_std_init")},
            **given,
        )

    return build


def _a2c(env: GymEnv, n_steps: int, seed: int, settings: Settings) -> BaseAlgorithm:
    given = dict(settings)
    return A2C(
        "MlpPolicy",
        env,
        gamma=1.0,
        seed=seed,
        device="cpu",
        policy_kwargs={"log_std_init": given.pop("log_std_init")},
        **given,
    )


def _off_policy(agent: Callable[..., BaseAlgorithm]) -> Builder:
    def build(env: GymEnv, n_steps: int, seed: int, settings: Settings) -> BaseAlgorithm:
        given = dict(settings)
        if "action_noise" in given:
            std = given.pop("action_noise")
            given["action_noise"] = NormalActionNoise(np.zeros(1), np.full(1, std))
        return agent(
            "MlpPolicy",
            env,
            gamma=1.0,
            learning_starts=_pop_learning_starts(given, n_steps),
            buffer_size=max(n_steps, 1),
            seed=seed,
            device="cpu",
            policy_kwargs={"net_arch": [64, 64]},
            **given,
        )

    return build


def _contrib(name: str) -> Callable[..., BaseAlgorithm]:
    def make(*args: Any, **kwargs: Any) -> BaseAlgorithm:
        agent: BaseAlgorithm = getattr(_import_contrib(), name)(*args, **kwargs)
        return agent

    return make


def _import_contrib() -> Any:
    try:
        return importlib.import_module("sb3_contrib")
    except ImportError:
        raise ImportError(
            f"{', '.join(CONTRIB)} need sb3-contrib: pip install 'compress-env[contrib]'"
        ) from None


def _ars(env: GymEnv, n_steps: int, seed: int, settings: Settings) -> BaseAlgorithm:
    return _contrib("ARS")("MlpPolicy", env, seed=seed, device="cpu", **settings)


def _cma_es(env: GymEnv, n_steps: int, seed: int, settings: Settings) -> BaseAlgorithm:
    return CMAES("MlpPolicy", env, seed=seed)


def _tpe(env: GymEnv, n_steps: int, seed: int, settings: Settings) -> BaseAlgorithm:
    return TPE("MlpPolicy", env, seed=seed)


def _rollout(n_steps: int, n_updates: int, highest: int) -> int:
    """Steps between two updates: even, from 8 to `highest`."""
    return int(np.clip(n_steps // (2 * n_updates), 4, max(highest // 2, 4))) * 2


def _pop_learning_starts(settings: dict[str, Any], n_steps: int) -> int:
    """Take two settings out; return the steps before learning starts."""
    fraction = settings.pop("learning_starts_fraction")
    highest: int = settings.pop("learning_starts_max")
    return min(highest, int(fraction * n_steps))


LEARNERS: dict[str, Builder] = {
    "q_critic_ppo": _q_critic_ppo("q_baseline"),
    "ppo": _on_policy(PPO),
    "kl_ppo": _on_policy(KLPPO),
    "cim_ppo": _on_policy(CIMPPO),
    "a2c": _a2c,
    "ddpg": _off_policy(DDPG),
    "td3": _off_policy(TD3),
    "sac": _off_policy(SAC),
    "q_critic_ppo_q": _q_critic_ppo("q"),
    "cma_es": _cma_es,
    "tpe": _tpe,
}
"""Agents that learn, and black-box searches, by name."""

CONTRIB: dict[str, Builder] = {
    "tqc": _off_policy(_contrib("TQC")),
    "trpo": _on_policy(_contrib("TRPO")),
    "crossq": _off_policy(_contrib("CrossQ")),
    "ars": _ars,
}
"""Learners of sb3-contrib, by name."""

POLICIES = ("random", "uniform", "afie", "sbpf", "greedy")
"""Agents that do not learn."""
SINGLE = ("uniform", "afie", "sbpf", "greedy")
"""Those of them that always do the same, so that one episode is all there is."""
PRUNING_ONLY = ("afie", "sbpf")
"""Those of them that choose pruning rates and know nothing of bits."""
UNIFORM_BITS = ("uniform", *PRUNING_ONLY)
"""Those of them that give all layers the same bits, or leave that to `uniform`."""


def check_algorithm(name: str) -> None:
    """Check a name.

    Raises:
        ValueError: If no agent has it.
    """
    valid = (*LEARNERS, *POLICIES)
    if name not in valid:
        raise ValueError(f"unknown algorithm {name!r}; valid: {', '.join(valid)}")


def check_packages(name: str) -> None:
    """Check that the package which an agent needs is installed, if it needs one.

    Raises:
        ImportError: If it is missing.
    """
    if name in CONTRIB:
        _import_contrib()
    if name == "tpe" and importlib.util.find_spec("optuna") is None:
        raise ImportError("tpe needs optuna: pip install 'compress-env[benchmark]'")


def make_learner(
    name: str, env: GymEnv, *, n_steps: int, seed: int, settings: Settings | None = None
) -> BaseAlgorithm:
    """Build a learner for a search of `n_steps` environment steps.

    Args:
        name: One of `LEARNERS` or `CONTRIB`.
        env: The environment.
        n_steps: Environment steps of the search.
        seed: Seed of the agent.
        settings: Hyper-parameters in place of stored ones, by name.

    Raises:
        ValueError: If the agent does not have one of the settings, or does not take its value.
        ImportError: If it is one of `CONTRIB` and sb3-contrib is not installed.
    """
    given = dict(settings or {})
    check_settings(name, given)
    try:
        return (LEARNERS | CONTRIB)[name](env, n_steps, seed, stored_settings(name) | given)
    except AssertionError as error:  # as which Stable-Baselines3 refuses some values
        raise ValueError(f"{name} does not take its settings: {error}") from None
