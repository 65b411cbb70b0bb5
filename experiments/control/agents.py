"""Tasks and agents of `experiments.control` by name, with the settings of each in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from agents import CIMPPO, KLPPO, QCriticPPO
from agents.penalty_ppo import PenaltyPPO
from agents.q_critic_ppo import PAPER_ENVS
from compress_env.names import check_name

__all__ = [
    "AGENTS",
    "PENALTIES",
    "TASKS",
    "Task",
    "check_agent",
    "check_task",
    "make_agent",
    "make_env",
]

Builder = Callable[["Task", VecEnv, int], BaseAlgorithm]


@dataclass(frozen=True)
class Task:
    """A Gymnasium task, and how agents learn it."""

    total_timesteps: int
    """Environment steps of a run, over all environments; whole rollouts of PPO."""
    n_envs: int
    """Environments at a time of PPO, whatever its penalty; for others see `Agent`."""
    ppo: dict[str, Any]
    """Settings of PPO that are not Stable-Baselines3's defaults, the same for every penalty."""
    normalize: bool = False
    """Whether observations and rewards are normalised by running statistics, for every agent."""
    q_critic_ppo: dict[str, Any] = field(default_factory=dict)
    """Settings of `QCriticPPO` that are not its defaults."""
    threshold: float | None = None
    """Mean return from which on the task counts as learned."""
    package: str | None = None
    """Package that the task needs beside Gymnasium."""


# Hyper-parameters of rl-baselines3-zoo (hyperparams/ppo.yml, revision 00128b5); for Pendulum
# without its state-dependent noise, as penalties need a plain Gaussian, and with fewer steps for
# the lander.
PENDULUM_PPO = {"n_steps": 1024, "gamma": 0.9, "learning_rate": 1e-3}
CART_POLE_PPO = {
    "n_steps": 32,
    "batch_size": 256,
    "gae_lambda": 0.8,
    "gamma": 0.98,
    "n_epochs": 20,
    # To a hundredth, not to 0, at which nothing is learnt.
    "learning_rate": LinearSchedule(1e-3, 1e-5, 1.0),
    "clip_range": LinearSchedule(0.2, 2e-3, 1.0),
}
LANDER_PPO = {"n_steps": 1024, "gae_lambda": 0.98, "gamma": 0.999, "n_epochs": 4, "ent_coef": 0.01}
# Found with seeds from 100 on. Without the entropy bonus the noise is gone before the critic knows
# anything of the upper half.
PENDULUM_Q_CRITIC = {
    "gamma": 0.95,
    "learning_rate": 1e-3,
    "gradient_steps": 1,
    "batch_size": 128,
    "n_action_samples": 4,
    "ent_coef": 0.2,
    "policy_kwargs": {"net_arch": [64, 64]},
}


def _mujoco(n_updates: int) -> Task:
    """Stable-Baselines3's defaults, which are those of arXiv 1707.06347, table 3; normalised."""
    return Task(2048 * n_updates, 1, {}, normalize=True, package="mujoco")


TASKS = {
    "Pendulum-v1": Task(102_400, 4, PENDULUM_PPO, q_critic_ppo=PENDULUM_Q_CRITIC, threshold=-300.0),
    "CartPole-v1": Task(102_400, 8, CART_POLE_PPO, threshold=475.0),
    "LunarLander-v3": Task(491_520, 16, LANDER_PPO, threshold=200.0, package="Box2D"),
    "Hopper-v5": _mujoco(100),
    "HalfCheetah-v5": _mujoco(100),
    "Walker2d-v5": _mujoco(100),
    "Swimmer-v5": _mujoco(100),
    "Reacher-v5": _mujoco(100),
    "InvertedPendulum-v5": _mujoco(50),
}
"""Tasks by the names that Gymnasium has for them."""

DISCRETE = ("CartPole-v1", "LunarLander-v3")
"""Those with discrete actions."""


def _penalty(agent: type[PenaltyPPO], **settings: Any) -> Builder:
    def build(task: Task, env: VecEnv, seed: int) -> BaseAlgorithm:
        return agent("MlpPolicy", env, seed=seed, device="cpu", **task.ppo, **settings)

    return build


def _q_critic_ppo(task: Task, env: VecEnv, seed: int) -> BaseAlgorithm:
    return QCriticPPO("MlpPolicy", env, seed=seed, device="cpu", **task.q_critic_ppo)


def _q_critic_ppo_paper(task: Task, env: VecEnv, seed: int) -> BaseAlgorithm:
    gamma = task.q_critic_ppo.get("gamma", 0.99)
    return QCriticPPO.paper("MlpPolicy", env, gamma=gamma, seed=seed, device="cpu")


