"""Every algorithm: files without an environment, copies and arguments."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.monitor import Monitor

from agents import CIMPPO, CMAES, KLPPO, TPE, QCriticPPO
from tests.agents.common.fakes import (
    N_STEPS,
    PENALTIES,
    SEARCHES,
    actions_of,
    each_agent,
    each_learner,
    learnt_by,
    make,
    settings_of,
    vectorized,
)
from tests.agents.fakes import TargetEnv


class TestFiles:
    @each_agent
    def test_is_loaded_without_an_environment(self, agent: Any, tmp_path: Path) -> None:
        made = make(agent).learn(24)
        made.save(tmp_path / "agent")
        loaded = agent.load(tmp_path / "agent", device="cpu")
        np.testing.assert_array_equal(actions_of(loaded), actions_of(made))
        with pytest.raises(ValueError, match="expected an environment to learn in, got None"):
            loaded.learn(12)
        loaded.set_env(TargetEnv(N_STEPS))
        assert loaded.learn(12, reset_num_timesteps=False).num_timesteps == 36

    @each_agent
    def test_so_is_the_best_model_of_an_evaluation(self, agent: Any, tmp_path: Path) -> None:
        evaluation = EvalCallback(
            Monitor(TargetEnv(N_STEPS)),
            best_model_save_path=str(tmp_path),
            eval_freq=12,
            n_eval_episodes=1,
            verbose=0,
        )
        made = make(agent).learn(12, callback=evaluation)
        best = agent.load(tmp_path / "best_model.zip", device="cpu")
        assert best.num_timesteps == 12
        assert actions_of(best).shape == actions_of(made).shape == (N_STEPS, 1)

    @each_agent
    def test_goes_on_in_another_number_of_environments(self, agent: Any, tmp_path: Path) -> None:
        made = make(agent).learn(24)
        made.save(tmp_path / "agent")
        with pytest.raises(ValueError, match=r"^expected 1 environments, got 2: [^\n]*\.load\("):
            made.set_env(vectorized(2))
        loaded = agent.load(tmp_path / "agent", env=vectorized(2), device="cpu")
        loaded.learn(24)
        assert loaded.n_envs == 2 and loaded.num_timesteps == 24

    @pytest.mark.parametrize("agent", [KLPPO, CIMPPO, CMAES, TPE])
    def test_goes_on_as_if_it_had_not_stopped(self, agent: Any, tmp_path: Path) -> None:
        """From a reset, with the same random numbers."""
        made = make(agent, vectorized(2)).learn(24)
        made.save(tmp_path / "agent")
        loaded = agent.load(tmp_path / "agent", env=vectorized(2), device="cpu")
        made.set_env(vectorized(2))
        for each in (made, loaded):
            each.set_random_seed(np.int64(5))
            each.learn(24, reset_num_timesteps=False)
        assert learnt_by(loaded) == learnt_by(made)

    def test_given_objects_are_taken_and_checked(self, tmp_path: Path) -> None:
        make(KLPPO).save(tmp_path / "agent")
        loaded = KLPPO.load(tmp_path / "agent", custom_objects={"kl_coef": np.float32(2.0)})
        assert loaded.kl_coef == 2.0
        for bad in ({"kl_coef": -1.0}, {"seed": -1}, {"policy_class": SAC}):
            with pytest.raises(ValueError, match=rf"^{next(iter(bad))[:6]}[^\n]* must be"):
                KLPPO.load(tmp_path / "agent", custom_objects=bad)
        with pytest.raises(ValueError, match="n_epochs must be at least 1, got 0"):
            KLPPO.load(tmp_path / "agent", n_epochs=0)

    @each_agent
    def test_other_bounds_are_refused(self, agent: Any, tmp_path: Path) -> None:
        make(agent).save(tmp_path / "agent")
        with pytest.raises(ValueError, match=r"^Action spaces do not match[^\n]*$"):
            agent.load(tmp_path / "agent", env=TargetEnv(N_STEPS, high=(2.0,)))


class TestParameters:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_bounds_of_the_environment_stay_what_they_are(self, dtype: Any) -> None:
        envs = [TargetEnv(N_STEPS), TargetEnv(N_STEPS)]
        for env, high in zip(envs, (1.0, 3.0), strict=True):
            env.action_space = spaces.Box(-1.0, high, (2,), dtype)
        one, other = (make(QCriticPPO, env) for env in envs)
        message = r"^expected an actor whose actions' high is \[1.0, 1.0\], got \[3.0, 3.0\]$"
        with pytest.raises(ValueError, match=message):
            one.set_parameters(other.get_parameters())
        one.policy.load_state_dict(other.policy.state_dict())  # which nothing checks
        for policy in (one.policy.actor, one.policy.actor_target):
            policy.low.fill_(-7.0)
        for env, high in zip(envs, (1.0, 3.0), strict=True):
            assert env.action_space == spaces.Box(-1.0, high, (2,), dtype)

    @each_learner
    def test_what_was_returned_is_not_changed_by_learning(self, agent: Any) -> None:
        made = make(agent).learn(24)
        before, parameters = learnt_by(made), made.get_parameters()
        made.learn(24)
        assert learnt_by(made) != before
        made.set_parameters(parameters)
        assert learnt_by(made) == before

    @each_learner
    def test_agents_with_the_same_parameters_do_not_share_them(self, agent: Any) -> None:
        """Optimizers would keep the very tensors of their moments."""
        parameters = make(agent).learn(24).get_parameters()
        kept = copy.deepcopy(parameters)
        for _ in range(2):
            made = make(agent)
            made.set_parameters(parameters)
            made.learn(24)
        assert str(parameters) == str(kept)

    @each_learner
    def test_what_does_not_fit_changes_nothing(self, agent: Any, tmp_path: Path) -> None:
        wider = make(agent, TargetEnv(N_STEPS, observation_dim=3))
        wider.save(tmp_path / "wider")
        made = make(agent)
        before = learnt_by(made)
        for given in (wider.get_parameters(), str(tmp_path / "wider")):
            with pytest.raises(ValueError, match=r"^expected policy\.\S+ of shape \(8, \d\), got"):
                made.set_parameters(given)
        cut = made.get_parameters()
        cut["policy"].popitem()
        with pytest.raises(ValueError, match=r"^expected the parameters of policy, others are \["):
            made.set_parameters(cut)
        assert learnt_by(made) == before


class TestCopies:
    @pytest.mark.parametrize("n_before", [0, 25], ids=["fresh", "in the middle of an episode"])
    @pytest.mark.parametrize("how", ["deepcopy", "pickle"])
    @each_agent
    def test_a_copy_learns_the_same_and_leaves_the_original_alone(
        self, agent: Any, how: str, n_before: int
    ) -> None:
        made = make(agent)
        if n_before:
            made.learn(n_before)
        copied = copy.deepcopy(made) if how == "deepcopy" else pickle.loads(pickle.dumps(made))
        before = learnt_by(made)
        results = []
        for each in (copied, made):
            assert learnt_by(each) == before
            each.set_random_seed(3)
            each.learn(24, reset_num_timesteps=False)
            results.append(learnt_by(each))
        assert results[0] == results[1] != before


class TestArguments:
    @each_agent
    def test_every_number_has_its_range(self, agent: Any) -> None:
        names: set[str] = set()
        for function in (agent, PPO) if agent in PENALTIES else (agent,):
            for name, parameter in inspect.signature(function).parameters.items():
                if any(kind in str(parameter.annotation) for kind in ("int", "float")):
                    names.add(name)
        assert names >= {"seed", "n_steps"} or agent in SEARCHES
        assert names - {"verbose", "sde_sample_freq", "start"} <= set(agent.ranges)

    @each_agent
    def test_what_is_out_of_range_is_refused_in_a_line(self, agent: Any) -> None:
        env = vectorized(1)
        accepted = inspect.signature(PPO if agent in PENALTIES else agent).parameters
        own = inspect.signature(agent).parameters
        for name, allowed in agent.ranges.items():
            if name not in accepted and name not in own:
                continue  # PPO's own, which QCriticPPO does not take
            below = allowed.low if allowed.is_open else allowed.low - 1
            for value in (below, math.nan, "8", allowed.high + 1, [1]):
                if value == math.inf and allowed.may_be_infinite:
                    continue
                with pytest.raises(ValueError, match=rf"^{name} must be [^\n]*, got [^\n]*$"):
                    make(agent, env, **{name: value})

    @each_agent
    def test_integers_of_numpy_count_as_well(self, agent: Any) -> None:
        counts = {
            name: type_(value)
            for (name, value), type_ in zip(
                ((k, v) for k, v in settings_of(agent).items() if isinstance(v, int)),
                [np.int64, np.int32, np.uint8, np.int16],
                strict=False,
            )
        }
        made, plain = make(agent, **counts).learn(24), make(agent).learn(24)
        assert type(made.seed) is int
        assert learnt_by(made) == learnt_by(plain)

    @pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "3"])
    @each_agent
    def test_a_seed_is_also_checked_later(self, agent: Any, seed: Any) -> None:
        with pytest.raises(ValueError, match=r"^seed must be [^\n]*$"):
            make(agent).set_random_seed(seed)

    @each_agent
    def test_devices_are_checked(self, agent: Any) -> None:
        with pytest.raises(ValueError, match=r"^device must be 'auto' or one of PyTorch's"):
            make(agent, device="gpu0")

    @each_agent
    def test_no_environment_is_refused(self, agent: Any) -> None:
        with pytest.raises(ValueError, match="expected an environment, got None"):
            agent("MlpPolicy", None, **settings_of(agent))

    @pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
    @pytest.mark.parametrize("agent", PENALTIES)
    def test_a_single_advantage_cannot_be_normalised(self, agent: Any) -> None:
        with pytest.raises(ValueError, match="batch_size must be at least 2 to normalize_advan"):
            make(agent, batch_size=1)
        with pytest.raises(ValueError, match=r"n_steps \* n_envs must be at least 2 to"):
            make(agent, n_steps=1, batch_size=2)
        made = make(agent, n_steps=1, batch_size=1, normalize_advantage=False).learn(2)
        assert np.isfinite(learnt_by(made)).all()
