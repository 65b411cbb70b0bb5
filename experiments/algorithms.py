"""Agents by name, each built for a search of a known length."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.type_aliases import GymEnv

from agents import CMAES, TPE, QCriticPPO
from agents.q_critic_ppo import Advantage

__all__ = [
    "CONTRIB",
    "LEARNERS",
    "POLICIES",
    "SINGLE",
    "UNIFORM_BITS",
    "check_algorithm",
    "check_packages",
    "make_learner",
]

LOG_STD = -0.5  # a standard deviation of 1 would put a third of the first actions on the bounds
Builder = Callable[[GymEnv, int, int], BaseAlgorithm]


def _q_critic_ppo(advantage: Advantage) -> Builder:
    def build(env: GymEnv, n_steps: int, seed: int) -> BaseAlgorithm:
        # Rewards come at the end, after decisions that the observation does not tell: hence
        # returns.
        return QCriticPPO(
            "MlpPolicy",
            env,
            advantage=advantage,
            gamma=1.0,
            target_steps=10,
            learning_starts=min(50, n_steps // 5),
            seed=seed,
            device="cpu",
        )

    return build


def _on_policy(agent: Callable[..., BaseAlgorithm]) -> Builder:
    def build(env: GymEnv, n_steps: int, seed: int) -> BaseAlgorithm:
        rollout = _rollout(n_steps)
        return agent(
            "MlpPolicy",
            env,
            n_steps=rollout,
            batch_size=rollout // 2,
            gamma=1.0,
            learning_rate=1e-3,
            seed=seed,
            device="cpu",
            policy_kwargs={"log_std_init": LOG_STD},
        )

    return build


def _a2c(env: GymEnv, n_steps: int, seed: int) -> BaseAlgorithm:
    return A2C(
        "MlpPolicy",
        env,
        n_steps=5,
        gamma=1.0,
        seed=seed,
        device="cpu",
        policy_kwargs={"log_std_init": LOG_STD},
    )


def _off_policy(agent: Callable[..., BaseAlgorithm], noise: float | None) -> Builder:
    def build(env: GymEnv, n_steps: int, seed: int) -> BaseAlgorithm:
        extra: dict[str, Any] = {}
        if noise is not None:
            extra["action_noise"] = NormalActionNoise(np.zeros(1), np.full(1, noise))
        return agent(
            "MlpPolicy",
            env,
            gamma=1.0,
            learning_starts=min(100, n_steps // 5),
            batch_size=64,
            buffer_size=max(n_steps, 1),
            seed=seed,
            device="cpu",
            policy_kwargs={"net_arch": [64, 64]},
            **extra,
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


def _ars(env: GymEnv, n_steps: int, seed: int) -> BaseAlgorithm:
    return _contrib("ARS")("MlpPolicy", env, seed=seed, device="cpu")


def _cma_es(env: GymEnv, n_steps: int, seed: int) -> BaseAlgorithm:
    return CMAES("MlpPolicy", env, seed=seed)


def _tpe(env: GymEnv, n_steps: int, seed: int) -> BaseAlgorithm:
    return TPE("MlpPolicy", env, seed=seed)


def _rollout(n_steps: int) -> int:
    """Steps between two updates: a tenth of the search, even, in 8..64."""
    return int(np.clip(n_steps // 20, 4, 32)) * 2


LEARNERS: dict[str, Builder] = {
    "q_critic_ppo": _q_critic_ppo("q_baseline"),
    "ppo": _on_policy(PPO),
    "a2c": _a2c,
    "ddpg": _off_policy(DDPG, 0.3),
    "td3": _off_policy(TD3, 0.3),
    "sac": _off_policy(SAC, None),
    "q_critic_ppo_q": _q_critic_ppo("q"),
    "cma_es": _cma_es,
    "tpe": _tpe,
}
"""Agents that learn, and black-box searches, by name."""

CONTRIB: dict[str, Builder] = {
    "tqc": _off_policy(_contrib("TQC"), None),
    "trpo": _on_policy(_contrib("TRPO")),
    "crossq": _off_policy(_contrib("CrossQ"), None),
    "ars": _ars,
}
"""Learners of sb3-contrib, by name."""

POLICIES = ("random", "uniform", "afie", "sbpf", "greedy")
"""Agents that do not learn."""
SINGLE = ("uniform", "afie", "sbpf", "greedy")
"""Those of them that always do the same, so that one episode is all there is."""
UNIFORM_BITS = ("uniform", "afie", "sbpf")
"""Those of them that give all layers the same bits."""


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


def make_learner(name: str, env: GymEnv, *, n_steps: int, seed: int) -> BaseAlgorithm:
    """Build a learner for a search of `n_steps` environment steps.

    Raises:
        ImportError: If it is one of `CONTRIB` and sb3-contrib is not installed.
    """
    return (LEARNERS | CONTRIB)[name](env, n_steps, seed)
