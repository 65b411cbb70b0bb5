"""PPO with a hook for its loss, and the two penalties in it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
)
from torch.distributions import Bernoulli, Categorical, Normal

from agents import CIMPPO, KLPPO
from agents.common.losses import (
    CIM_FORMS,
    adapted_coef,
    cim_metric,
    cim_penalty,
    parameter_shift,
    surrogate_loss,
)
from agents.penalty_ppo import PenaltyPPO, _kl

SETTINGS: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "seed": 0, "device": "cpu"}


def weights(agent: PPO) -> th.Tensor:
    return th.nn.utils.parameters_to_vector(agent.policy.parameters())


@pytest.mark.parametrize("task", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"clip_range_vf": 0.1, "ent_coef": 0.01, "normalize_advantage": False},
        {"target_kl": 1e-4},
        {"policy_kwargs": {"share_features_extractor": False}},
    ],
    ids=["defaults", "value clip", "early stop", "two extractors"],
)
def test_clipped_loss_and_v_critic_are_exactly_ppo(task: str, extra: dict[str, Any]) -> None:
    theirs = PPO("MlpPolicy", task, **SETTINGS, **extra).learn(192)
    ours = PenaltyPPO("MlpPolicy", task, **SETTINGS, **extra).learn(192)
    assert th.equal(weights(ours), weights(theirs))
    logged = ours.logger.name_to_value
    expected = {k: v for k, v in theirs.logger.name_to_value.items() if k.startswith("train/")}
    assert {k: logged[k] for k in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("agent", [KLPPO, CIMPPO])
@pytest.mark.parametrize("task", ["Pendulum-v1", "CartPole-v1"])
def test_penalties_learn_and_log_both_divergences(agent: type[PenaltyPPO], task: str) -> None:
    made = agent("MlpPolicy", task, **SETTINGS)
    before = weights(made).clone()
    made.learn(128)
    assert not th.equal(weights(made), before)
    logged = made.logger.name_to_value
    assert logged["train/kl_old_new"] > 0 and logged["train/kl_new_old"] > 0
    assert logged["train/kl_old_new"] != logged["train/kl_new_old"]


def test_divergences_are_of_all_action_dimensions_and_in_their_direction() -> None:
    old = DiagGaussianDistribution(2).proba_distribution(th.zeros(3, 2), th.zeros(2))
    means, deviations = th.tensor([[1.0, 0.0]]).repeat(3, 1), th.tensor([1.0, 2.0])
    new = DiagGaussianDistribution(2).proba_distribution(means, deviations.log())
    # Of N(0, 1) and N(1, 1) it is 1/2 either way; of N(0, 1) || N(0, 4) log 2 + 1/8 - 1/2.
    old_new = 0.5 + math.log(2.0) + 1 / 8 - 0.5
    new_old = 0.5 - math.log(2.0) + 4 / 2 - 0.5
    np.testing.assert_allclose(_kl(old, new), [old_new] * 3, rtol=1e-6)
    np.testing.assert_allclose(_kl(new, old), [new_old] * 3, rtol=1e-6)
    chosen = [
        CategoricalDistribution(2).proba_distribution(th.tensor([p]).log())
        for p in ([0.5, 0.5], [0.9, 0.1])
    ]
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert _kl(*chosen).item() == pytest.approx(expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_measured_and_penalised_divergences_are_those_of_their_names(reverse: bool) -> None:
    """The new policy's standard deviation is made twice the old one's everywhere."""
    made = KLPPO("MlpPolicy", "Pendulum-v1", **SETTINGS, reverse=reverse).learn(64)
    made.kl_coef = 10.0  # which learning adapts
    made._old_policy = KLPPO("MlpPolicy", "Pendulum-v1", **SETTINGS).policy
    made._old_policy.load_state_dict(made.policy.state_dict())
    with th.no_grad():
        made.policy.log_std.add_(math.log(2.0))
    old_new = math.log(2.0) + 1 / 8 - 0.5
    new_old = -math.log(2.0) + 4 / 2 - 0.5
    assert made._divergences() == pytest.approx((old_new, new_old), rel=1e-5)
    data = next(made.rollout_buffer.get(64))
    free = copy.copy(made)
    free.kl_coef = 0.0
    penalised, plain = (agent._loss(data)[1]["policy_gradient_loss"] for agent in (made, free))
    assert penalised - plain == pytest.approx(10.0 * (new_old if reverse else old_new), rel=1e-4)


@pytest.mark.parametrize("agent", [KLPPO, CIMPPO])
def test_coefficient_follows_the_divergence_after_the_update(agent: type[PenaltyPPO]) -> None:
    """A single step of a single pass starts where the policy has not changed yet."""
    steps = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "learning_rate": 0.05}
    made = agent("MlpPolicy", "CartPole-v1", **SETTINGS | steps, kl_target=1e-3)
    made.learn(32)
    logged = made.logger.name_to_value
    assert logged["train/kl_old_new"] > 1.5e-3
    assert (made.kl_coef if isinstance(made, KLPPO) else made.cim_coef) == 2.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("agent", [PenaltyPPO, KLPPO, CIMPPO])
def test_schedules_may_end_at_zero(agent: type[PenaltyPPO]) -> None:
    settings: dict[str, Any] = {"clip_range": lambda progress: 0.2 * progress}
    made = agent("MlpPolicy", "CartPole-v1", **SETTINGS, **settings).learn(128)
    assert made.logger.name_to_value["train/clip_range"] == 0.0


def test_dictionaries_are_observed_too() -> None:
    class Wrapped(gym.ObservationWrapper[Any, Any, Any]):
        def __init__(self) -> None:
            super().__init__(gym.make("CartPole-v1"))
            self.observation_space = spaces.Dict({"x": self.env.observation_space})

        def observation(self, observation: Any) -> Any:
            return {"x": observation}

    made = KLPPO("MultiInputPolicy", Wrapped(), **SETTINGS).learn(64)
    assert made.logger.name_to_value["train/kl_old_new"] > 0.0


@pytest.mark.parametrize(
    ("agent", "weak", "strong"),
    [
        (KLPPO, {"kl_coef": 1e-6}, {"kl_coef": 1e4}),
        (KLPPO, {"kl_coef": 1e-6, "reverse": True}, {"kl_coef": 1e4, "reverse": True}),
        (CIMPPO, {"cim_coef": 1e-6}, {"cim_coef": 1e4}),
    ],
    ids=["KL", "reverse KL", "CIM"],
)
def test_a_strong_penalty_keeps_the_policy_in_place(
    agent: type[PenaltyPPO], weak: dict[str, Any], strong: dict[str, Any]
) -> None:
    def moved(settings: dict[str, Any]) -> float:
        made = agent("MlpPolicy", "CartPole-v1", **SETTINGS, **settings, learning_rate=1e-3)
        made.learn(64)
        return float(made.logger.name_to_value["train/kl_old_new"])

    assert moved(strong) < 0.5 * moved(weak)


def test_kl_coefficient_follows_the_target() -> None:
    assert adapted_coef(1.0, 0.001, 0.01) == 0.5
    assert adapted_coef(1.0, 0.1, 0.01) == 2.0
    assert adapted_coef(1.0, 0.012, 0.01) == 1.0
    assert adapted_coef(1e-6, 0.001, 0.01) == 1e-6 and adapted_coef(1e6, 0.1, 0.01) == 1e6
    agent = KLPPO("MlpPolicy", "CartPole-v1", **SETTINGS, kl_target=10.0).learn(128)
    assert agent.kl_coef == 0.25  # far below the target, twice


@pytest.mark.parametrize(
    ("kl_target", "after"), [(None, 3.0), (10.0, 0.75), (1e-9, 12.0)], ids=["none", "far", "near"]
)
def test_cim_coefficient_follows_a_target_alone(kl_target: float | None, after: float) -> None:
    agent = CIMPPO("MlpPolicy", "CartPole-v1", **SETTINGS, cim_coef=3.0, kl_target=kl_target)
    assert agent.learn(128).cim_coef == after  # after two rollouts
    logged = agent.logger.name_to_value["train/cim_coef"]
    assert logged == {3.0: 3.0, 0.75: 1.5, 12.0: 6.0}[after]  # of the last update


def test_save_and_load_keep_the_coefficient(tmp_path: Path) -> None:
    agent = KLPPO("MlpPolicy", "CartPole-v1", **SETTINGS, kl_target=10.0).learn(128)
    agent.save(tmp_path / "agent")
    loaded = KLPPO.load(tmp_path / "agent", env=gym.make("CartPole-v1"), device="cpu")
    assert (loaded.kl_coef, loaded.kl_target) == (agent.kl_coef, agent.kl_target)
    observation = np.zeros(4, np.float32)
    assert loaded.predict(observation, deterministic=True) == agent.predict(
        observation, deterministic=True
    )
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 192


def test_surrogate_has_no_clip() -> None:
    loss = surrogate_loss(th.tensor([1.0, 1.0]), th.tensor([3.0, 0.5]).log(), th.zeros(2))
    assert loss.item() == pytest.approx(-1.75)


def test_cim_penalty_by_hand_and_in_its_limits() -> None:
    shift = th.tensor([[0.0, 0.0], [0.3, 0.4], [100.0, 0.0]])
    assert cim_penalty(shift, 0.5).tolist() == pytest.approx([0.0, 1 - math.exp(-0.5), 1.0])
    # A wide kernel is the squared distance, up to its factor.
    assert 2 * 50.0**2 * cim_penalty(shift[1], 50.0).item() == pytest.approx(0.25, rel=1e-3)


def test_cim_metric_by_hand_and_in_its_limits() -> None:
    shift = th.tensor([[0.0, 0.0], [0.3, 0.4], [100.0, 0.0], [100.0, -100.0]])
    of_each = [math.exp(-0.18), math.exp(-0.32)]  # width 1/2: exp(-2 d^2)
    expected = [0.0, math.sqrt(1.0 - sum(of_each) / 2), math.sqrt(0.5), 1.0]
    assert cim_metric(shift, 0.5).tolist() == pytest.approx(expected, abs=2e-4)
    # A wide kernel is the distance, up to its factor: a norm, where the joint form is its square.
    assert 50.0 * 2.0 * cim_metric(shift[1], 50.0).item() == pytest.approx(0.5, rel=0.03)
    assert cim_metric(shift, 0.5).tolist() == cim_metric(-shift, 0.5).tolist()


def test_cim_metric_has_a_gradient_where_nothing_has_changed() -> None:
    shift = th.zeros(1, 3, requires_grad=True)
    cim_metric(shift, 0.5).sum().backward()  # type: ignore[no-untyped-call]
    assert shift.grad is not None and shift.grad.tolist() == [[0.0, 0.0, 0.0]]


def test_cim_is_a_metric_in_its_second_form_alone() -> None:
    """The triangle inequality, at random triples; the squared form breaks it."""
    x, y, z = th.randn(3, 500, 4, generator=th.Generator().manual_seed(0))
    sums = {
        form: penalty(x - y, 1.0) + penalty(y - z, 1.0) - penalty(x - z, 1.0)
        for form, penalty in CIM_FORMS.items()
    }
    assert sums["metric"].min() > -1e-3
    near = th.tensor([[0.1, 0.0, 0.0, 0.0]])
    assert 2 * CIM_FORMS["joint"](near, 1.0) < CIM_FORMS["joint"](2 * near, 1.0)


@pytest.mark.parametrize("form", ["joint", "metric"])
def test_either_form_of_cim_trains(form: Any) -> None:
    agent = CIMPPO("MlpPolicy", "CartPole-v1", **SETTINGS, cim_form=form)
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(64)
    after = list(agent.policy.parameters())
    assert all(th.isfinite(parameter).all() for parameter in after)
    assert any(not th.equal(*pair) for pair in zip(before, after, strict=True))


def test_parameter_shift_of_both_kinds() -> None:
    new = Normal(th.tensor([[1.0, 2.0]]), th.tensor([[0.5, 1.0]]))
    old = Normal(th.tensor([[0.0, 2.5]]), th.tensor([[0.5, 0.25]]))
    assert parameter_shift(new, old).tolist() == [[1.0, -0.5, 0.0, 0.75]]
    shift = parameter_shift(
        Categorical(th.tensor([[0.5, 0.5]])), Categorical(th.tensor([[0.25, 0.75]]))
    )
    assert shift.tolist() == [[0.25, -0.25]]
    with pytest.raises(ValueError, match="normal or two categorical"):
        parameter_shift(new, Bernoulli(th.tensor([0.5])))


@pytest.mark.parametrize(
    ("agent", "settings", "message"),
    [
        (KLPPO, {"kl_coef": 0.0}, "kl_coef must be above 0"),
        (KLPPO, {"kl_target": float("nan")}, "kl_target must be above 0"),
        (CIMPPO, {"cim_coef": -1.0}, "cim_coef must be above 0"),
        (CIMPPO, {"width": 0.0}, "width must be above 0"),
        (CIMPPO, {"cim_form": "x"}, r"cim_form must be one of \('joint', 'metric'\), got 'x'"),
        (CIMPPO, {"kl_target": 0.0}, "kl_target must be above 0"),
        (CIMPPO, {"use_sde": True}, "use_sde is not supported"),
    ],
)
def test_bad_settings_are_refused(
    agent: type[PenaltyPPO], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        agent("MlpPolicy", "Pendulum-v1", **SETTINGS, **settings)


class ManyButtons(gym.Env[Any, Any]):
    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.MultiBinary(3)


def test_other_action_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected Box or Discrete actions, got MultiBinary\(3\)"):
        KLPPO("MlpPolicy", ManyButtons(), **SETTINGS)
