"""Whole episodes on a CUDA device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import nn

from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from tests.fakes import BranchedNet, PlainNet, make_data, seeded

pytestmark = pytest.mark.gpu


def run(env: PruningEnv | QuantizationEnv) -> list[dict[str, Any]]:
    env.reset(seed=0)
    return [env.step(np.zeros(1, np.float32))[-1] for _ in env.walk]


@pytest.mark.parametrize("method", ["magnitude", "channel"])
@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
def test_pruning_episode_costs_the_same_as_on_the_cpu(build: type[nn.Module], method: Any) -> None:
    infos = {}
    for device in ("cuda", "cpu"):
        env = PruningEnv(
            seeded(build),
            make_data(),
            method=method,
            flops_budget=0.6,
            finetune_steps=3,
            device=device,
        )
        infos[device] = run(env)
        assert next(env.compressed_model().parameters()).device.type == device
    for on_gpu, on_cpu in zip(infos["cuda"], infos["cpu"], strict=True):
        assert "error" not in on_gpu
        assert on_gpu["dense_macs"] == on_cpu["dense_macs"]


def test_quantization_episode_costs_the_same_as_on_the_cpu() -> None:
    sizes = {}
    for device in ("cuda", "cpu"):
        env = QuantizationEnv(seeded(BranchedNet), make_data(), finetune_steps=3, device=device)
        infos = run(env)
        assert not any("error" in info for info in infos)
        sizes[device] = [info["size_bytes"] for info in infos]
    # What the entropy coder saves depends on values, whose last bits differ.
    assert sizes["cuda"] == pytest.approx(sizes["cpu"], rel=0.02)
