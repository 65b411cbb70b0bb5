"""What holds for every registered environment."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env, data_equivalence
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import compress_env
from compress_env.envs.base import LayerState, LayerwiseCompressionEnv
from compress_env.envs.pruning import PruningEnv
from compress_env.suite import SUITE_CIFAR, SuiteTask
from tests.fakes import DATA_ROOT, PlainNet, make_data, seeded, slow_but

IDS = sorted(name for name in gym.registry if name.startswith("compress_env/"))
QUICK = [f"compress_env/{name}LeNet5Digits-v1" for name in ("Prune", "Quantize")]
QUICK += ["compress_env/Pruning-v0", "compress_env/Quantization-v0"]
HAS_MNIST = (DATA_ROOT / "MNIST" / "raw").is_dir()


@pytest.fixture(scope="module", params=slow_but(QUICK, IDS))
def env(request: pytest.FixtureRequest) -> Iterator[gym.Env[Any, Any]]:
    """Make each registered environment once; the tests reset it."""
    if "CIFAR10" in request.param:
        pytest.skip("CIFAR-10 does not come with the package")
    if "MNIST" in request.param and not HAS_MNIST:
        pytest.skip(f"MNIST is not in {DATA_ROOT}")
    made = gym.make(request.param, finetune_steps=2)
    yield made
    made.close()


def walk_through(env: gym.Env[Any, Any], actions: Any) -> list[tuple[Any, ...]]:
    results = [env.reset(seed=3)]
    return results + [env.step(np.array([a], np.float32)) for a in actions]


def n_layers(env: gym.Env[Any, Any]) -> int:
    unwrapped = env.unwrapped
    assert isinstance(unwrapped, LayerwiseCompressionEnv)
    return len(unwrapped.walk)


def test_the_expected_ids_are_registered() -> None:
    assert [name.removeprefix("compress_env/") for name in IDS] == [
        "PruneDenseNetDigits-v0",
        "PruneDenseNetDigits-v1",
        "PruneLeNet5Digits-v0",
        "PruneLeNet5Digits-v1",
        "PruneLeNet5MNIST-v0",
        "PruneLeNet5MNIST-v1",
        "PruneMobileNetV2Digits-v0",
        "PruneMobileNetV2Digits-v1",
        "PruneResNet20CIFAR10-v1",
        "PruneResNet20Digits-v0",
        "PruneResNet20Digits-v1",
        "PruneVGG8Digits-v0",
        "PruneVGG8Digits-v1",
        "Pruning-v0",
        "Quantization-v0",
        "QuantizeDenseNetDigits-v0",
        "QuantizeDenseNetDigits-v1",
        "QuantizeLeNet5Digits-v0",
        "QuantizeLeNet5Digits-v1",
        "QuantizeLeNet5MNIST-v0",
        "QuantizeLeNet5MNIST-v1",
        "QuantizeMobileNetV2Digits-v0",
        "QuantizeMobileNetV2Digits-v1",
        "QuantizeResNet20CIFAR10-v1",
        "QuantizeResNet20Digits-v0",
        "QuantizeResNet20Digits-v1",
        "QuantizeVGG8Digits-v0",
        "QuantizeVGG8Digits-v1",
    ]


@pytest.mark.parametrize("task", SUITE_CIFAR, ids=lambda task: task.id.partition("/")[2])
def test_images_that_do_not_come_with_the_package_are_asked_for(
    task: SuiteTask, tmp_path: Path
) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"^cifar10: no .*; download it with .*--env-kwargs.*data_root="
    ):
        gym.make(task.id, data_root=tmp_path)


def test_passes_gymnasium_check(env: gym.Env[Any, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    assert env.unwrapped.np_random is not None


def test_passes_stable_baselines3_check(env: gym.Env[Any, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(env.unwrapped)
    assert env.observation_space.shape == (9,)


def test_replay_is_bit_identical(env: gym.Env[Any, Any]) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, n_layers(env))
    first, second = walk_through(env, actions), walk_through(env, actions)
    for a, b in zip(first[1:], second[1:], strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:4] == b[1:4]
        a[-1].pop("n_evaluations"), b[-1].pop("n_evaluations")
        assert data_equivalence(a[-1], b[-1], exact=True)
    assert first[-1][2] is True


def test_reset_forgets_the_past(env: gym.Env[Any, Any]) -> None:
    fresh = walk_through(env, [0.3])
    walk_through(env, [0.9] * n_layers(env))
    again = walk_through(env, [0.3])
    np.testing.assert_array_equal(fresh[0][0], again[0][0])
    np.testing.assert_array_equal(fresh[1][0], again[1][0])
    assert fresh[1][1] == again[1][1]


def test_observations_are_fresh_arrays_in_the_space(env: gym.Env[Any, Any]) -> None:
    results = walk_through(env, [0.5] * n_layers(env))
    observations = [result[0] for result in results]
    copies = [observation.copy() for observation in observations]
    env.reset()
    for observation, copy in zip(observations, copies, strict=True):
        assert env.observation_space.contains(observation)
        np.testing.assert_array_equal(observation, copy)
    indices = [LayerState(*observation).index for observation in observations[:-1]]
    np.testing.assert_allclose(indices, np.linspace(0, 1, len(indices)), rtol=1e-6)


def test_vector_environment_takes_scored_unscored_and_failed_steps() -> None:
    scores = iter([0.5, 0.5, float("nan"), 0.5, 0.5, 0.5, 0.5])

    def build() -> gym.Env[Any, Any]:
        return gym.make(
            "compress_env/Pruning-v0",
            model=seeded(PlainNet),
            data=make_data(),
            finetune_steps=0,
            scorer=lambda _: next(scores),
        )

    vector = gym.vector.SyncVectorEnv([build, build])
    vector.reset(seed=0)
    vector.step(np.zeros((2, 1), np.float32))
    _, _, terminated, _, info = vector.step(np.zeros((2, 1), np.float32))
    assert terminated.tolist() == [True, False]
    np.testing.assert_array_equal(info["accuracy"], [np.nan, 0.5])
    assert info["error"][0].startswith("FloatingPointError")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.array([1.5], np.float32), r"action must be in \[-1, 1\], got 1.5"),
        (np.array([np.nan], np.float32), "action must be finite"),
        (np.zeros(2, np.float32), r"action must have shape \(1,\), got \(2,\)"),
    ],
    ids=["out of bounds", "not a number", "two numbers"],
)
def test_bad_action_is_refused_and_changes_nothing(
    env: gym.Env[Any, Any], action: Any, message: str
) -> None:
    expected = walk_through(env, [0.0])
    env.reset(seed=3)
    with pytest.raises(ValueError, match=message):
        env.unwrapped.step(action)
    observation, reward, *_ = env.step(np.zeros(1, np.float32))
    np.testing.assert_array_equal(observation, expected[1][0])
    assert reward == expected[1][1]


def test_step_after_the_end_is_refused(env: gym.Env[Any, Any]) -> None:
    walk_through(env, [1.0] * n_layers(env))
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        env.step(np.zeros(1, np.float32))


def test_pickled_environment_gives_the_same_episode(env: gym.Env[Any, Any]) -> None:
    twin = pickle.loads(pickle.dumps(env.unwrapped))
    actions = [0.1] * n_layers(env)
    for a, b in zip(walk_through(env, actions)[1:], walk_through(twin, actions)[1:], strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:4] == b[1:4]
        assert a[-1]["reward_terms"] == b[-1]["reward_terms"]


@pytest.mark.filterwarnings("ignore:information dropout has not told")
@pytest.mark.parametrize("switch_off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", ["magnitude", "channel", "channel+variational"])
def test_gradients_that_a_caller_has_switched_off_change_nothing(
    switch_off: Any, method: Any
) -> None:
    options: dict[str, Any] = {"method": method, "finetune_steps": 2, "store": None}
    twins = [
        PruningEnv(seeded(PlainNet), make_data(), variational={"n_steps": 2}, **options)
        for _ in range(2)
    ]
    expected = walk_through(twins[0], [0.5, -0.2, 0.1])
    with switch_off():
        found = walk_through(twins[1], [0.5, -0.2, 0.1])
    for a, b in zip(expected[1:], found[1:], strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert data_equivalence(a[1:], b[1:], exact=True)


def test_docstring_table_is_the_observation_space(env: gym.Env[Any, Any]) -> None:
    lines = (env.unwrapped.__doc__ or "").splitlines()
    rows = [line.split("|")[1:-1] for line in lines if line.strip().startswith("|")]
    entries = [[cell.strip() for cell in row] for row in rows if row[0].strip().isdigit()]
    assert [int(row[0]) for row in entries] == list(range(9))
    assert [row[1].strip("`") for row in entries] == list(LayerState._fields)
    space = env.observation_space
    assert isinstance(space, gym.spaces.Box)
    assert [float(row[2]) for row in entries] == space.low.tolist()
    assert [float(row[3]) for row in entries] == space.high.tolist()


def test_public_names_exist() -> None:
    assert all(hasattr(compress_env, name) for name in compress_env.__all__)
