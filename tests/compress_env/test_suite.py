"""The suite: what is fixed in each task, and that the deep ones behave without being trained."""

from __future__ import annotations

import hashlib
import json
import warnings
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from torch import nn

from compress_env.data.bundle import DataBundle, load_data
from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.networks.models import RECIPES, build_model
from compress_env.pruning.graph.surgery import find_walk
from compress_env.suite import SUITE, SUITE_CIFAR, SUITE_V0, describe_suite
from compress_env.task.layers import layer_table
from tests.fakes import seeded

NAMED = sorted(i for i in gym.registry if i.startswith("compress_env/") and gym.spec(i).kwargs)
TASKS = (*SUITE_V0, *SUITE, *SUITE_CIFAR)
VGG8 = [f"compress_env/{stage}VGG8Digits-v1" for stage in ("Prune", "Quantize")]
SIDES = {"digits8": 8, "digits16": 16}
FIRST_VERSION = "c2d9fafbd9af6dabfb7302e21dbe2e2c30f567a82147f8ebefa0a4d995889650"
"""Of the keywords that the first version's ids are registered with, as JSON."""


@cache
def data() -> DataBundle:
    return load_data("digits8")


def untrained(name: str) -> nn.Module:
    return seeded(lambda: build_model(name, 10, (1, 8, 8)))


@cache
def n_decisions(name: str, data: str, is_quantized: bool) -> int:
    """Return how many layers are decided in a network, without an environment."""
    side = SIDES.get(data, 32)
    shape = (3 if data == "cifar10" else 1, side, side)
    model, image = build_model(name, 10, shape), torch.zeros(1, *shape)
    if is_quantized:
        return len(layer_table(model, image))
    return len(find_walk(model, image).decisions)


def test_suite_is_every_named_task() -> None:
    assert sorted(task.id for task in TASKS) == NAMED


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id.partition("/")[2])
def test_decisions_are_those_of_the_network(task: Any) -> None:
    kwargs = gym.spec(task.id).kwargs
    found = n_decisions(kwargs["model"], kwargs["data"], "size_budget" in kwargs)
    assert task.n_decisions == found


def test_everything_is_fixed_in_a_deep_task() -> None:
    fixed = {"model", "data", "finetune_steps", "finetune_config", "reward", "reward_at"}
    fixed |= {"finetune_at"}
    for task in (*SUITE_V0[4:], *SUITE, *SUITE_CIFAR):
        kwargs = gym.spec(task.id).kwargs
        assert fixed < set(kwargs)
        assert kwargs["reward_at"] == "episode"
        assert ("flops_budget" in kwargs) != ("size_budget" in kwargs)
        assert (kwargs["model"], kwargs["data"]) in RECIPES


def test_table_says_what_the_ids_are_registered_with() -> None:
    rows = describe_suite(SUITE_V0)
    assert [row["task"] for row in rows] == [task.id.partition("/")[2] for task in SUITE_V0]
    assert rows[1] == {
        "task": "QuantizeLeNet5Digits-v0",
        "network": "lenet5",
        "data": "digits",
        "stage": "quantization",
        "decisions": "5",
        "budget": "10 % of the bytes",
        "reward": "err, each layer",
        "fine-tuning": "20 x 64, each layer",
        "recipe": "30 epochs",
    }
    assert {row["reward"] for row in rows[4:]} == {"err, each episode"}
    assert [row["task"] for row in describe_suite()] == [
        row["task"].replace("-v0", "-v1") for row in rows
    ]


def test_first_version_is_registered_as_it_always_was() -> None:
    kwargs = {task.id: gym.spec(task.id).kwargs for task in SUITE_V0}
    text = json.dumps(kwargs, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == FIRST_VERSION


def test_second_version_has_other_minibatches_in_each_episode_and_the_uniform_prior() -> None:
    for task in (*SUITE, *SUITE_CIFAR):
        kwargs = gym.spec(task.id).kwargs
        assert kwargs["transition_noise"] is True
        assert kwargs["prior"] == "uniform"
        assert "seed" not in kwargs


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id.partition("/")[2])
def test_ids_are_registered_with_plain_values(task: Any) -> None:
    spec = gym.spec(task.id)
    assert gym.envs.registration.EnvSpec.from_json(spec.to_json()).kwargs == spec.kwargs


def test_environment_is_made_from_its_specification(env: gym.Env[Any, Any]) -> None:
    assert env.spec is not None
    again = gym.make(gym.spec(env.spec.id), model=untrained("vgg8"), data=data()).unwrapped
    assert isinstance(again, LayerwiseCompressionEnv)
    assert again.task.config.batch_size == env.spec.kwargs["finetune_config"]["batch_size"]


@pytest.fixture(scope="module", params=VGG8)
def env(request: pytest.FixtureRequest) -> gym.Env[Any, Any]:
    return gym.make(request.param, model=untrained("vgg8"), data=data())


def test_untrained_task_passes_both_checks(env: gym.Env[Any, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
        sb3_check_env(env.unwrapped)
    assert env.observation_space.shape == (9,)


def test_untrained_task_scores_once_and_meets_its_budget(env: gym.Env[Any, Any]) -> None:
    unwrapped = env.unwrapped
    assert isinstance(unwrapped, LayerwiseCompressionEnv)
    unwrapped.forget_evaluations()
    episodes = []
    for _ in range(2):
        env.reset(seed=0)
        rng = np.random.default_rng(0)
        actions = rng.uniform(-1, 1, (len(unwrapped.walk), 1)).astype(np.float32)
        episodes.append([env.step(action) for action in actions])
    first, again = episodes
    assert [step[1] for step in first] == [step[1] for step in again]
    assert [step[1] for step in first[:-1]] == [0.0] * (len(first) - 1)
    info = first[-1][-1]
    assert first[-1][1] == info["accuracy"] - 1.0
    assert info["n_evaluations"] == 1
    kwargs = gym.spec(env.spec.id if env.spec else "").kwargs
    budget = kwargs["flops_budget" if "flops_budget" in kwargs else "size_budget"]
    assert info["reward_terms"]["cost"] <= budget * unwrapped.unpruned.cost_high