def _off_policy(agent: type[DDPG] | type[TD3] | type[SAC], noise: float | None) -> Builder:
    """Settings of rl-baselines3-zoo for Pendulum, but for a shorter start and smaller networks."""

    def build(task: Task, env: VecEnv, seed: int) -> BaseAlgorithm:
        extra: dict[str, Any] = {}
        if noise is not None:
            shape = env.action_space.shape
            assert shape is not None
            extra["action_noise"] = NormalActionNoise(np.zeros(shape), np.full(shape, noise))
        return agent(
            "MlpPolicy",
            env,
            gamma=0.98,
            learning_rate=1e-3,
            learning_starts=1000,
            batch_size=64,
            buffer_size=200_000,
            policy_kwargs={"net_arch": [64, 64]},
            seed=seed,
            device="cpu",
            **extra,
        )

    return build


class Agent(NamedTuple):
    """An agent by its builder, and which actions it can take."""

    build: Builder
    discrete: bool
    """Whether it can take discrete actions too."""
    is_ppo: bool
    """Whether it learns from rollouts of several environments, with the settings of PPO."""
    n_envs: int = 1
    """Environments at a time otherwise."""


AGENTS = {
    # With the clipped loss PenaltyPPO is Stable-Baselines3's PPO, weight for weight (a test
    # compares them), and logs the divergences as well.
    "ppo": Agent(_penalty(PenaltyPPO), discrete=True, is_ppo=True),
    "kl_ppo": Agent(_penalty(KLPPO), discrete=True, is_ppo=True),
    # Its coefficient follows the divergence as that of the KL penalty, to the same target.
    "cim_ppo": Agent(_penalty(CIMPPO, kl_target=0.01), discrete=True, is_ppo=True),
    "cim_ppo_metric": Agent(
        _penalty(CIMPPO, kl_target=0.01, cim_form="metric"), discrete=True, is_ppo=True
    ),
    "q_critic_ppo": Agent(_q_critic_ppo, discrete=False, is_ppo=False),
    "q_critic_ppo_paper": Agent(
        _q_critic_ppo_paper, discrete=False, is_ppo=False, n_envs=PAPER_ENVS
    ),
    "ddpg": Agent(_off_policy(DDPG, 0.1), discrete=False, is_ppo=False),
    "td3": Agent(_off_policy(TD3, 0.1), discrete=False, is_ppo=False),
    "sac": Agent(_off_policy(SAC, None), discrete=False, is_ppo=False),
}
"""Agents by name."""

PENALTIES = {"ppo": "clip", "kl_ppo": "KL", "cim_ppo": "CIM", "cim_ppo_metric": "CIM metric"}
"""What keeps the policy of an agent near the one that has acted."""


def make_agent(name: str, task: str, env: VecEnv, seed: int) -> BaseAlgorithm:
    """Build an agent with its settings for a task."""
    return AGENTS[name].build(TASKS[task], env, seed)


def check_task(name: str) -> None:
    """Check that there is a task of this name, and what it needs.

    Raises:
        ValueError: If there is none.
        ImportError: If its package is missing.
    """
    package = TASKS[check_name("task", name, TASKS)].package
    if package is not None and find_spec(package) is None:
        raise ImportError(f"{name} needs {package}: pip install 'compress-env[control]'")


def check_agent(name: str, task: str) -> None:
    """Check that there is an agent of this name, and that it can act in the task.

    Raises:
        ValueError: If not.
    """
    agent = AGENTS[check_name("agent", name, AGENTS)]
    if task in DISCRETE and not agent.discrete:
        raise ValueError(f"{name} needs continuous actions, those of {task} are discrete")


def make_env(name: str, *, n_envs: int, seed: int, statistics_of: VecEnv | None = None) -> VecEnv:
    """Make environments of a task, normalised if the task says so.

    Args:
        name: A task.
        n_envs: How many.
        seed: Of the first; those after it have the seeds that follow.
        statistics_of: Training environments whose statistics normalise the observations; rewards
            are left alone then. Without any, these are the training environments.
    """
    # Nobody looks: for a picture, as Stable-Baselines3 asks for one, the lander's flames would be
    # simulated, which takes most of a step's time.
    env: VecEnv = make_vec_env(name, n_envs, seed=seed, env_kwargs={"render_mode": None})
    if not TASKS[name].normalize:
        return env
    if statistics_of is None:
        return VecNormalize(env)
    assert isinstance(statistics_of, VecNormalize)
    normalized = VecNormalize(env, training=False, norm_reward=False)
    normalized.obs_rms = statistics_of.obs_rms
    return normalized
