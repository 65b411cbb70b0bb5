"""What the methods of pruning channels have in common, and what each adds."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import sklearn.linear_model
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compress_env.envs.pruning import PruningEnv, PruningMethod
from compress_env.networks.models import build_model
from compress_env.pruning.channels.reconstruction import reconstruct
from compress_env.task.layers import layer_at
from tests.fakes import BranchedNet, PlainNet, make_data, seeded

QUICK: dict[str, Any] = {"finetune_steps": 0, "device": "cpu", "store": None}


def make(method: PruningMethod, build: type[nn.Module] = PlainNet, **options: Any) -> PruningEnv:
    return PruningEnv(seeded(build), make_data(), method=method, **(QUICK | options))


@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
def test_reconstruction_keeps_the_channels_of_magnitude(build: type[nn.Module]) -> None:
    plain, fitted = (make(method, build) for method in ("magnitude", "magnitude+reconstruction"))
    for t, layer in enumerate(plain.walk):
        one, other = (env.compress_layer(t, 0.5) for env in (plain, fitted))
        for name, weight in one.named_parameters():
            is_same = torch.equal(weight, other.get_parameter(name))
            # The deciding layer reads the same channels, but its weights are fitted anew.
            assert is_same == (name != f"{layer.name}.weight"), name
        assert layer_at(one, layer.name).weight.shape == layer_at(other, layer.name).weight.shape


def test_reconstruction_is_least_squares_on_the_calibration_images() -> None:
    env = make("magnitude+reconstruction")
    weight = env.task.model.get_parameter("conv2.weight").detach()  # (6, 4, 3, 3)
    kept = weight.abs().sum((0, 2, 3)).topk(2).indices.sort().values
    columns = (kept[:, None] * 9 + torch.arange(9)).flatten()
    assert env._calibration is not None
    statistics = env._calibration.statistics(env.task.model, "conv2", np.arange(6))
    expected = reconstruct(statistics, columns, weight.flatten(1)[:, columns])
    found = env.compress_layer(0, 0.5).get_parameter("conv2.weight")
    torch.testing.assert_close(found.flatten(1), expected.float())


def test_least_squares_come_nearer_to_the_responses() -> None:
    env = make("magnitude+reconstruction")
    images = next(env.task.calibration_batches())[0]

    def error(method: PruningMethod) -> float:
        pruned = make(method).compress_layer(0, 0.5)
        with torch.no_grad():
            hidden = [
                model.get_submodule("conv2")(
                    model.get_submodule("pool")(torch.relu(model.get_submodule("conv1")(images)))
                )
                for model in (env.task.model, pruned)
            ]
        return float((hidden[0] - hidden[1]).square().mean())

    assert error("magnitude+reconstruction") < 0.8 * error("magnitude")


@cache
def _mobilenet() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model("mobilenet_v2_narrow", 10, (1, 16, 16)).eval()


@pytest.mark.parametrize(
    ("method", "looks_at_images", "solves"),
    [
        ("magnitude", False, False),
        ("magnitude+reconstruction", True, False),
        ("channel", True, True),
    ],
)
def test_no_method_does_the_work_of_a_dearer_one(
    method: PruningMethod, looks_at_images: bool, solves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of magnitude run the network for nothing but batch-norm statistics."""
    env = PruningEnv(
        _mobilenet(),
        make_data(n_classes=10, side=16),
        method=method,
        reward_at="episode",
        scorer=lambda model: 0.5,
        finetune_config={"batch_size": 8, "batch_norm_batches": 1},
        **QUICK,
    )
    n_paths, path = 0, sklearn.linear_model.lars_path_gram

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_paths
        n_paths += 1
        return path(*args, **kwargs)

    monkeypatch.setattr(sklearn.linear_model, "lars_path_gram", counted)
    env.reset()
    with FlopCounterMode(display=False) as counter:
        for _ in env.walk:
            env.step(np.array([0.0], np.float32))
    assert (n_paths > 0) == solves
    n_images = counter.get_total_flops() / (2 * env.unpruned.macs)
    # 32 calibration images up to each of 15 layers, or one minibatch at the end.
    assert (n_images > 2 * 8) == looks_at_images
