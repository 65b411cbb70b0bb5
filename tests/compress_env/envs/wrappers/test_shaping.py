"""`PotentialReward`: what it adds by hand, and that it leaves every return as it was."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.options import RewardAt
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.envs.wrappers.context import LayerContext, curves_of
from compress_env.envs.wrappers.shaping import PotentialReward, layer_lost
from tests.compress_env.envs.fakes import Sensitive, check_wrapped, data
from tests.fakes import BranchedNet, PlainNet, seeded

Build = Callable[[], nn.Module]
QUICK: dict[str, Any] = {"finetune_steps": 0, "device": "cpu", "scorer": Sensitive()}
NETWORKS: dict[str, Build] = {"plain": PlainNet, "branched": BranchedNet}
STAGES: dict[str, tuple[type[LayerwiseCompressionEnv], dict[str, Any]]] = {
    "pruning": (PruningEnv, {"method": "magnitude", "flops_budget": 0.5, "prior": "l1"}),
    "lasso": (PruningEnv, {"method": "channel", "reward": "flops"}),
    "quantization": (QuantizationEnv, {"size_budget": 0.6, "prior": "uniform"}),
}


@cache
def made(stage: str, network: str, reward_at: RewardAt) -> LayerwiseCompressionEnv:
    env_class, options = STAGES[stage]
    return env_class(seeded(NETWORKS[network]), data(), reward_at=reward_at, **(QUICK | options))


def play(env: gym.Env[Any, Any], actions: list[float]) -> list[tuple[float, dict[str, Any]]]:
    """Take actions, again from the first where they do not suffice; rewards and infos."""
    env.reset(seed=0)
    steps, ended = list[tuple[float, dict[str, Any]]](), False
    while not ended:
        action = np.array([actions[len(steps) % len(actions)]], np.float32)
        _, reward, ended, _, info = env.step(action)
        steps.append((float(reward), info))
    return steps


@settings(max_examples=15)
@given(
    stage=st.sampled_from(sorted(STAGES)),
    network=st.sampled_from(sorted(NETWORKS)),
    reward_at=st.sampled_from(["layer", "episode"]),
    weight=st.floats(0.0, 100.0),
    actions=st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=8),
)
def test_every_return_stays_what_it_was(
    stage: str, network: str, reward_at: RewardAt, weight: float, actions: list[float]
) -> None:
    plain = made(stage, network, reward_at)
    shaped = play(PotentialReward(plain, weight), actions)
    own = play(plain, actions)
    expected = sum(reward for reward, _ in own)
    assert sum(r for r, _ in shaped) == pytest.approx(expected, rel=1e-13, abs=1e-12)
    assert sum(i["shaping"] for _, i in shaped) == pytest.approx(0.0, abs=1e-12)
    assert [i["reward_terms"] for _, i in shaped] == [i["reward_terms"] for _, i in own]


@pytest.mark.parametrize("stage", STAGES)
def test_a_discounted_return_is_moved_by_what_no_policy_can_change(stage: str) -> None:
    plain, gamma = made(stage, "branched", "layer"), 0.8
    env = PotentialReward(plain, 2.0, gamma=gamma)
    for actions in ([0.5, -0.5], [1.0, 0.0, 0.3]):
        discounts = gamma ** np.arange(len(plain.walk))
        shaped = [reward for reward, _ in play(env, actions)]
        own = [reward for reward, _ in play(plain, actions)]
        assert shaped @ discounts == pytest.approx(own @ discounts, abs=1e-12)
        assert not np.allclose(shaped, own)


def test_a_decision_is_charged_for_what_its_layer_loses() -> None:
    plain = made("pruning", "branched", "episode")
    env = PotentialReward(LayerContext(plain), 3.0)
    env.reset()
    assert env.potential() == 0.0
    _, reward, *_, info = env.step(np.array([0.7], np.float32))
    fisher = curves_of(plain)[0, :3]
    lost = np.interp(info["pruning_rate"], [0, 0.25, 0.5, 0.75, 1], [0, *fisher, 1])
    assert 0.0 < lost < 1.0
    assert reward == pytest.approx(-3.0 * lost / len(plain.walk))
    assert env.potential() == info["shaping"] == reward


def test_layer_lost_by_hand() -> None:
    rates, bits = made("pruning", "plain", "layer"), made("quantization", "plain", "layer")
    curve = np.array([0.1, 0.3, 0.6, 0.9, 0.9, 0.9], np.float32)
    for rate, lost in ((0.0, 0.0), (0.125, 0.05), (0.5, 0.3), (0.875, 0.8), (1.0, 1.0)):
        assert layer_lost(rates, curve, rate) == pytest.approx(lost)
    for width, lost in ((1, 0.7), (2, 0.5), (3, 0.3), (4, 0.1), (6, 0.05), (8, 0.0)):
        curve = np.array([0.7, 0.5, 0.1, 0.0], np.float32)
        assert layer_lost(bits, curve, width) == pytest.approx(lost)


def test_a_failed_episode_is_given_all_back() -> None:
    class Breaking:
        n_calls = 0

        def __call__(self, model: nn.Module) -> float:
            self.n_calls += 1
            if self.n_calls > 2:
                raise FloatingPointError("loss is not finite")
            return 0.5

    plain = PruningEnv(
        seeded(BranchedNet), data(), method="magnitude", **(QUICK | {"scorer": Breaking()})
    )
    steps = play(PotentialReward(plain, 5.0), [0.9])
    assert len(steps) == 3 < len(plain.walk) and "error" in steps[-1][1]
    own = sum(info["reward_terms"]["reward"] for _, info in steps)
    assert sum(reward for reward, _ in steps) == pytest.approx(own, abs=1e-12)
    assert steps[-1][1]["shaping"] > 0.0


def test_a_truncated_episode_keeps_what_its_state_is_worth() -> None:
    """A learner goes on from its value there: Q(s') of the shaped rewards is less by Phi(s')."""
    plain = made("pruning", "branched", "layer")
    env = PotentialReward(gym.wrappers.TimeLimit(plain, 2), 2.0, gamma=0.9)
    env.reset(seed=0)
    shaping = []
    for _ in range(2):
        *_, ended, truncated, info = env.step(np.array([0.6], np.float32))
        shaping.append(info["shaping"])
    assert truncated and not ended and env.potential() < 0.0
    assert shaping[0] + 0.9 * shaping[1] == pytest.approx(0.9**2 * env.potential())


@pytest.mark.parametrize("stage", STAGES)
def test_passes_the_check_and_goes_on_in_a_copy(stage: str) -> None:
    env = PotentialReward(made(stage, "plain", "layer"), 0.5)
    check_wrapped(env)
    env.reset()
    action = np.array([0.4], np.float32)
    env.step(action)
    copy = pickle.loads(pickle.dumps(env))
    assert copy.potential() == env.potential() < 0.0
    assert copy.step(action)[1] == env.step(action)[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": -1.0}, "weight must be 0 or more, got -1.0"),
        ({"weight": float("nan")}, "weight must be 0 or more, got nan"),
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\], got 1.5"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PotentialReward(made("pruning", "plain", "layer"), **changes)
    with pytest.raises(TypeError, match="expected a PruningEnv or a QuantizationEnv, got a Cart"):
        PotentialReward(gym.make("CartPole-v1"))
