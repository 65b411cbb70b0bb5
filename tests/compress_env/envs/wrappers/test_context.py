"""What `LayerContext` adds to the observation, against its documentation and by hand."""

from __future__ import annotations

import pickle
import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TransformObservation
from stable_baselines3.common.vec_env import DummyVecEnv

from compress_env.allocation import channel_norms, relative_errors
from compress_env.allocation.scores import gates
from compress_env.envs.base import LayerState, LayerwiseCompressionEnv
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.envs.wrappers import context
from compress_env.envs.wrappers.context import LayerContext, curves_of, share_lost
from compress_env.quantization.scales import fit_scale
from compress_env.suite import SUITE
from compress_env.task.layers import layer_at
from tests.compress_env.envs.fakes import check_wrapped
from tests.fakes import BranchedNet, PlainNet, make_data, seeded

QUICK: dict[str, Any] = {"finetune_steps": 0, "device": "cpu"}
ACTIONS = [0.4, -0.7, 0.0, 0.9]


def pruning(**options: Any) -> PruningEnv:
    given = {"flops_budget": 0.5, "method": "magnitude", "prior": "l1"}
    return PruningEnv(seeded(BranchedNet), make_data(), **(QUICK | given | options))


def bits(**options: Any) -> QuantizationEnv:
    given = {"size_budget": 0.3, "scales": "best", "prior": "uniform"}
    return QuantizationEnv(seeded(PlainNet), make_data(), **(QUICK | given | options))


STAGES = {"pruning": pruning, "quantization": bits}


@pytest.fixture(params=STAGES)
def env(request: pytest.FixtureRequest) -> LayerContext:
    return LayerContext(STAGES[request.param]())


def walk(env: gym.Env[Any, Any], actions: list[float]) -> list[Any]:
    seen = [env.reset(seed=1)[0]]
    return seen + [env.step(np.array([a], np.float32))[0] for a in actions]


def known(env: LayerContext, observation: Any) -> Any:
    return env.context(*observation[len(LayerState._fields) :].tolist())


def test_docstring_tables_are_the_observation_space(env: LayerContext) -> None:
    lines = (LayerContext.__doc__ or "").splitlines()
    rows = [line.split("|")[1:-1] for line in lines if line.strip().startswith("|")]
    entries = [[cell.strip() for cell in row] for row in rows if row[0].strip().isdigit()]
    numbers = [int(row[0]) for row in entries]
    assert numbers == [*range(9, 20), *range(14, 18)]
    of_stage = entries[:5] + (
        entries[5:11] if env.context is context.PruningContext else entries[11:]
    )
    assert [row[1].strip("`") for row in of_stage] == list(env.context._fields)
    assert isinstance(env.observation_space, gym.spaces.Box)
    assert env.observation_space.shape == (9 + len(of_stage),)
    assert [float(row[2]) for row in of_stage] == env.observation_space.low[9:].tolist()
    assert [float(row[3]) for row in of_stage] == env.observation_space.high[9:].tolist()


def test_passes_both_checks(env: LayerContext) -> None:
    check_wrapped(env)
    assert env.observation_space.dtype == np.float32


def test_the_nine_stay_first_and_unchanged(env: LayerContext) -> None:
    plain = walk(env.unwrapped, ACTIONS)
    seen = walk(env, ACTIONS)
    for a, b in zip(plain, seen, strict=True):
        np.testing.assert_array_equal(b[:9], a)
        assert b.dtype == np.float32 and env.observation_space.contains(b)


def test_previous_decision_and_what_it_took_are_told() -> None:
    env = LayerContext(bits())
    stage = env.stage
    assert isinstance(stage, QuantizationEnv)
    seen = [known(env, each) for each in walk(env, [-1.0, 1.0])]
    assert (seen[0].slack, seen[0].last_value, seen[0].last_spent) == (1.0, 0.0, 0.0)
    executed = [int(each.value) for each in stage.decided]
    room = stage.budget_bytes - stage.most_bytes([])
    left = [(stage.budget_bytes - stage.most_bytes(executed[:n])) / room for n in range(3)]
    for n in (1, 2):
        assert seen[n].last_value == executed[n - 1] / 8
        assert seen[n].slack == pytest.approx(left[n])
        assert seen[n].last_spent == pytest.approx(left[n - 1] - left[n])
        assert seen[n].prior == pytest.approx(stage.prior_value / 8 if n == 2 else seen[n].prior)


