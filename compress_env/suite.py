"""The named tasks on which algorithms are compared, and what is fixed in each.

A task's network, data, budget, reward and fine-tuning are the keywords that its id is registered
with (`compress_env/__init__.py`); its baseline is trained by the entry of
`compress_env.networks.models.RECIPES`. What they say is read from there, so that it is stated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym

from compress_env.envs.options import config_of
from compress_env.networks.models import RECIPES
from compress_env.task.task import FinetuneConfig

__all__ = ["SUITE", "SUITE_CIFAR", "SUITE_V0", "SuiteTask", "describe_suite"]

_DEFAULTS: dict[str, Any] = {
    "reward": "err",
    "reward_at": "layer",
    "finetune_steps": 20,
    "finetune_at": "layer",
}


class SuiteTask(NamedTuple):
    """One task of the suite."""

    id: str
    """What `gymnasium.make` takes."""
    n_decisions: int
    """Length of the walk, and of every episode."""
    description: str
    """What it is, in one line."""


SUITE_V0: tuple[SuiteTask, ...] = (
    SuiteTask(
        "compress_env/PruneLeNet5Digits-v0",
        4,
        "few decisions, a test of plumbing",
    ),
    SuiteTask(
        "compress_env/QuantizeLeNet5Digits-v0",
        5,
        "few decisions, a test of plumbing",
    ),
    SuiteTask(
        "compress_env/PruneLeNet5MNIST-v0",
        4,
        "few decisions, many images",
    ),
    SuiteTask(
        "compress_env/QuantizeLeNet5MNIST-v0",
        5,
        "few decisions, many images",
    ),
    SuiteTask(
        "compress_env/PruneVGG8Digits-v0",
        8,
        "eight convolutions in a row",
    ),
    SuiteTask(
        "compress_env/QuantizeVGG8Digits-v0",
        9,
        "eight convolutions in a row and a linear layer",
    ),
    SuiteTask(
        "compress_env/PruneResNet20Digits-v0",
        12,
        "residual streams, each decided once, and the channels inside nine blocks",
    ),
    SuiteTask(
        "compress_env/QuantizeResNet20Digits-v0",
        22,
        "every convolution of nine residual blocks, shortcuts included",
    ),
    SuiteTask(
        "compress_env/PruneMobileNetV2Digits-v0",
        15,
        "inverted residual blocks, whose depthwise convolutions go with the channels around them",
    ),
    SuiteTask(
        "compress_env/QuantizeMobileNetV2Digits-v0",
        33,
        "inverted residual blocks; depthwise convolutions are decided by themselves",
    ),
    SuiteTask(
        "compress_env/PruneDenseNetDigits-v0",
        27,
        "three densely connected blocks, in which each layer's output is read by all later ones",
    ),
    SuiteTask(
        "compress_env/QuantizeDenseNetDigits-v0",
        28,
        "every layer of three densely connected blocks",
    ),
)
"""The first version, with one order of the minibatches in each task: the first leaderboard's."""

SUITE: tuple[SuiteTask, ...] = tuple(
    task._replace(id=task.id.replace("-v0", "-v1")) for task in SUITE_V0
)
"""The tasks: the small ones of LeNet-5, then deep networks on small images, the cheapest first.

Minibatches are drawn anew in every episode, and action 0 is the uniform allocation."""

SUITE_CIFAR: tuple[SuiteTask, ...] = (
    SuiteTask(
        "compress_env/PruneResNet20CIFAR10-v1",
        12,
        "a network and images as in papers: residual streams and the channels inside nine blocks",
    ),
    SuiteTask(
        "compress_env/QuantizeResNet20CIFAR10-v1",
        22,
        "a network and images as in papers: every convolution of nine residual blocks",
    ),
)
"""Tasks of the same kind whose images do not come with the package: they need `data_root`."""


def describe_suite(tasks: Sequence[SuiteTask] = SUITE) -> list[dict[str, str]]:
    """Return one row per task, in their order, with all that is fixed in it.

    Args:
        tasks: `SUITE`, `SUITE_CIFAR` or `SUITE_V0`, or some of them.

    Returns:
        Rows with the columns `task` (the id without its namespace), `network`, `data`, `stage`,
        `decisions`, `budget`, `reward`, `fine-tuning` (minibatches x images in each, and when) and
        `recipe` (epochs of the baseline).
    """
    return [_describe(task) for task in tasks]


def _describe(task: SuiteTask) -> dict[str, str]:
    kwargs = _DEFAULTS | gym.spec(task.id).kwargs
    is_pruning = "flops_budget" in kwargs
    batch_size = config_of(
        FinetuneConfig, kwargs.get("finetune_config"), "finetune_config"
    ).batch_size
    budget = kwargs["flops_budget" if is_pruning else "size_budget"]
    return {
        "task": task.id.removeprefix("compress_env/"),
        "network": kwargs["model"],
        "data": kwargs["data"],
        "stage": "pruning" if is_pruning else "quantization",
        "decisions": str(task.n_decisions),
        "budget": f"{100 * budget:g} % of the {'MACs' if is_pruning else 'bytes'}",
        "reward": f"{kwargs['reward']}, each {kwargs['reward_at']}",
        "fine-tuning": f"{kwargs['finetune_steps']} x {batch_size}, each {kwargs['finetune_at']}",
        "recipe": f"{RECIPES[kwargs['model'], kwargs['data']].epochs} epochs",
    }
