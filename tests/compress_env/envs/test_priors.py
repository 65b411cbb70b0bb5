"""What action 0 stands for: the map of actions about a prior, and priors that follow the budget."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from torch import nn

from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.priors import rescale_rates, shift_bits
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.envs.state import action_to_value, value_to_action
from tests.compress_env.allocation.networks import SHAPES, network
from tests.fakes import BranchedNet, PlainNet, make_data, seeded


def constant(model: nn.Module) -> float:
    return 0.5


QUICK: dict[str, Any] = {
    "finetune_steps": 0,
    "device": "cpu",
    "reward_at": "episode",
    "scorer": constant,
    "store": None,
}
PRUNING: dict[str, dict[str, Any]] = {
    "dense": {"flops_budget": 0.4},
    "several": {"flops_budget": 0.5, "params_budget": 0.6, "filters_budget": 0.8},
    "elements": {"method": "channel+variational", "flops_budget": 0.4},
    "rounded": {"flops_budget": 0.7, "channel_round": 2},
}
NAMED = ["lenet5", "resnet20_padded"]
ACTIONS = st.lists(st.floats(-1.0, 1.0, width=32), min_size=40, max_size=40)
FEW = settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
Build = Callable[[], nn.Module]


def pruning(build: Build = PlainNet, **options: Any) -> PruningEnv:
    method = {"method": "magnitude", "variational": {"n_steps": 0}}
    return PruningEnv(seeded(build), make_data(), **(QUICK | method | options))


def bits(build: Build = PlainNet, **options: Any) -> QuantizationEnv:
    return QuantizationEnv(seeded(build), make_data(), **(QUICK | options))


@cache
def named(name: str, stage: Any, prior: str) -> Any:
    channels, side, _ = SHAPES[name]
    data = make_data(n_classes=10, side=side, channels=channels)
    own = {"flops_budget": 0.4, "method": "magnitude"}
    own = own if stage is PruningEnv else {"size_budget": 0.2}
    return stage(network(name), data, prior=prior, **own, **QUICK)


def act(env: LayerwiseCompressionEnv, actions: Sequence[float]) -> list[dict[str, Any]]:
    env.reset()
    return [
        env.step(np.array([a], np.float32))[-1] for _, a in zip(env.walk, actions, strict=False)
    ]


def play_values(env: LayerwiseCompressionEnv, values: Sequence[float]) -> None:
    env.reset()
    for value in values:
        env.step(env.action_for(value))


def check_budget(env: LayerwiseCompressionEnv, info: dict[str, Any]) -> None:
    if isinstance(env, PruningEnv):
        costs = {unit: info.get(f"{env.macs}_{unit}", 0) for unit in env.budgets}
        assert all(cost <= env.budgets[unit] for unit, cost in costs.items())
        if not env.plan.removes_elements:
            whole = [each for each in env._executed if isinstance(each, tuple)]
            assert all(env.plan.highest(tuple(whole), u) <= m for u, m in env.budgets.items())
    elif isinstance(env, QuantizationEnv):
        assert info["size_bytes"] <= env.budget_bytes


@given(
    ends=st.tuples(st.floats(0, 8), st.floats(0, 8)).map(sorted),
    share=st.floats(0, 1),
    actions=st.tuples(st.floats(-1, 1), st.floats(-1, 1)).map(sorted),
)
def test_map_is_monotone_continuous_and_invertible(
    ends: list[float], share: float, actions: list[float]
) -> None:
    low, high = ends
    prior = min(high, low + share * (high - low))
    first, second = (action_to_value(np.array([a]), (low, high), prior) for a in actions)
    assert low <= first <= second <= high
    assert second - first <= (actions[1] - actions[0]) * (high - low) + 1e-12
    marks = [action_to_value(np.array([a]), (low, high), prior) for a in (-1.0, 0.0, 1.0)]
    assert marks[1] == prior and marks == pytest.approx([low, prior, high], abs=1e-12)
    back = value_to_action(first, (low, high), prior)
    assert back.dtype == np.float32 and back.shape == (1,)
    assert action_to_value(back, (low, high), prior) == pytest.approx(first, abs=1e-5)
    assert value_to_action(prior, (low, high), prior) == 0.0


def test_middle_of_the_interval_is_the_plain_map() -> None:
    for action in np.linspace(-1, 1, 7):
        plain = action_to_value(np.array([action]), (0.2, 0.9))
        assert plain == 0.2 + (action + 1.0) / 2.0 * (0.9 - 0.2)
        assert action_to_value(np.array([action]), (0.2, 0.9), 0.55) == pytest.approx(plain)
        assert value_to_action(plain, (0.2, 0.9)) == pytest.approx(action, abs=1e-6)
    env = pruning(flops_budget=0.4)
    env.reset()
    assert env.prior == "middle" and env.prior_value == sum(env._interval) / 2
    assert env.action_for(-1.0) == -1.0 and env.action_for(2.0) == 1.0


@pytest.mark.parametrize("prior", ["uniform", "l1"])
@pytest.mark.parametrize("kind", PRUNING)
@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
@FEW
@given(actions=ACTIONS)
def test_pruning_meets_the_budgets(
    build: Build, kind: str, prior: str, actions: list[float]
) -> None:
    env = _pruning(build, kind, prior)
    infos = act(env, actions)
    check_budget(env, infos[-1])
    assert len(infos) == len(env.walk)


@cache
def _pruning(build: Build, kind: str, prior: str) -> PruningEnv:
    return pruning(build, prior=prior, **PRUNING[kind])


@cache
def _bits(build: Build, prior: str) -> QuantizationEnv:
    return bits(build, prior=prior, size_budget=0.3)


@pytest.mark.parametrize("prior", ["uniform", "relative_error"])
@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
@FEW
@given(actions=ACTIONS)
def test_bits_meet_the_budget(build: Build, prior: str, actions: list[float]) -> None:
    env = _bits(build, prior)
    check_budget(env, act(env, actions)[-1])


@pytest.mark.parametrize(
    ("stage", "rule"), [(PruningEnv, "l2"), (QuantizationEnv, "relative_error")]
)
@pytest.mark.parametrize("name", NAMED)
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions=ACTIONS, is_uniform=st.booleans())
def test_real_networks_meet_the_budget(
    name: str, stage: Any, rule: str, actions: list[float], is_uniform: bool
) -> None:
    env = named(name, stage, "uniform" if is_uniform else rule)
    check_budget(env, act(env, actions)[-1])


@pytest.mark.parametrize("kind", PRUNING)
@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
def test_zero_everywhere_is_the_uniform_rate(build: Build, kind: str) -> None:
    env = pruning(build, prior="uniform", **PRUNING[kind])
    act(env, [0.0] * len(env.walk))
    expected = env.plan.at_rates([env.uniform_value()] * len(env.walk))
    assert list(env._executed) == expected


def test_zero_everywhere_is_the_uniform_bit_width() -> None:
    env = bits(prior="uniform", size_budget=0.2)
    assert [info["bits"] for info in act(env, [0.0] * 4)] == [env.uniform_value()] * 4


@pytest.mark.parametrize("rule", ["l1", "l2", "lamp", "fisher", "taylor"])
@pytest.mark.parametrize("name", NAMED)
def test_zero_everywhere_is_the_rule(name: str, rule: str) -> None:
    env = named(name, PruningEnv, rule)
    act(env, [0.0] * len(env.walk))
    assert list(env._executed) == env.plan.at_rates(env.allocate(rule))


@pytest.mark.parametrize("name", NAMED)
def test_zero_everywhere_is_the_rule_of_bits(name: str) -> None:
    env = named(name, QuantizationEnv, "relative_error")
    act(env, [0.0] * len(env.walk))
    assert list(env._executed) == env.allocate("relative_error")


@given(values=st.lists(st.floats(0.0, 0.95), min_size=3, max_size=3))
@FEW
def test_zero_everywhere_is_a_feasible_array(values: list[float]) -> None:
    env = pruning(prior=np.array(values))
    act(env, [0.0] * 3)
    assert list(env._executed) == env.plan.at_rates(values)
    tight = pruning(prior=values, flops_budget=0.3)
    act(tight, [0.0] * 3)
    if env.plan.meets(values, tight.budgets):
        assert tight._executed == env._executed
    else:
        assert tight.plan.highest(tight._executed, "macs") <= tight.budget


def test_uniform_uses_what_a_decision_leaves() -> None:
    env = named("resnet20_padded", PruningEnv, "uniform")
    env.reset()
    planned = env.prior_value
    env.step(env.action_for(0.0))
    more = env.prior_value
    env.reset()
    env.step(env.action_for(0.9))
    less = env.prior_value
    assert less < planned < more
    infos = act(env, [1.0, *[0.0] * 30])
    assert 0.97 * env.budget < infos[-1]["dense_macs"] <= env.budget
    # One channel more of the first group would be too much for every lower rate.
    n_layers = len(env.walk)
    rate = less - 0.02
    assert not env.plan.can_meet(env._executed[:1], [rate] * (n_layers - 1), env.budgets)


@pytest.mark.parametrize("second", [1.0, -1.0])
def test_values_of_bits_move_with_what_a_decision_leaves(second: float) -> None:
    free = bits()
    budget = free.most_bytes([4] * 4) / free._full_bytes
    env = bits(prior=[4] * 4, size_budget=budget)
    executed = [info["bits"] for info in act(env, [0.0, second, 0.0, 0.0])]
    assert executed[0] == 4 and (executed[1] - 4) * second > 0
    assert (4 - executed[2]) * second > 0 and env.most_bytes(executed) <= env.budget_bytes
    for t in (2, 3):  # what is left is less than another bit
        raised = [*executed[:t], min(8, executed[t] + 1), *executed[t + 1 :]]
        assert raised == executed or env.most_bytes(raised) > env.budget_bytes


def test_a_prior_that_exceeds_the_budget_is_rescaled_at_once() -> None:
    env = pruning(prior=[0.1, 0.4, 0.1], flops_budget=0.3)
    act(env, [0.0] * 3)
    kept = 1.0 - np.array(env._allocation)
    np.testing.assert_allclose(kept / [0.9, 0.6, 0.9], kept[0] / 0.9)
    assert env.plan.highest(env._executed, "macs") <= env.budget
    low = bits(prior=[8, 8, 4, 8], size_budget=0.2)
    assert [info["bits"] for info in act(low, [0.0] * 4)] == list(low._allocation or ())
    assert low._meets((), low._allocation or (), low._uncompressed)


def test_without_a_budget_uniform_is_the_middle_and_values_stay() -> None:
    for make in (pruning, bits):
        plain, uniform = make(), make(prior="uniform")
        actions = [0.3, -0.7, 0.0, 0.9]
        assert act(plain, actions) == act(uniform, actions)
    env = bits(prior=[3, 5, 2, 8])
    assert [info["bits"] for info in act(env, [0.0] * 4)] == [3, 5, 2, 8]
    assert [info["bits"] for info in act(env, [1.0, 0.0, 0.0, 0.0])] == [8, 5, 2, 8]


def test_rates_are_rescaled_by_a_common_factor_of_what_is_kept() -> None:
    found = rescale_rates([0.2, 0.6, 1.0], 0.95, lambda rates: float(np.mean(rates)) >= 0.7)
    assert np.mean(found) == pytest.approx(0.7, abs=1e-4)
    assert (1 - found[0]) / (1 - found[1]) == pytest.approx(2.0)
    assert rescale_rates([0.5, 0.5], 0.9, lambda rates: True) == [0.0, 0.0]
    assert rescale_rates([0.1, 0.5], 0.9, lambda rates: min(rates) >= 0.9) == [0.9, 0.9]


def test_bits_are_shifted_and_what_is_left_is_filled() -> None:
    def meets(found: Sequence[int]) -> bool:
        return sum(found) <= 14

    assert shift_bits([4, 8, 6], (1, 8), meets, fills=False) == [2, 6, 4]
    assert shift_bits([4, 8, 6], (1, 8), meets, fills=True) == [3, 7, 4]
    assert shift_bits([4, 4, 4], (1, 8), meets, fills=False) == [4, 4, 4]
    assert shift_bits([4, 4, 4], (1, 8), meets, fills=True) == [5, 5, 4]
    assert shift_bits([1, 2], (1, 8), lambda found: max(found) == 1, fills=True) == [1, 1]


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (
            "unifrom",
            r"unknown prior 'unifrom', did you mean 'uniform'\? valid: middle, uniform, l1",
        ),
        ([0.5, 0.5], "prior must have 3 values, one for each decision, got 2"),
        ([0.5, 0.5, 0.96], r"prior must hold numbers in \[0, 0.95\], what pruning_rate may be"),
        ([0.5, float("nan"), 0.5], "got nan"),
    ],
)
def test_bad_priors_of_rates_are_refused(prior: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pruning(prior=prior, flops_budget=0.5)


def test_bad_priors_of_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"whole numbers in \[2, 8\], what bits may be.* got 2.5"):
        bits(prior=[2.5, 3, 3, 3], min_bits=2)
    with pytest.raises(ValueError, match="did you mean 'relative_error'"):
        bits(prior="relative_eror", size_budget=0.5)
    with pytest.raises(ValueError, match="prior 'relative_error' needs a budget, got none"):
        bits(prior="relative_error")
    with pytest.raises(ValueError, match="prior 'fisher' needs a budget, got none"):
        pruning(prior="fisher")
    for wrong in (None, 0.5, [[0.5]], [object()]):
        with pytest.raises(TypeError, match="prior must be a name or one value for each decision"):
            pruning(prior=wrong)


@pytest.mark.parametrize("prior", ["uniform", "l1", (0.3, 0.6, 0.1)])
def test_copies_go_on_about_the_same_prior(prior: Any) -> None:
    env = pruning(prior=prior, flops_budget=0.4)
    env.reset()
    env.step(np.array([0.5], np.float32))
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert twin.prior_value == env.prior_value and twin._allocation == env._allocation
        twin.step(np.array([-0.4], np.float32))
        twin.step(np.array([0.1], np.float32))
        expected = act(env, [0.5, -0.4, 0.1])[-1]
        assert twin._executed == env._executed and expected["layer"] == "fc2"
        env.reset()
        env.step(np.array([0.5], np.float32))


def test_the_map_follows_from_the_decisions_executed_so_far() -> None:
    env = named("resnet20_padded", PruningEnv, "l2")
    act(env, [0.7, -0.4, 0.1, 0.0])
    first, state = env._planned, env.episode_state()
    play_values(env, [decision.value for decision in env._history])
    assert env._planned == first and env.prior_value == env._clipped_prior()
    env.reset()
    env.restore_episode(state)
    assert env._planned == first


def test_an_array_of_the_caller_may_change() -> None:
    given = np.array([0.3, 0.6, 0.1])
    env = pruning(prior=given)
    given[:] = 0.9
    assert env.prior == (0.3, 0.6, 0.1) == copy.deepcopy(env).prior


def test_action_for_refuses_what_is_no_moment_of_the_episode() -> None:
    env = pruning(prior="uniform", flops_budget=0.4)
    observation, _ = env.reset()
    assert env.action_for(env.prior_value, observation) == 0.0
    assert env.action_for(env.prior_value, np.append(observation, 3.0)) == 0.0
    env.step(np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="expected the present observation of the environment"):
        env.action_for(0.5, observation)
    with pytest.raises(ValueError, match="the value must be a number, got nan"):
        env.action_for(float("nan"))


@pytest.mark.parametrize("make", [pruning, bits])
def test_gymnasium_and_stable_baselines3_accept_it(make: Any) -> None:
    budget = {"flops_budget": 0.4} if make is pruning else {"size_budget": 0.3}
    env = make(prior="uniform", **budget)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)
        sb3_check_env(env)
    assert env.prior == "uniform"


def test_transitions_and_their_names_do_not_depend_on_the_prior() -> None:
    plain, other = (pruning(prior=p, flops_budget=0.4) for p in ("middle", "uniform"))
    assert plain._task_name() == other._task_name()
    infos = act(other, [0.6, -0.3, 0.2])
    play_values(plain, [info["pruning_rate"] for info in infos])
    assert plain._executed == other._executed and plain._current == other._current
