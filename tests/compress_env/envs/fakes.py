"""Small environments of every kind, and episodes to play in them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from torch import Tensor, nn

from compress_env.data.bundle import DataBundle
from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.task.task import FinetuneConfig
from tests.fakes import BranchedNet, PlainNet, make_data, seeded

CONFIG = FinetuneConfig(batch_size=16, batch_norm_batches=2)
KINDS: dict[str, tuple[type[LayerwiseCompressionEnv], type[nn.Module], dict[str, Any]]] = {
    "magnitude": (PruningEnv, BranchedNet, {"method": "magnitude"}),
    "channel": (PruningEnv, PlainNet, {"method": "channel", "flops_budget": 0.7}),
    "channel and batch norm": (PruningEnv, BranchedNet, {"method": "channel"}),
    "channels last": (
        PruningEnv,
        BranchedNet,
        {"method": "magnitude", "finetune_config": replace(CONFIG, channels_last=True)},
    ),
    "bits": (QuantizationEnv, PlainNet, {}),
    "bits and batch norm": (QuantizationEnv, BranchedNet, {"size_budget": 0.6}),
}
Episode = Sequence[float]
Result = tuple[list[str], dict[str, Tensor]]


@cache
def data() -> DataBundle:
    return make_data()


class Sensitive:
    """Says something else of every network, where accuracies would be the same."""

    fingerprint = "sum of weights"

    def __call__(self, model: nn.Module) -> float:
        with torch.no_grad():
            total = float(sum(p.double().abs().sum() for p in model.parameters()))
        return total / (1.0 + total)


def make(kind: str = "magnitude", **options: Any) -> LayerwiseCompressionEnv:
    env_class, build, own = KINDS[kind]
    given: dict[str, Any] = (
        {"finetune_steps": 2, "finetune_config": CONFIG, "device": "cpu"} | own | options
    )
    if kind != "channel":  # which is scored by its accuracy
        given.setdefault("scorer", Sensitive())
    model, bundle = given.pop("model", None), given.pop("data", None)
    return env_class(model or seeded(build), bundle or data(), **given)


def as_text(step: tuple[Any, ...]) -> str:
    """Write a result of `step` or `reset` such that equal texts mean equal bits."""
    observation, *rest = step
    return json.dumps([observation.tolist(), *rest])


def take(env: gym.Env[Any, Any], actions: Episode) -> list[str]:
    """Take actions until they or the episode are at an end."""
    results = []
    for action in actions:
        step = env.step(np.array([action], np.float32))
        results.append(as_text(step))
        if step[2]:
            break
    return results


def play(env: LayerwiseCompressionEnv, episode: Episode) -> Result:
    """Return what an episode, perhaps abandoned, says at each step, and its network's weights."""
    results = [as_text(env.reset(seed=7)), *take(env, episode)]
    return results, dict(env.compressed_model().state_dict())


def assert_same(one: Result, other: Result) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, tensor in one[1].items():
        assert torch.equal(tensor, other[1][name]), name


def prefixes(env: LayerwiseCompressionEnv, episodes: Sequence[Episode]) -> set[Any]:
    """Return the distinct executed prefixes of episodes."""
    seen = set()
    for episode in episodes:
        env.reset()
        for action in episode[: len(env.walk)]:
            env.step(np.array([action], np.float32))
            seen.add(env._executed)
    return seen


EPISODES: list[Episode] = [
    [0.5] * 8,
    [0.5, -1.0],
    [0.5, -1.0, 0.0, 1.0, -0.3, 0.2, 0.9, -1.0],
    [],
    [0.5] * 8,
    [-1.0] * 8,
]


class Named:
    """Counts how often it is asked."""

    def __init__(self, name: Any = "half") -> None:
        self.fingerprint = name
        self.n_calls = 0

    def __call__(self, model: nn.Module) -> float:
        self.n_calls += 1
        return 0.5


def check_wrapped(env: gym.Env[Any, Any]) -> None:
    """Let Gymnasium and Stable-Baselines3 check a wrapped environment; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*is different from the unwrapped version")
        check_env(env, skip_render_check=True)
        sb3_check_env(env)
