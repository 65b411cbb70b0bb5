"""Timings of environment steps, each against an alternative, in one process and in alternation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from torch import nn
from torch.nn.functional import cross_entropy

from compress_env.envs.pruning import PruningEnv
from compress_env.envs.workers import make_actors
from compress_env.seeding import derive_generator
from compress_env.task.task import CompressionTask
from experiments.search.agent_state import random_state, restore_random_state
from experiments.search.algorithms import make_learner

__all__ = [
    "PHASES",
    "Rows",
    "bare_loop",
    "branching_episodes",
    "new_episodes",
    "synchronize",
    "time_actors",
    "time_episodes",
    "time_steps",
    "time_stores",
]

PHASES = (
    "statistics",
    "selection",
    "surgery",
    "reconstruction",
    "finetune",
    "batch_norm",
    "evaluation",
    "store",
)
Rows = list[dict[str, Any]]
Actions: TypeAlias = NDArray[np.float32]


def bare_loop(
    model: nn.Module, task: CompressionTask, finetune_steps: int, generator: torch.Generator
) -> float:
    """Train on the given number of minibatches, count correct validation images; return seconds."""
    start = perf_counter()
    optimizer = torch.optim.SGD(
        model.parameters(),
        task.config.learning_rate,
        momentum=task.config.momentum,
        weight_decay=task.config.weight_decay,
    )
    model.train()
    for images, labels in task.train_batches(finetune_steps, generator):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=task.device)
    everything = torch.arange(len(task.data.validation))
    order = torch.split(everything, task.scoring_batch_size)
    with torch.inference_mode():
        for images, labels in task.data.validation.batches(order):
            correct += (model(images).argmax(1) == labels).sum()
    correct.item()
    return perf_counter() - start


def time_steps(env: PruningEnv, twin: PruningEnv, n_steps: int, seed: int) -> Rows:
    """Time steps and bare loops in alternation; one row per step, in seconds.

    A twin takes each step first, untimed. It hands the bare loop its network, and it makes both
    meet the network's new shapes warm, whose kernels are slower the first time they run. Which of
    the two goes first changes from step to step.

    Args:
        env: The environment to time.
        twin: Another one, made with the same arguments.
        n_steps: Steps to time.
        seed: Seed of the random actions.

    Returns:
        Seconds by phase, and on a GPU `step_peak_mib` and `bare_peak_mib`, the most memory that
        tensors had while each of the two ran, in MiB; that of both environments is in them.
    """
    env.action_space.seed(seed)
    device = env.task.device
    rows: Rows = []
    done = True
    for number in range(-len(env.walk), n_steps):  # the first episode warms up
        if done:
            env.reset()
            twin.reset()
        action = env.action_space.sample()
        twin.step(action)
        model = twin.compressed_model()
        # The minibatches of that very step.
        generator = derive_generator(env.task_seed, number % len(env.walk), 0)
        seconds: dict[str, float] = {}
        peaks: dict[str, float] = {}
        for name in ("bare", "step") if number % 2 else ("step", "bare"):
            _reset_peak(device)
            if name == "bare":
                seconds[name] = bare_loop(model, env.task, env.finetune_steps, generator)
            else:
                start = perf_counter()
                _, _, done, _, info = env.step(action)
                synchronize(device)
                seconds[name] = perf_counter() - start
            peaks |= _peak(device, name)
        if number >= 0:
            rows.append(
                {"method": env.method, "layer": info["layer"]}
                | {f"{name}_s": seconds[name] for name in ("step", "bare")}
                | {f"{name}_s": env.step_seconds.get(name, 0.0) for name in PHASES}
                | {"bookkeeping_s": seconds["step"] - sum(env.step_seconds.values())}
                | peaks
            )
    return rows


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device, name: str) -> dict[str, float]:
    """Return the most memory that tensors had since `_reset_peak`, in MiB; nothing on the CPU."""
    if device.type != "cuda":
        return {}
    return {f"{name}_peak_mib": torch.cuda.max_memory_allocated(device) / 2**20}


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class _Search:
    """An agent that learns a few steps at a time, with global random numbers of its own."""

    agent: BaseAlgorithm
    random_state: dict[str, Any] = field(default_factory=random_state)
    seconds: float = 0.0

    def learn(self, n_steps: int) -> None:
        """Take `n_steps` steps, rounded up to whole rollouts."""
        restore_random_state(self.random_state)
        start = perf_counter()
        self.agent.learn(n_steps, reset_num_timesteps=self.agent.num_timesteps == 0)
        self.seconds += perf_counter() - start
        self.random_state = random_state()

    def row(self) -> dict[str, Any]:
        n_steps = self.agent.num_timesteps
        return {"steps": n_steps, "seconds": self.seconds, "steps_per_s": n_steps / self.seconds}


def time_stores(
    envs: dict[str, PruningEnv], algorithm: str, n_steps: int, seed: int, chunk: int = 80
) -> Rows:
    """Time the same search with several stores, a chunk each in turn; one row per store.

    All of them take the same actions. A warm store is one that an earlier of the searches fills.

    Args:
        envs: An environment for each kind of store, in the order in which they take turns.
        algorithm: Name of the agent.
        n_steps: Steps of each search.
        seed: Seed of the agents.
        chunk: Steps between two turns.
    """
    searches = {}
    for name, env in envs.items():
        agent = make_learner(algorithm, DummyVecEnv([_returning(env)]), n_steps=n_steps, seed=seed)
        searches[name] = _Search(agent)
    _take_turns(list(searches.values()), n_steps, chunk)
    return [
        {"algorithm": algorithm, "store": name}
        | search.row()
        | {"hit_rate": envs[name].n_hits / max(1, envs[name].n_lookups)}
        for name, search in searches.items()
    ]


def _take_turns(searches: list[_Search], n_steps: int, chunk: int) -> None:
    """Let each search take so many steps, a chunk at a time."""
    while any(search.agent.num_timesteps < n_steps for search in searches):
        for search in searches:
            search.learn(min(chunk, n_steps - search.agent.num_timesteps))


def _returning(env: PruningEnv) -> Any:
    return lambda: env


def new_episodes(n_episodes: int, n_layers: int, rng: np.random.Generator) -> Actions:
    """Return random actions, (n_episodes, n_layers) float32: no two episodes begin alike."""
    return rng.uniform(-1.0, 1.0, (n_episodes, n_layers)).astype(np.float32)


def branching_episodes(n_episodes: int, n_layers: int, rng: np.random.Generator) -> Actions:
    """Return actions, (n_episodes, n_layers) float32: each leaves an earlier episode somewhere."""
    episodes = new_episodes(n_episodes, n_layers, rng)
    for number in range(1, n_episodes):
        n_shared = rng.integers(1, n_layers)
        episodes[number, :n_shared] = episodes[rng.integers(number), :n_shared]
    return episodes


def time_episodes(envs: dict[str, PruningEnv], twin: PruningEnv, episodes: Actions) -> Rows:
    """Time the same episodes with several stores, which take turns; one row per store.

    The first episode warms up and is not counted. A twin takes each episode first, untimed: kernels
    are slower the first time they meet a shape. Which store goes first changes from episode to
    episode.

    Args:
        envs: An environment for each kind of store, that without one called `none`.
        twin: Another one without a store.
        episodes: (n_episodes, n_layers) actions.

    Returns:
        Steps, seconds, the ratio of these to those without a store (of all, and the median of
        single episodes) and the share of steps that the store knew.
    """
    names, seconds = list(envs), {name: np.zeros(len(episodes)) for name in envs}
    for number, actions in enumerate(episodes):
        _time_episode(twin, actions)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name][number] = _time_episode(envs[name], actions)
    seconds = {name: values[1:] for name, values in seconds.items()}
    return [
        {
            "store": name,
            "steps": values.size * episodes.shape[1],
            "seconds": values.sum(),
            "ratio": values.sum() / seconds["none"].sum(),
            "median_ratio": float(np.median(values / seconds["none"])),
            "hit_rate": envs[name].n_hits / max(1, envs[name].n_lookups),
        }
        for name, values in seconds.items()
    ]


def _time_episode(env: PruningEnv, actions: NDArray[np.float32]) -> float:
    start = perf_counter()
    env.reset()
    for action in actions:
        if env.step(action[None])[2]:
            break
    synchronize(env.task.device)
    return perf_counter() - start


def time_actors(
    env: PruningEnv, settings: tuple[tuple[int, int], ...], n_steps: int, seed: int
) -> Rows:
    """Time QCriticPPO with different numbers of worker processes and CPU threads, in turn.

    Args:
        env: What each worker builds a copy of.
        settings: Numbers of workers and of threads of each.
        n_steps: Steps of each search, over all workers.
        seed: Seed of the agents.
    """
    with ExitStack() as stack:
        searches = {}
        for n_workers, n_threads in settings:
            actors = stack.enter_context(_workers(env, n_workers, n_threads))
            agent = make_learner("q_critic_ppo", actors, n_steps=n_steps, seed=seed)
            agent.learn(n_workers * len(env.walk))  # the first episode warms up
            agent.num_timesteps = 0
            searches[n_workers, n_threads] = _Search(agent)
        _take_turns(list(searches.values()), n_steps, 16)
    return [
        {"workers": n_workers, "threads": n_threads} | search.row()
        for (n_workers, n_threads), search in searches.items()
    ]


@contextmanager
def _workers(env: PruningEnv, n_workers: int, n_threads: int) -> Iterator[VecEnv]:
    actors = list(make_actors(_returning(env), n_workers, n_threads))
    workers = SubprocVecEnv(actors, start_method="spawn")
    try:
        yield workers
    finally:
        workers.close()
