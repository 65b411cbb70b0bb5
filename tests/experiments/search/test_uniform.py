"""One rate for every layer, on the cost that the network comes to."""

from __future__ import annotations

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import Uniform
from compress_env.envs.pruning import PruningEnv
from experiments.search.episodes import EpisodeLog, run_policy
from experiments.search.playing import play
from experiments.search.uniform import uniform_policy
from tests.fakes import PlainNet, make_data, seeded


def make_env(method: str, budget: float = 0.6) -> PruningEnv:
    data = make_data()
    return PruningEnv(
        seeded(PlainNet),
        data,
        method=method,  # type: ignore[arg-type]
        flops_budget=budget,
        finetune_steps=2,
        device="cpu",
        variational={"n_steps": 2},
    )


@pytest.mark.parametrize("method", ["channel+variational", "variational"])
def test_rate_uses_the_budget_where_weights_go(method: str) -> None:
    env = make_env(method)
    planned = play(env, Uniform(env.uniform_value()))
    policy = uniform_policy(env)
    log = EpisodeLog(DummyVecEnv([lambda: env]))
    run_policy(policy, log, n_episodes=1)
    (episode,) = log.episodes
    assert policy.value <= env.uniform_value()
    assert planned.cost <= episode.cost <= env.budget
    # No later layer has had to give more than its share.
    np.testing.assert_allclose(episode.values, policy.value, atol=0.05)


def test_exact_plans_are_left_alone() -> None:
    env = make_env("magnitude")
    assert uniform_policy(env).value == env.uniform_value()
