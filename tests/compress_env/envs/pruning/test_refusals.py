"""What the pruning environment refuses, and how an episode that fails ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress_env.envs.pruning import PruningEnv
from compress_env.task.task import FinetuneConfig
from tests.compress_env.envs.pruning.fakes import QUICK, act, data
from tests.fakes import PlainNet, seeded


class TestFailures:
    def test_loss_that_is_not_finite_ends_the_episode_with_the_lower_bound(self) -> None:
        config = FinetuneConfig(learning_rate=1e30)
        env = PruningEnv(
            seeded(PlainNet), data(), finetune_steps=3, finetune_config=config, device="cpu"
        )
        observation, reward, terminated, truncated, info = act(env, [0.0])[0]
        assert (reward, terminated, truncated) == (-3.0, True, False)
        assert info["error"].startswith("FloatingPointError")
        assert env.observation_space.contains(observation)
        fresh, _ = env.reset()
        np.testing.assert_array_equal(
            fresh, PruningEnv(seeded(PlainNet), data(), **QUICK).reset()[0]
        )

    def test_out_of_memory_ends_the_episode_and_the_next_is_clean(self) -> None:
        calls = 0

        def scorer(model: nn.Module) -> float:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
            return 0.5

        env = PruningEnv(seeded(PlainNet), data(), scorer=scorer, reward="flops", **QUICK)
        results = act(env, [0.0, 0.0])
        assert results[1][1:3] == (0.0, True)
        assert results[1][-1]["error"] == "OutOfMemoryError: CUDA out of memory."
        again = act(env, [0.0] * 3)
        assert again[0][1] == results[0][1]
        assert "error" not in again[-1][-1]

    @pytest.mark.parametrize("reward_at", ["layer", "episode"])
    @pytest.mark.parametrize("rate", [1e15, 1e25, 1e38])
    def test_any_divergence_ends_the_episode(self, rate: float, reward_at: Any) -> None:
        env = PruningEnv(
            seeded(PlainNet),
            data(),
            finetune_steps=1,
            finetune_config=FinetuneConfig(learning_rate=rate),
            reward_at=reward_at,
            device="cpu",
        )
        env.reset()
        done = False
        while not done:
            _, reward, done, _, info = env.step(np.zeros(1, np.float32))
        assert "error" in info or np.isfinite(float(reward))

    def test_failure_without_a_message(self) -> None:
        def scorer(model: nn.Module) -> float:
            raise FloatingPointError

        env = PruningEnv(seeded(PlainNet), data(), scorer=scorer, **QUICK)
        info = act(env, [0.0])[0][-1]
        assert info["error"] == "FloatingPointError: no reason given"
        assert info["pruning_rate"] == 0.5

    def test_scorer_that_returns_nan_is_a_failure(self) -> None:
        env = PruningEnv(seeded(PlainNet), data(), scorer=lambda _: float("nan"), **QUICK)
        assert "the scorer returned nan" in act(env, [0.0])[0][-1]["error"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, r"unknown method 'magic'; valid: magnitude, magnitude\+rec"),
        ({"reward": "profit"}, "unknown reward 'profit'; valid: err, flops"),
        ({"reward_at": "never"}, "unknown reward_at 'never'; valid: layer, episode"),
        ({"flops_budget": 0.001}, r"flops_budget must be in \[0.\d+, 1\].*reaches 0.\d+"),
        ({"flops_budget": 1.5}, r"flops_budget must be in .* got 1.5"),
        ({"filters_budget": 0.001}, r"filters_budget must be in \[0.\d+, 1\].*unpruned filters"),
        ({"filters_budget": 0.5, "method": "variational"}, r"must be in \[1.0000, 1\]"),
        ({"params_budget": 0.001}, r"params_budget must be in \[0.\d+, 1\].*reaches 0.\d+"),
        ({"params_budget": 0.0, "flops_budget": 0.5}, "params_budget must be in .* got 0.0"),
        ({"flops_budget": float("nan")}, r"flops_budget must be in .* got nan"),
        ({"max_pruning_rate": 0.0}, r"max_pruning_rate must be in \(0, 1\], got 0.0"),
        ({"channel_round": 0}, "channel_round must be at least 1, got 0"),
        ({"finetune_steps": -1}, "finetune_steps must be 0 or more, got -1"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"render_mode": "human"}, "unknown render_mode 'human'; valid: None, ansi, rgb_array"),
        ({"device": "abacus"}, "device 'abacus' is not available"),
        ({"model": "lenet6"}, "unknown model 'lenet6', did you mean 'lenet5'.* valid: .*lenet5"),
        ({"data": "digitz"}, "unknown data set 'digitz', did you mean 'digits'.* valid: .*digits"),
        ({"model": nn.Flatten()}, r"model must return logits of shape \(1, 3\), got \(1, 64\)"),
        ({"model": nn.Linear(3, 3)}, r"model cannot take images of shape \(1, 8, 8\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    options = {"model": seeded(PlainNet), "data": data(), "device": "cpu"} | options
    with pytest.raises(ValueError, match=message) as caught:
        PruningEnv(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": None}, "seed must be an int, got None"),
        ({"finetune_steps": 2.5}, "finetune_steps must be an int, got 2.5"),
        ({"model": PlainNet}, "model must be a name or a module"),
        ({"data": (1, 2)}, "data must be a name or a DataBundle, got tuple"),
        ({"reward": 3}, "reward must be a name or a callable, got int"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_types_are_refused(options: dict[str, Any], message: str) -> None:
    options = {"model": seeded(PlainNet), "data": data(), "device": "cpu"} | options
    with pytest.raises(TypeError, match=message):
        PruningEnv(**options)


def test_negative_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match="momentum must be 0 or more, got -1"):
        FinetuneConfig(momentum=-1)


def test_model_without_a_prunable_layer_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match="no prunable layer"):
        PruningEnv(model, data(), device="cpu")
