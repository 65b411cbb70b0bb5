"""Baselines behind Stable-Baselines3's predict."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import Random, Uniform
from agents.baselines import place_in_walk
from tests.agents.fakes import TargetEnv

OBSERVATIONS = spaces.Box(0.0, 1.0, (9,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (1,), np.float32)


def layer(low: float, high: float) -> np.ndarray:
    observation = np.full(9, 0.5, np.float32)
    observation[6], observation[7] = low, high
    return observation


def test_random_covers_the_action_space_evenly() -> None:
    agent = Random(OBSERVATIONS, spaces.Box(0.0, 4.0, (2,), np.float32), seed=0)
    actions, state = agent.predict(np.zeros((2000, 9), np.float32))
    assert actions.shape == (2000, 2) and state is None
    assert actions.mean(axis=0) == pytest.approx([2.0, 2.0], abs=0.1)
    assert actions.std(axis=0) == pytest.approx([4 / 12**0.5] * 2, abs=0.1)


def test_random_repeats_with_its_seed_and_leaves_the_space_alone() -> None:
    space = spaces.Box(-1.0, 1.0, (1,), np.float32, seed=5)
    expected_draw = spaces.Box(-1.0, 1.0, (1,), np.float32, seed=5).sample()
    first = [Random(OBSERVATIONS, space, seed=3).predict(layer(0, 1))[0] for _ in range(2)]
    other, _ = Random(OBSERVATIONS, space, seed=4).predict(layer(0, 1))
    assert np.array_equal(first[0], first[1]) and not np.array_equal(first[0], other)
    assert np.array_equal(space.sample(), expected_draw)


def test_random_draws_about_the_middle_where_it_has_a_spread() -> None:
    agent = Random(OBSERVATIONS, spaces.Box(0.0, 4.0, (2,), np.float32), seed=0, spread=0.25)
    actions, _ = agent.predict(np.zeros((2000, 9), np.float32))
    assert actions.dtype == np.float32
    assert actions.mean(axis=0) == pytest.approx([2.0, 2.0], abs=0.05)
    assert actions.std(axis=0) == pytest.approx([0.5, 0.5], abs=0.05)
    wide, _ = Random(OBSERVATIONS, ACTIONS, seed=0, spread=5.0).predict(np.zeros((50, 9)))
    assert wide.min() == -1.0 and wide.max() == 1.0
    assert Random(OBSERVATIONS, ACTIONS, spread=0.0).predict(layer(0, 1))[0].tolist() == [0.0]


def test_random_rejects_a_spread_without_a_middle() -> None:
    with pytest.raises(ValueError, match=r"expected a Box, to draw about its middle, got Discrete"):
        Random(OBSERVATIONS, spaces.Discrete(3), spread=0.3)
    with pytest.raises(ValueError, match="spread must be at least 0"):
        Random(OBSERVATIONS, ACTIONS, spread=-1.0)


@pytest.mark.parametrize(
    ("action_space", "shape"),
    [(ACTIONS, (1,)), (spaces.Discrete(3), ())],
    ids=["box", "discrete"],
)
def test_random_keeps_the_shape_of_the_action_space(
    action_space: spaces.Space[object], shape: tuple[int, ...]
) -> None:
    agent = Random(OBSERVATIONS, action_space, seed=0)
    assert agent.predict(layer(0, 1))[0].shape == shape
    assert agent.predict(np.zeros((4, 9), np.float32))[0].shape == (4, *shape)


def test_random_rejects_an_observation_of_another_space() -> None:
    agent = Random(OBSERVATIONS, ACTIONS)
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        agent.predict(np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, -0.5),
        (0.0, 0.5, 0.0),
        (0.25, 0.75, -1.0),
        (0.5, 0.9, -1.0),
        (0.0, 0.1, 1.0),
        (0.4, 0.4, 0.0),
    ],
    ids=["whole", "half", "at low", "below low", "above high", "one point"],
)
def test_uniform_inverts_the_interval(low: float, high: float, expected: float) -> None:
    action, _ = Uniform(0.25).predict(layer(low, high))
    assert action.dtype == np.float32 and action.shape == (1,)
    assert action.item() == pytest.approx(expected, abs=1e-6)


def test_uniform_treats_each_row_of_a_batch_alone() -> None:
    agent = Uniform(0.25)
    rows = [layer(0.0, 1.0), layer(0.4, 0.4), layer(0.1, 0.9)]
    batched, _ = agent.predict(np.stack(rows))
    assert batched.shape == (3, 1)
    assert batched.tolist() == [agent.predict(row)[0].tolist() for row in rows]


def test_uniform_reads_the_entries_it_is_told_to() -> None:
    action, _ = Uniform(0.5, low_index=0, high_index=1).predict(np.array([0.5, 1.0]))
    assert action.item() == -1.0


def test_state_is_handed_back() -> None:
    state = (np.ones(2),)
    for agent in (Random(OBSERVATIONS, ACTIONS), Uniform(0.5)):
        assert agent.predict(layer(0, 1), state)[1] is state


def test_uniform_rejects_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"value must be in \[0, 1\], got 1.5"):
        Uniform(1.5)
    with pytest.raises(ValueError, match="indices must be at least 0"):
        Uniform(0.5, low_index=-3)
    with pytest.raises(ValueError, match="at least 8 entries"):
        Uniform(0.5).predict(np.zeros(7))


def test_baselines_run_under_evaluate_policy() -> None:
    env = DummyVecEnv([lambda: TargetEnv(n_steps=2, observation_dim=9)] * 2)
    random = Random(env.observation_space, env.action_space, seed=0)
    for agent in (random, Uniform(0.5)):
        returns, lengths = evaluate_policy(
            agent,
            env,
            n_eval_episodes=4,
            return_episode_rewards=True,
            warn=False,
        )
        assert lengths == [2] * 4 and np.isfinite(returns).all()


def test_dict_observations_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"Dict observations are not supported.*\['x'\]"):
        Uniform(0.5).predict({"x": np.zeros(9)})


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "1"])
def test_random_rejects_what_is_no_seed(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"^seed must be [^\n]*$"):
        Random(OBSERVATIONS, ACTIONS, seed=seed)


def test_random_takes_a_seed_of_numpy() -> None:
    seeds: list[Any] = [np.int64(3), 3]
    agents = [Random(OBSERVATIONS, ACTIONS, seed=seed) for seed in seeds]
    assert agents[0].predict(layer(0, 1))[0] == agents[1].predict(layer(0, 1))[0]


@pytest.mark.parametrize(
    ("low", "high"), [(0.9, 0.1), (np.nan, 1.0), (0.0, np.inf)], ids=["swapped", "nan", "infinite"]
)
def test_what_is_no_interval_is_rejected(low: float, high: float) -> None:
    """As under VecNormalize."""
    with pytest.raises(ValueError, match=r"^expected observations of intervals, not normalised"):
        Uniform(0.5).predict(np.stack([layer(0.0, 1.0), layer(low, high)]))


@given(n_decisions=st.integers(1, 200))
def test_every_place_of_a_walk_is_found(n_decisions: int) -> None:
    index = np.arange(n_decisions, dtype=np.float32) / np.float32(max(n_decisions - 1, 1))
    np.testing.assert_array_equal(place_in_walk(index, n_decisions), np.arange(n_decisions))


@pytest.mark.parametrize("index", [-0.25, 1.25, 0.3, np.nan, np.inf])
def test_places_of_other_walks_are_rejected(index: float) -> None:
    with pytest.raises(ValueError, match="expected the observations of a walk of 5 decisions"):
        place_in_walk(np.array([0.25, index]), 5)
