"""Every algorithm: which policies and spaces it takes, and what it says of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

from agents import CIMPPO, CMAES, KLPPO, QCriticPPO
from agents.common.checked_algorithm import CheckedAlgorithm
from agents.penalty_ppo import PenaltyPPO
from agents.policies import MlpPolicy, QCriticPolicy
from tests.agents.common.fakes import (
    N_STEPS,
    SEARCHES,
    actions_of,
    each_agent,
    learnt_by,
    make,
    vectorized,
)
from tests.agents.fakes import TargetEnv


class OurPolicy(QCriticPolicy):
    """One of a user's own."""


class TheirPolicy(ActorCriticPolicy):
    """Likewise, for PPO."""


class Remembering(ActorCriticPolicy):
    """Takes more than observations, as recurrent policies do."""

    def forward(self, obs: Any, states: Any, starts: Any) -> Any:  # type: ignore[override]
        raise NotImplementedError


class TestPolicies:
    @pytest.mark.parametrize(
        "policy", ["CnnPolicy", "mlppolicy", "", ActorCriticPolicy, SAC, int, None, 3]
    )
    def test_foreign_ones_are_refused_by_q_critic_ppo(self, policy: Any) -> None:
        message = r"^policy must be 'MlpPolicy' or a subclass of QCriticPolicy[^\n]*, got [^\n]*$"
        with pytest.raises(ValueError, match=message):
            make(QCriticPPO, policy=policy)

    @pytest.mark.parametrize(
        "policy", ["MlpPolici", QCriticPolicy, Remembering, SAC.policy_aliases["MlpPolicy"], None]
    )
    @pytest.mark.parametrize("agent", [PenaltyPPO, KLPPO, CIMPPO])
    def test_foreign_ones_are_refused_by_the_penalties(self, agent: Any, policy: Any) -> None:
        message = r"^policy must be 'MlpPolicy', 'CnnPolicy', 'MultiInputPolicy' or a subclass of A"
        with pytest.raises(ValueError, match=message):
            make(agent, policy=policy)

    @pytest.mark.parametrize("policy", ["CnnPolicy", int])
    def test_searches_take_what_is_a_policy_though_they_have_no_use_for_it(
        self, policy: Any
    ) -> None:
        with pytest.raises(ValueError, match=r"^policy must be 'MlpPolicy' or a subclass of BaseP"):
            make(CMAES, policy=policy)
        assert make(CMAES, policy=TheirPolicy).learn(3).best_actions is not None

    @pytest.mark.parametrize(
        ("agent", "policy"),
        [
            (QCriticPPO, MlpPolicy),
            (QCriticPPO, OurPolicy),
            (KLPPO, ActorCriticPolicy),
            (CIMPPO, TheirPolicy),
        ],
    )
    def test_own_classes_learn(self, agent: Any, policy: Any, tmp_path: Path) -> None:
        made = make(agent, policy=policy)
        before = learnt_by(made)
        assert learnt_by(made.learn(24)) != before and type(made.policy) is policy
        made.save(tmp_path / "agent")
        assert type(agent.load(tmp_path / "agent", device="cpu").policy) is policy

    @pytest.mark.parametrize("net_arch", [[0], [8.0], "8", {"pi": [8]}, {"pi": [8], "qf": [-1]}])
    def test_impossible_networks_are_refused(self, net_arch: Any) -> None:
        with pytest.raises(ValueError, match=r"^net_arch must be [^\n]*, got [^\n]*$"):
            make(QCriticPPO, policy_kwargs={"net_arch": net_arch})


BOX = spaces.Box(0.0, 1.0, (2,), np.float32)


class TestSpaces:
    @pytest.mark.parametrize(
        "space",
        [
            spaces.MultiBinary(3),
            spaces.MultiDiscrete([2, 2]),
            spaces.Discrete(3, start=1),
            spaces.Box(-np.inf, 1.0, (2,), np.float32),
            spaces.Box(-1e38, 3.4e38, (2, 3), np.float32),
            spaces.Box(np.zeros((30, 2)), np.full((30, 2), 1e300), dtype=np.float64),
            spaces.Box(0, 5, (2,), np.int64),
            spaces.Tuple([BOX]),
            spaces.Dict({"x": BOX}),
        ],
        ids=lambda space: str(space)[:20],
    )
    @each_agent
    def test_other_actions_are_refused_in_a_line(
        self, agent: Any, space: spaces.Space[Any]
    ) -> None:
        env = TargetEnv(N_STEPS)
        env.action_space = space
        with pytest.raises(ValueError, match=r"^[^\n]*, got [^\n]*$"):
            make(agent, env)

    @pytest.mark.parametrize(
        "space",
        [spaces.Tuple([BOX]), spaces.Text(3), spaces.Dict({"x": BOX})],
        ids=lambda space: type(space).__name__,
    )
    @each_agent
    def test_other_observations_are_refused_in_a_line(
        self, agent: Any, space: spaces.Space[Any]
    ) -> None:
        env = TargetEnv(N_STEPS)
        env.observation_space = space
        with pytest.raises(ValueError, match=r"^[^\n]*$"):
            make(agent, env)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @each_agent
    def test_boxes_with_uneven_bounds_are_kept_to(self, agent: Any, dtype: Any) -> None:
        """0.1 and 0.7 are rounded up to float32."""
        env = TargetEnv(N_STEPS)
        low, high = np.array([[0.1, -5.0], [-1e-3, 40.0]]), np.array([[0.7, 0.1], [0.1, 100.0]])
        env.action_space = spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)
        made = make(agent, env).learn(48)
        for deterministic in (True, False):
            action, _ = made.predict(np.zeros(2, np.float32), deterministic=deterministic)
            assert action.shape == (2, 2) and env.action_space.contains(action.astype(dtype))
        assert all(env.action_space.contains(action.astype(dtype)) for action in env.executed)

    @pytest.mark.parametrize("agent", [QCriticPPO, *SEARCHES])
    def test_discrete_actions_are_refused(self, agent: Any) -> None:
        with pytest.raises(ValueError, match=r"Box[^\n]*, got Discrete\(2\)$"):
            make(agent, gym.make("CartPole-v1"))

    @each_agent
    def test_normalised_environments_are_learnt_in(self, agent: Any, tmp_path: Path) -> None:
        made = make(agent, VecNormalize(vectorized(2))).learn(48)
        assert np.isfinite(learnt_by(made)).all()
        made.save(tmp_path / "agent")
        loaded: CheckedAlgorithm = agent.load(tmp_path / "agent", device="cpu")
        np.testing.assert_array_equal(actions_of(loaded), actions_of(made))
