"""`SeveralBudgets`: which budget an episode has, and that all follows from it."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FrameStackObservation
from stable_baselines3.common.vec_env import DummyVecEnv

from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.envs.wrappers.context import LayerContext
from compress_env.envs.wrappers.several import SeveralBudgets
from compress_env.envs.wrappers.shaping import PotentialReward
from experiments.search.actors import synchronous_actors
from experiments.search.episodes import EpisodeLog
from tests.compress_env.envs.fakes import Sensitive, check_wrapped, data
from tests.fakes import BranchedNet, PlainNet, seeded

QUICK: dict[str, Any] = {"finetune_steps": 0, "device": "cpu", "scorer": Sensitive()}
BUDGETS = {"pruning": (0.3, 0.5, 0.8), "quantization": (0.3, 0.45, 0.8)}


def pruning(**options: Any) -> PruningEnv:
    given = {"flops_budget": 0.4, "method": "magnitude", "prior": "l1"}
    return PruningEnv(seeded(BranchedNet), data(), **(QUICK | given | options))


def bits(**options: Any) -> QuantizationEnv:
    given = {"size_budget": 0.6, "prior": "relative_error"}
    return QuantizationEnv(seeded(PlainNet), data(), **(QUICK | given | options))


STAGES: dict[str, Any] = {"pruning": pruning, "quantization": bits}


@pytest.fixture(params=STAGES)
def stage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def keyword(env: LayerwiseCompressionEnv) -> str:
    return "flops_budget" if isinstance(env, PruningEnv) else "size_budget"


def play(env: gym.Env[Any, Any], options: dict[str, Any], action: float = 0.0) -> list[Any]:
    """Take one action at every layer; what was observed, the executed values and the last info."""
    observation, info = env.reset(options=options)
    seen, ended = [observation], False
    while not ended:
        observation, _, ended, _, info = env.step(np.array([action], np.float32))
        seen.append(observation)
    env_decided = env.get_wrapper_attr("decided")
    return [np.stack(seen), [each.value for each in env_decided], info]


def test_an_episode_is_that_of_an_environment_with_the_budget(stage: str) -> None:
    env = SeveralBudgets(LayerContext(STAGES[stage]()), BUDGETS[stage])
    for budget, action in ((0.3, 0.0), (0.8, -0.4), (0.65, 0.6)):  # the last is none of them
        alone = LayerContext(STAGES[stage](**{keyword(env.stage): budget}))
        seen, values, info = play(env, {"budget": budget}, action)
        expected, expected_values, expected_info = play(alone, {}, action)
        np.testing.assert_array_equal(seen[:, :-1], expected)
        np.testing.assert_array_equal(seen[:, -1], np.float32(budget))
        assert values == expected_values
        assert info.pop("budget") == budget and info.pop("n_evaluations") > 0
        assert {k: v for k, v in expected_info.items() if k != "n_evaluations"} == info


def test_budgets_differ_in_what_they_leave(stage: str) -> None:
    env = SeveralBudgets(STAGES[stage](), BUDGETS[stage])
    costs = [play(env, {"budget": b})[2]["reward_terms"]["cost"] for b in BUDGETS[stage]]
    assert costs == sorted(costs) and costs[0] < costs[-1]
    full = env.stage.unpruned.cost_high
    assert all(cost <= b * full for cost, b in zip(costs, BUDGETS[stage], strict=True))


def test_each_budget_comes_once_before_any_comes_again(stage: str) -> None:
    env = SeveralBudgets(STAGES[stage](), BUDGETS[stage])
    drawn = [env.reset(seed=5 if i == 0 else None)[1]["budget"] for i in range(9)]
    for i in range(0, 9, 3):
        assert sorted(drawn[i : i + 3]) == list(BUDGETS[stage])
    assert drawn == [env.reset(seed=5 if i == 0 else None)[1]["budget"] for i in range(9)]
    others = {tuple(env.reset(seed=s if i == 0 else None)[1]["budget"] for i in range(3))
              for s in range(9)}  # fmt: skip
    assert len(others) > 1


def test_what_is_given_does_not_change_what_is_drawn(stage: str) -> None:
    env = SeveralBudgets(STAGES[stage](), BUDGETS[stage])
    first = env.reset(seed=1)[1]["budget"]
    assert env.reset(options={"budget": 0.65, "noise_seed": 3})[1]["noise_seed"] == 3
    rest = {env.reset()[1]["budget"] for _ in range(2)}
    assert rest == set(BUDGETS[stage]) - {first}


def test_passes_both_checks(stage: str) -> None:
    env = SeveralBudgets(PotentialReward(LayerContext(STAGES[stage]())), BUDGETS[stage])
    check_wrapped(env)
    assert env.observation_space.dtype == np.float32


def test_docstring_table_is_the_observation_space() -> None:
    (line,) = (x for x in (SeveralBudgets.__doc__ or "").splitlines() if "| last |" in x)
    _, name, low, high = [cell.strip() for cell in line.split("|")[1:5]]
    space = SeveralBudgets(pruning(prior="uniform"), (0.5,)).observation_space
    assert isinstance(space, gym.spaces.Box) and space.shape == (10,)
    assert name == "`budget`" and (space.low[-1], space.high[-1]) == (float(low), float(high))


def test_goes_on_in_a_copy_and_after_a_stop(stage: str) -> None:
    env = SeveralBudgets(LayerContext(STAGES[stage](transition_noise=True)), BUDGETS[stage])
    env.reset(seed=2)
    action = np.array([0.3], np.float32)
    seen = env.step(action)[0]
    copied, shallow = pickle.loads(pickle.dumps(env)), copy.deepcopy(env)
    vector = DummyVecEnv([lambda: env])
    (state,) = vector.env_method("episode_state")
    next_seen = env.step(action)[0]
    later = [env.reset()[1] for _ in range(4)]
    for other in (copied, shallow):
        np.testing.assert_array_equal(other.step(action)[0], next_seen)
        assert [other.reset()[1] for _ in range(4)] == later
        assert other.stage.prior == env.stage.prior
    (restored,) = vector.env_method("restore_episode", state)
    np.testing.assert_array_equal(restored, seen)
    for info in later:
        again = env.reset()[1]
        assert (again["budget"], again["noise_seed"]) == (info["budget"], info["noise_seed"])


def test_a_rule_is_applied_once_for_each_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()
    apply = PruningEnv.apply_rule

    def counted(self: PruningEnv, rule: str) -> Any:
        asked.append(rule)
        return apply(self, rule)

    monkeypatch.setattr(PruningEnv, "apply_rule", counted)
    env = SeveralBudgets(pruning(prior="l1"), BUDGETS["pruning"])
    assert asked == ["l1"] * 4  # its own budget's at first
    for _ in range(6):
        env.reset()
    copied = copy.deepcopy(env)
    copied.reset()
    assert asked == ["l1"] * 4
    copied.reset(options={"budget": 0.6})
    assert asked == ["l1"] * 5


def test_what_rules_take_counts_once_for_each_budget() -> None:
    alone = pruning(prior="sbpf")
    each, seconds = alone.prior_evaluations, alone.prior_seconds
    assert each > len(alone.walk) and seconds > 0.0
    env = SeveralBudgets(alone, (0.4, 0.5, 0.8))  # the first is its own
    assert alone.prior_evaluations == 3 * each and alone.prior_seconds > seconds
    for _ in range(4):
        env.reset()
    assert alone.prior_evaluations == 3 * each
    env.reset(options={"budget": 0.6})
    assert alone.prior_evaluations == 4 * each


@pytest.mark.parametrize("n_envs", [1, 2])
def test_copies_do_not_charge_again(n_envs: int) -> None:
    env = SeveralBudgets(pruning(prior="sbpf"), (0.5, 0.8))
    spent = (env.stage.prior_evaluations, env.stage.prior_seconds)
    for copied in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env), copy.copy(env)):
        assert (copied.stage.prior_evaluations, copied.stage.prior_seconds) == spent
    log = EpisodeLog(synchronous_actors(env, n_envs, 0), counts_prior=True)
    log.reset()
    while not log.episodes:
        log.step(np.zeros((n_envs, 1), np.float32))
    n_networks = len(env.stage.walk) * len({e.values for e in log.episodes})
    assert log.episodes[0].n_evaluations <= spent[0] + n_envs * n_networks
    assert log.episodes[0].n_evaluations > spent[0] and log.episodes[0].seconds > spent[1]


def test_of_several_budgets_the_first_changes() -> None:
    env = pruning(prior="uniform", params_budget=0.9)
    env.take_budget(0.7)
    full = env.plan.full("macs")
    assert env.budgets == {"macs": 0.7 * full, "params": 0.9 * env.plan.full("params")}
    assert copy.deepcopy(env).budgets == env.budgets


def test_an_episode_under_way_ends_with_another_budget() -> None:
    env = pruning()
    env.reset()
    env.step(np.zeros(1, np.float32))
    env.take_budget(0.6)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(1, np.float32))


def test_the_environment_keeps_its_budget_and_its_episode(stage: str) -> None:
    env, action = STAGES[stage](), np.array([0.3], np.float32)
    env.reset()
    env.step(action)
    twin = copy.deepcopy(env)
    budget, own = env.budget_fraction, dict(env._ezpickle_kwargs)
    for bad, error in (
        ((0.5, 1.5), ValueError),
        ((0.5, "x"), TypeError),
        ((0.5, 1e-3), ValueError),
    ):
        with pytest.raises(error):
            SeveralBudgets(env, bad)  # type: ignore[arg-type]
        assert list(env._allocations) == [budget]
    several = SeveralBudgets(env, BUDGETS[stage])
    assert several.budget == env.budget_fraction == budget and env._ezpickle_kwargs == own
    np.testing.assert_array_equal(env.step(action)[0], twin.step(action)[0])
    env.reset(), twin.reset()
    np.testing.assert_array_equal(several.step(action)[0][:-1], twin.step(action)[0])


def test_a_rule_that_fails_leaves_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: PruningEnv, rule: str) -> Any:
        raise FloatingPointError

    env = pruning(prior="l1")
    env.reset()
    monkeypatch.setattr(PruningEnv, "apply_rule", fail)
    with pytest.raises(FloatingPointError):
        env.take_budget(0.6)
    assert env.budget_fraction == 0.4 and env.budgets == pruning(prior="uniform").budgets
    env.step(np.zeros(1, np.float32))


def test_is_made_again_from_its_specification() -> None:
    made = gym.make("compress_env/QuantizeLeNet5Digits-v1", **(QUICK | {"reward_at": "episode"}))
    env = SeveralBudgets(PotentialReward(LayerContext(made), 0.5, gamma=0.9), [0.3, 0.5])
    assert env.spec is not None
    again = gym.make(env.spec)
    assert isinstance(again, SeveralBudgets) and again.budgets == (0.3, 0.5)
    assert isinstance(again.env, PotentialReward) and isinstance(again.env.env, LayerContext)
    assert (again.env.weight, again.env.gamma) == (0.5, 0.9)
    action = np.array([0.3], np.float32)
    for one in (env, again):
        one.reset(seed=3)
    np.testing.assert_array_equal(env.step(action)[0], again.step(action)[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is different from the unwrapped version")
        check_env(env)


@pytest.mark.parametrize("wrap", [LayerContext, PotentialReward])
def test_gymnasium_checks_what_is_made_by_name(wrap: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is different from the unwrapped version")
        check_env(wrap(gym.make("compress_env/QuantizeLeNet5Digits-v1", **QUICK)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"budgets": 0.3},
            ValueError,
            r"'budgets', did you mean 'budget'\? valid: noise_seed, bud",
        ),
        ({"budget": "abc"}, TypeError, "^budget must be a real number, got 'abc'$"),
        ({"budget": [0.3]}, TypeError, r"^budget must be a real number, got \[0.3\]$"),
        ({"budget": True}, TypeError, "^budget must be a real number, got True$"),
        ({"budget": float("nan")}, ValueError, "must be in .*, got nan$"),
    ],
    ids=str,
)
def test_bad_options_are_told_in_one_line(
    options: Any, error: type[Exception], message: str, stage: str
) -> None:
    env = SeveralBudgets(STAGES[stage](), BUDGETS[stage])
    env.reset(seed=0)
    with pytest.raises(error, match=message):
        env.reset(options=options)
    env.step(np.zeros(1, np.float32))  # nothing has happened


def test_budgets_are_floats(stage: str) -> None:
    env = SeveralBudgets(STAGES[stage](), np.array(BUDGETS[stage]))
    assert env.budgets == BUDGETS[stage]
    for given in (1, np.float32(0.5), np.int64(1)):
        budget = env.reset(options={"budget": given})[1]["budget"]
        assert type(budget) is float and budget == given
    for bad in (0.3, "0.3", None):
        with pytest.raises(TypeError, match="budgets must be a sequence of real numbers, got"):
            SeveralBudgets(env.stage, bad)  # type: ignore[arg-type]
    for wrong in ("abc", True, [0.3]):
        with pytest.raises(TypeError, match=f"{keyword(env.stage)} must be a real number, got"):
            STAGES[stage](**{keyword(env.stage): wrong})


def test_what_cannot_be_is_refused(stage: str) -> None:
    env = STAGES[stage]()
    with pytest.raises(ValueError, match="expected budgets that differ, at least one, got"):
        SeveralBudgets(env, ())
    with pytest.raises(ValueError, match="expected budgets that differ"):
        SeveralBudgets(env, (0.5, 0.5))
    with pytest.raises(ValueError, match=rf"{keyword(env)} must be in \[.*, 1\].*got 1.5"):
        SeveralBudgets(env, (0.5, 1.5))
    free = STAGES[stage](**{keyword(env): None, "prior": "uniform"})
    with pytest.raises(ValueError, match="expected an environment with a budget, got none"):
        SeveralBudgets(free, (0.5,))
    several = SeveralBudgets(env, BUDGETS[stage])
    with pytest.raises(ValueError, match=r"must be in \[.*, 1\].*got 0\.001"):
        several.reset(options={"budget": 0.001})
    with pytest.raises(TypeError, match="expected observations that are vectors"):
        SeveralBudgets(FrameStackObservation(env, 2), (0.5,))
    with pytest.raises(TypeError, match="expected a PruningEnv or a QuantizationEnv, got a Cart"):
        SeveralBudgets(gym.make("CartPole-v1"), (0.5,))