def test_slack_is_the_least_of_several_budgets_and_all_without_one() -> None:
    both = LayerContext(pruning(flops_budget=0.5, params_budget=0.9))
    assert known(both, walk(both, [-1.0] * 2)[0]).slack == 1.0
    stage = both.stage
    assert isinstance(stage, PruningEnv)
    shares = []
    for unit, limit in stage.budgets.items():
        lowest = stage.plan.highest((), unit)
        shares.append((limit - stage.plan.highest(stage._executed, unit)) / (limit - lowest))
    assert len(set(shares)) == 2
    assert stage.budget_left(2) == pytest.approx(min(shares))
    free = LayerContext(pruning(flops_budget=None, prior="middle"))
    assert {known(free, each).slack for each in walk(free, ACTIONS)} == {1.0}


def test_without_room_nothing_is_left() -> None:
    stage = pruning(prior="middle")
    lowest = stage.plan.highest((), "macs") / stage.plan.full("macs")
    tight = pruning(prior="middle", flops_budget=lowest)
    assert tight.budget_left(0) == 0.0


def test_accuracy_lost_is_told_where_it_is_scored() -> None:
    scores = iter([0.9, 0.7, 0.8, 0.8])
    env = LayerContext(pruning(scorer=lambda _: next(scores)))
    lost = [known(env, each).last_loss for each in walk(env, ACTIONS[:3])]
    assert lost == pytest.approx([0.0, 0.2, 0.0, 0.0])
    late = LayerContext(pruning(reward_at="episode"))
    assert {known(late, each).last_loss for each in walk(late, ACTIONS[:3])} == {0.0}


def test_curves_of_pruning_are_shares_of_the_scores() -> None:
    env = pruning()
    norms = channel_norms(env.task.model, env.plan.decisions, "l1")
    curves = curves_of(env)
    assert curves.shape == (len(env.walk), 6)
    for row, scores in zip(curves, norms, strict=True):
        rising = np.sort(scores)
        half = rising[: len(rising) // 2].sum() / rising.sum()
        if len(rising) % 2 == 0:
            assert row[4] == pytest.approx(half)
        assert (np.diff(row[:3]) >= 0).all() and (np.diff(row[3:]) >= 0).all()
    assert not np.allclose(curves[:, :3], [0.25, 0.5, 0.75])


def test_curve_of_quantization_is_the_error_of_the_weights() -> None:
    env = bits()
    weights = [layer_at(env.task.model, layer.name).weight for layer in env.walk]
    expected = relative_errors(weights, [1, 2, 4, 8], fit_scale)
    np.testing.assert_allclose(np.square(curves_of(env)), expected, rtol=1e-5)


def test_share_lost_by_hand() -> None:
    assert share_lost(np.array([3.0, 1.0, 2.0, 4.0])) == pytest.approx([0.1, 0.3, 0.6])
    assert share_lost(np.array([1.0, 3.0]), [0.25, 1.0]) == pytest.approx([0.125, 1.0])
    assert share_lost(np.zeros(3)) == pytest.approx([0.25, 0.5, 0.75])


def test_without_gradients_all_channels_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("element 0 of tensors does not require grad")

    env = pruning()
    monkeypatch.setattr(gates, "gate_gradients", fail)
    curves = curves_of(env)
    np.testing.assert_allclose(curves[:, :3], [[0.25, 0.5, 0.75]] * len(env.walk), atol=1e-6)
    assert not np.allclose(curves[:, 3:], curves[:, :3])


def test_curves_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    env = pruning()
    first = LayerContext(env)
    monkeypatch.setattr(context, "_saliency_lost", None)
    np.testing.assert_array_equal(LayerContext(env).reset()[0], first.reset()[0])


def test_episode_goes_on_in_a_copy_and_after_a_stop(env: LayerContext) -> None:
    seen = walk(env, ACTIONS[:2])[-1]
    copy = pickle.loads(pickle.dumps(env))
    action = np.array([0.3], np.float32)
    np.testing.assert_array_equal(copy.step(action)[0], env.step(action)[0])
    vector = DummyVecEnv([lambda: env])
    (state,) = vector.env_method("episode_state")
    env.reset()
    state["actions"].pop()
    (restored,) = vector.env_method("restore_episode", state)
    np.testing.assert_array_equal(restored, seen)


def test_other_environments_and_observations_are_refused() -> None:
    with pytest.raises(TypeError, match="expected a PruningEnv or a QuantizationEnv, got a Cart"):
        LayerContext(gym.make("CartPole-v1"))
    wide = gym.spaces.Box(-1.0, 1.0, (9,))
    with pytest.raises(ValueError, match=r"expected the observations of the environment, \(9,\)"):
        LayerContext(TransformObservation(pruning(), lambda seen: seen, wide))


@pytest.mark.slow
@pytest.mark.parametrize("task", [task.id for task in SUITE if "MNIST" not in task.id])
def test_takes_at_most_five_seconds(task: str) -> None:
    made = gym.make(task).unwrapped
    assert isinstance(made, LayerwiseCompressionEnv)
    start = time.process_time()
    LayerContext(made)
    assert time.process_time() - start < 5.0
