"""What is left for the end of an episode when only its end is scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.options import config_of
from compress_env.quantization.packing import pack
from compress_env.seeding import derive_generator
from compress_env.task.layers import sparse_macs, sparse_params
from compress_env.task.task import FinetuneConfig
from tests.compress_env.envs.fakes import make

State = dict[str, Tensor]
WITH_BATCH_NORM = ["magnitude", "channel and batch norm", "bits and batch norm"]


def states(env: LayerwiseCompressionEnv, *, live: bool = False) -> list[State]:
    """Return parameters and buffers of the network after every step of an episode."""
    env.reset()
    found = []
    for _ in env.walk:
        env.step(np.array([0.2], np.float32))
        model = env.live_model() if live else env.compressed_model()
        found.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return found


def assert_equal(one: list[State], other: list[State]) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())


@pytest.mark.parametrize("kind", WITH_BATCH_NORM)
@pytest.mark.parametrize("live", [False, True], ids=["copy", "live"])
def test_networks_are_the_same_whenever_they_are_scored(kind: str, live: bool) -> None:
    expected = states(make(kind, reward_at="layer"))
    assert_equal(states(make(kind, reward_at="episode"), live=live), expected)
    assert_equal(states(make(kind, reward_at="episode", store=None), live=live), expected)


@pytest.mark.parametrize(
    ("kind", "reads"),
    [("magnitude", False), ("channel and batch norm", True), ("bits and batch norm", False)],
)
def test_statistics_are_estimated_where_they_are_read(kind: str, reads: bool) -> None:
    env = make(kind, reward_at="episode")
    env.reset()
    estimated = []
    for _ in env.walk:
        env.step(np.zeros(1, np.float32))
        estimated.append("batch_norm" in env.step_seconds)
    assert estimated == [*[reads] * (len(env.walk) - 1), True]


def test_size_is_told_where_it_is_known() -> None:
    env = make("bits", reward_at="episode", render_mode="ansi")
    _, first = env.reset()
    assert first["size_bytes"] == len(pack(env.task.model))
    infos = [env.step(np.zeros(1, np.float32))[-1] for _ in env.walk]
    assert all("size_bytes" not in info for info in infos[:-1])
    assert all(info["reward_terms"].keys().isdisjoint({"cost"}) for info in infos[:-1])
    size = len(pack(env.compressed_model()))
    assert infos[-1]["size_bytes"] == infos[-1]["reward_terms"]["cost"] == size
    *rows, last = [line.split() for line in env.render().splitlines()[1:]]
    assert {row[-1] for row in rows} == {"-"}
    assert float(last[-1]) == pytest.approx(100 * size / env.unpruned.cost_high, abs=0.01)


@pytest.mark.parametrize("kind", ["magnitude", "bits"])
def test_fine_tuning_waits_for_the_last_layer(kind: str) -> None:
    options: dict[str, Any] = {"reward_at": "episode", "store": None}
    tuned = make(kind, finetune_at="episode", **options)
    plain = make(kind, finetune_steps=0, **options)
    *before, last = states(tuned)
    *expected, _ = states(plain)
    assert_equal(before, expected)
    model, t = plain.compressed_model(), len(plain.walk) - 1
    plain.task.finetune(model, tuned.finetune_steps, derive_generator(0, t, 0))
    plain.task.reestimate_batch_norm(model, derive_generator(0, t, 1))
    assert_equal([dict(model.state_dict())], [last])


@pytest.mark.parametrize("kind", ["bits", "bits and batch norm"])
def test_steps_that_train_nothing_tell_the_costs_of_the_network(kind: str) -> None:
    env = make(kind, reward_at="episode", finetune_at="episode")
    env.reset()
    for _ in env.walk:
        info = env.step(np.array([-0.8], np.float32))[-1]
        model = env.compressed_model()
        assert (info["dense_params"], info["sparse_params"]) == (
            env.unpruned.params,
            sparse_params(model),
        )
        assert info["sparse_macs"] == sparse_macs(model, env.positions) < info["dense_macs"]


def test_a_trained_weight_is_fitted_anew() -> None:
    env = make("bits", store=None)
    for t in range(len(env.walk)):
        env.compress_layer(t, 5.0)
    assert_equal(states(env), states(make("bits", store=None)))


def test_configuration_is_an_object_or_some_of_its_fields() -> None:
    config = FinetuneConfig(batch_size=16, batch_norm_batches=3)
    given = {"batch_size": 16, "batch_norm_batches": 3}
    assert config_of(FinetuneConfig, config, "finetune_config") is config
    assert config_of(FinetuneConfig, given, "finetune_config") == config
    assert config_of(FinetuneConfig, None, "finetune_config") == FinetuneConfig()
    assert make(finetune_config={"batch_size": 7}).task.config.batch_size == 7


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown finetune_config 'batch'; valid: batch_size, "):
        make(finetune_config={"batch": 7})
    with pytest.raises(TypeError, match="finetune_config must be a FinetuneConfig or a mapping, "):
        make(finetune_config=7)
    with pytest.raises(TypeError, match="scorer must be a function of a network, got 'x'"):
        make(scorer="x")
    with pytest.raises(ValueError, match="unknown finetune_at 'end'; valid: layer, episode"):
        make(finetune_at="end")
