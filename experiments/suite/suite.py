"""Measure the deep tasks of the suite: their baselines, uniform compression and random search.

    python -m experiments.suite --episodes 30

prints a Markdown table: what is fixed in each task, the accuracies of the unpruned network on test
and validation images, and on validation images those of the network that uniform compression leads
to and of the worst, the median and the best of some random episodes; CPU seconds of an episode, of
one thread. Baselines that are not in the cache are trained first. `--train` also trains each task's
baseline anew by its recipe, and adds the CPU seconds of that.

    python -m experiments.suite --snr --out results/suite/snr.csv

measures how far allocations are apart instead, against the luck of a minibatch order
(`experiments.suite.snr`): episodes are kept in the file, and those found in it are not played
again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from time import process_time

import gymnasium as gym
import torch
from rich.console import Console
from stable_baselines3.common.type_aliases import PolicyPredictor

from agents import Random
from compress_env.data.bundle import load_data
from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.names import check_name
from compress_env.networks.models import RECIPES, build_model, train_by_recipe
from compress_env.suite import SUITE, SUITE_CIFAR, SUITE_V0, describe_suite
from experiments.common.checks import check_lowest
from experiments.common.cli.command import run_command
from experiments.common.cli.say import say
from experiments.compress.outcome.report import format_markdown
from experiments.search.names import short_name, task_id
from experiments.search.playing import play
from experiments.search.uniform import uniform_policy
from experiments.suite.snr import COLUMNS, read_or_measure, snr_row

__all__ = ["Config", "measure_task", "run"]

MEASURED = ("test %", "validation %", "uniform %", "random %", "s / episode")


@dataclass(frozen=True)
class Config:
    """What is measured."""

    task: tuple[str, ...] = tuple(task.id for task in SUITE if "LeNet5" not in task.id)
    """Tasks, with or without their namespace."""
    episodes: int = 30
    """Random episodes of each task."""
    seed: int = 0
    """Seed of the random episodes."""
    train: bool = False
    """Whether to train the baselines anew, to measure what that takes."""
    snr: bool = False
    """Whether to measure how far allocations are apart, and nothing else."""
    allocations: int = 24
    """Allocations of each task, for that."""
    orders: int = 6
    """Minibatch orders of each allocation."""
    out: Path | None = None
    """A CSV file of the episodes of the SNR, to begin or to go on with."""


def run(config: Config, console: Console) -> list[tuple[str, ...]]:
    """Measure the tasks and print the table.

    Raises:
        ValueError: If a task is unknown, there is no random episode, or settings contradict each
            other.
    """
    check_lowest(config, 0, "seed")
    check_lowest(config, 1, "episodes")
    check_lowest(config, 2, "orders")
    check_lowest(config, 3, "allocations")  # of which the better half is more than one
    if config.snr and config.train:
        raise ValueError("snr measures nothing else: train needs a run of its own")
    if config.out is not None and not config.snr:
        raise ValueError("out keeps the episodes of snr: give --snr too")
    described = {row["task"]: row for row in describe_suite((*SUITE, *SUITE_CIFAR, *SUITE_V0))}
    names = [short_name(name) for name in config.task]
    for name in names:
        check_name("task", name, described)
    torch.set_num_threads(1)
    if config.snr:
        return _run_snr(config, names, console)
    rows = []
    for name in names:
        say(console, f"{name}: {config.episodes} random episodes")
        measured = measure_task(task_id(name), config.episodes, config.seed)
        if config.train:
            network = described[name]["network"], described[name]["data"]
            measured = (*measured, f"{_training_seconds(*network):.0f}")
        rows.append((*described[name].values(), *measured))
        say(console, " ".join((name, *measured)))
    headings = (*next(iter(described.values())), *MEASURED)
    if config.train:
        headings = (*headings, "s / training")
    say(console, format_markdown(headings, rows))
    return rows


def _run_snr(config: Config, names: list[str], console: Console) -> list[tuple[str, ...]]:
    rows = []
    for name in names:
        say(console, f"{name}: {config.allocations} allocations x {config.orders} orders")
        episodes = read_or_measure(config.out, task_id(name), config.allocations, config.orders)
        rows.append(snr_row(episodes))
        say(console, " ".join(rows[-1]))
    say(console, format_markdown(COLUMNS, rows))
    return rows


def measure_task(task: str, n_episodes: int, seed: int) -> tuple[str, ...]:
    """Return the measured cells of a task's row, as in `MEASURED`."""
    env = gym.make(task, device="cpu").unwrapped
    assert isinstance(env, LayerwiseCompressionEnv)
    whole = env.task.model
    uniform = uniform_policy(env)
    random = Random(env.observation_space, env.action_space, seed)
    uniform_accuracy, _ = _play(env, uniform)
    episodes = [_play(env, random) for _ in range(n_episodes)]
    accuracies = [accuracy for accuracy, _ in episodes]
    worst, middle, best = min(accuracies), median(accuracies), max(accuracies)
    return (
        f"{100 * env.task.accuracy(whole, 'test'):.1f}",
        f"{100 * env.task.accuracy(whole, 'validation'):.1f}",
        f"{100 * uniform_accuracy:.1f}",
        f"{100 * worst:.1f} / {100 * middle:.1f} / {100 * best:.1f}",
        f"{median(seconds for _, seconds in episodes):.2f}",
    )


def _play(env: LayerwiseCompressionEnv, policy: PolicyPredictor) -> tuple[float, float]:
    """Return the accuracy that an episode ends with, and its CPU seconds."""
    start = process_time()
    accuracy = play(env, policy).accuracy
    return math.nan if accuracy is None else accuracy, process_time() - start


@cache
def _training_seconds(name: str, dataset: str) -> float:
    """Return the CPU seconds that a baseline's recipe takes; two tasks share a baseline."""
    data = load_data(dataset)
    model = build_model(name, data.num_classes, data.image_shape)
    start = process_time()
    train_by_recipe(model, data.train, RECIPES[name, dataset])
    return process_time() - start


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
