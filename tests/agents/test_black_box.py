"""Black-box searches over whole episodes, on an environment whose best actions are known."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import pytest
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from agents import CMAES, TPE, EpisodeSearch
from agents.common.optimizers import CovarianceAdaptation, ParzenEstimator
from tests.agents.fakes import TargetEnv

SEARCHES = [CMAES, TPE]
N_STEPS = 5
BEST = np.array([0.5, -0.5, 0.5, -0.5, 0.5])


def search(build: Any, n_episodes: int = 60, seed: int = 0, **settings: Any) -> Any:
    made = build("MlpPolicy", TargetEnv(N_STEPS), n_decisions=N_STEPS, seed=seed, **settings)
    return made.learn(n_episodes * N_STEPS)


def best_of_random(n_episodes: int, seed: int) -> float:
    points = np.random.default_rng(seed).uniform(-1, 1, (n_episodes, N_STEPS))
    return float((1.0 - ((points - BEST) ** 2).mean(axis=1)).max())


class Count(BaseCallback):
    """Counts steps and stops after some."""

    def __init__(self, n_most: int) -> None:
        super().__init__()
        self.n_most = n_most

    def _on_step(self) -> bool:
        return self.n_calls < self.n_most


@pytest.mark.parametrize("build", SEARCHES)
def test_finds_more_than_random_search_with_as_many_episodes(build: Any) -> None:
    found = [search(build, 150 if build is CMAES else 60, seed).best_return for seed in range(2)]
    tried = [best_of_random(150, seed) for seed in range(5)]
    assert min(found) > np.mean(tried)


@pytest.mark.parametrize("build", SEARCHES)
def test_seed_decides_and_global_generators_do_not(build: Any) -> None:
    before = np.random.get_state(legacy=True)[1].copy()  # type: ignore[index]  # noqa: NPY002
    first = search(build, 20).search_state()["history"]
    np.testing.assert_array_equal(np.random.get_state(legacy=True)[1], before)  # type: ignore[index]  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    assert search(build, 20).search_state()["history"] == first
    assert search(build, 20, seed=1).search_state()["history"] != first


@pytest.mark.parametrize("start", [0.25, [0.25] * N_STEPS], ids=["number", "sequence"])
@pytest.mark.parametrize("build", SEARCHES)
def test_starts_where_it_is_told(build: Any, start: Any) -> None:
    found = search(build, 1, start=start)
    assert found.best_actions.tolist() == [[0.25]] * N_STEPS


def test_first_sequences_of_parzen_estimator_are_drawn_around_the_start() -> None:
    optimizer = ParzenEstimator(50, 0, 6, np.array(0.2), 0.05)
    points = np.array([optimizer.ask() for _ in range(6)])
    assert points[0].tolist() == [0.2] * 50
    assert abs(points[1:].mean() - 0.2) < 0.02 and 0.04 < points[1:].std() < 0.06
    assert np.ptp(optimizer.ask()) > 0.5  # the next is not


@pytest.mark.parametrize("build", SEARCHES)
def test_replays_the_best_sequence(build: Any) -> None:
    made = search(build, 20)
    assert made.best_actions.shape == (N_STEPS, 1)
    returns, _ = evaluate_policy(
        made, TargetEnv(N_STEPS), n_eval_episodes=2, return_episode_rewards=True, warn=False
    )
    assert returns == pytest.approx([made.best_return] * 2)
    squared = (made.best_actions[:, 0] - BEST) ** 2
    assert made.best_return == pytest.approx(1.0 - squared.mean(), abs=1e-6)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("build", SEARCHES)
def test_goes_on_exactly_from_a_state(build: Any, n_envs: int) -> None:
    def make() -> EpisodeSearch:
        env = DummyVecEnv([lambda: TargetEnv(N_STEPS)] * n_envs)
        made: EpisodeSearch = build("MlpPolicy", env, n_decisions=N_STEPS, seed=3)
        return made

    whole = make().learn(30 * N_STEPS)
    stopped = make().learn(12 * N_STEPS)
    going_on = make()
    going_on.restore_search(stopped.search_state())
    going_on.num_timesteps = stopped.num_timesteps
    assert going_on.env is not None
    going_on._last_obs = going_on.env.reset()  # type: ignore[assignment]
    going_on.learn(18 * N_STEPS, reset_num_timesteps=False)
    assert going_on.search_state() == whole.search_state()
    np.testing.assert_array_equal(going_on.best_actions, whole.best_actions)


@pytest.mark.parametrize("build", SEARCHES)
def test_saved_search_replays_and_goes_on(build: Any, tmp_path: Path) -> None:
    made = search(build, 8)
    made.save(tmp_path / "search")
    again = build.load(tmp_path / "search", env=TargetEnv(N_STEPS))
    np.testing.assert_array_equal(again.best_actions, made.best_actions)
    again.learn(8 * N_STEPS)
    assert again.best_return >= made.best_return
    assert len(again.search_state()["history"]) > len(made.search_state()["history"])


@pytest.mark.parametrize("build", SEARCHES)
def test_callback_stops_it(build: Any) -> None:
    made = build("MlpPolicy", TargetEnv(N_STEPS), n_decisions=N_STEPS, seed=0)
    made.learn(1000, callback=Count(7))
    assert made.num_timesteps == 7
    assert [value for _, value in made.search_state()["history"] if value is not None] != []


class FailingEnv(TargetEnv):
    """Ends with -2 when the first action is above 0."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        if len(self.errors) == 1 and action[0] > 0:
            return observation, -2.0, True, False, info
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize("build", SEARCHES)
def test_failed_episodes_count_and_are_avoided(build: Any) -> None:
    env = DummyVecEnv([lambda: FailingEnv(N_STEPS)] * 2)
    made = build("MlpPolicy", env, n_decisions=N_STEPS, seed=0).learn(60 * N_STEPS)
    values = [value for _, value in made.search_state()["history"] if value is not None]
    n_late = sum(value == -2.0 for value in values[-20:])
    assert 0 < n_late + sum(value == -2.0 for value in values[:20])
    assert n_late < sum(value == -2.0 for value in values[:20])
    assert made.best_actions[0, 0] <= 0.0


def test_actions_are_scaled_to_their_box() -> None:
    env = TargetEnv(2, low=(0.0, -3.0), high=(1.0, 5.0))
    made = CMAES("MlpPolicy", env, n_decisions=2, seed=0).learn(200)
    assert made.best_actions is not None and made.best_actions.shape == (2, 2)
    np.testing.assert_allclose(made.best_actions, [[0.75, 3.0], [0.25, -1.0]], atol=0.35)
    assert all(env.action_space.contains(action) for action in env.executed)


@pytest.mark.parametrize("build", [CovarianceAdaptation, ParzenEstimator])
def test_optimizers_stay_in_bounds_where_the_optimum_is_outside(build: Any) -> None:
    optimizer = build(3, 0, *((0.5, None) if build is CovarianceAdaptation else (5,)))
    points = []
    for number in range(150):
        points.append(optimizer.ask())
        optimizer.tell(number, float(points[-1].sum()))
    assert np.abs(points).max() <= 1.0
    assert np.mean(points[-10:]) > 0.6


def plateaus(point: NDArray[np.float64]) -> float:
    """Few values, each of a wide range of points; the best in a corner, far from the middle."""
    levels = np.round(2.0 * point)
    return float(levels.sum() + 10.0 * (levels == 2.0).all() - 5.0 * (levels == 1.0).any())


def test_a_search_that_has_converged_is_followed_by_a_wider_one() -> None:
    optimizer = CovarianceAdaptation(3, 0, 0.5, None)
    first = optimizer._strategy.popsize
    sizes: dict[int, int] = {}
    for number in range(600):
        optimizer.tell(number, plateaus(optimizer.ask()))
        sizes.setdefault(optimizer.n_restarts, optimizer._strategy.popsize)
    assert optimizer.n_restarts >= 2
    assert list(sizes.values()) == [first * 2**n for n in sizes]


def test_a_search_around_a_point_stays_around_it_when_it_begins_anew() -> None:
    start = np.array([0.5, -0.5, 0.0])
    optimizer = CovarianceAdaptation(3, 0, 0.1, None, start)
    distances: dict[int, list[float]] = {}
    for number in range(600):
        point = optimizer.ask()
        distances.setdefault(optimizer.n_restarts, []).append(float(abs(point - start).max()))
        optimizer.tell(number, 0.0)  # one as good as the other: it converges where it is
    assert optimizer.n_restarts >= 2
    assert all(np.median(mine) < 0.5 for mine in distances.values())


def test_what_an_ended_search_has_asked_for_is_not_told_to_the_next() -> None:
    one, other = (CovarianceAdaptation(3, 0, 0.5, None) for _ in range(2))
    late = []
    for optimizer in (one, other):
        number = 0
        while optimizer.n_restarts == 0:
            point = optimizer.ask()
            if number % 7 == 3:  # still being played, as in another environment
                late.append(number)
            else:
                optimizer.tell(number, plateaus(point))
            number += 1
    for number in set(late):
        one.tell(number, 100.0)
    for _ in range(3 * one._strategy.popsize):
        points = [optimizer.ask() for optimizer in (one, other)]
        np.testing.assert_array_equal(points[0], points[1])
        for optimizer in (one, other):
            optimizer.tell(number, plateaus(points[0]))
        number += 1


@pytest.mark.parametrize("population_size", [3, 5])
def test_small_generations_are_searched_by(population_size: int) -> None:
    made = search(CMAES, 40, population_size=population_size)
    assert len(made.search_state()["history"]) >= 80


def test_optuna_keeps_its_verbosity_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.enable_propagation()
    with caplog.at_level(logging.DEBUG, "optuna"):
        ParzenEstimator(2, 0, 5)
    optuna.logging.disable_propagation()
    assert optuna.logging.get_verbosity() == before
    assert caplog.records == []


class WalkEnv(TargetEnv):
    """Tells its walk, and the place in it as `LayerState` does."""

    def __init__(self, n_steps: int = N_STEPS) -> None:
        super().__init__(n_steps)
        self.walk = list(range(n_steps))

    def _get_obs(self) -> NDArray[np.float32]:
        observation = super()._get_obs()
        observation[0] = min(len(self.errors) / (self.n_steps - 1), 1.0)
        return observation


class TestPlaces:
    def test_a_loaded_search_still_knows_that_observations_tell_them(self, tmp_path: Path) -> None:
        made = CMAES("MlpPolicy", WalkEnv(), seed=0).learn(6 * N_STEPS)
        made.save(tmp_path / "search")
        observations = np.zeros((N_STEPS, 2), np.float32)
        observations[:, 0] = np.arange(N_STEPS) / (N_STEPS - 1)
        for search in (made, CMAES.load(tmp_path / "search")):
            actions, _ = search.predict(observations)
            np.testing.assert_array_equal(actions, made.best_actions)
            with pytest.raises(ValueError, match="of a walk of 5 decisions, not normalised"):
                search.predict(observations * 0.7)

    def test_normalised_observations_do_not_tell_them(self) -> None:
        env = VecNormalize(DummyVecEnv([WalkEnv]))
        made = CMAES("MlpPolicy", env, seed=0).learn(6 * N_STEPS)
        observation: Any = env.reset()
        state, actions = None, []
        for _ in range(N_STEPS):
            action, state = made.predict(observation, state)
            observation = env.step(action)[0]
            actions.append(action[0])
        assert made.best_actions is not None
        np.testing.assert_array_equal(actions, made.best_actions)

    def test_walks_of_another_length_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"expected walks of n_decisions=4, got \[5\]"):
            CMAES("MlpPolicy", WalkEnv(), n_decisions=4)
        made = CMAES("MlpPolicy", WalkEnv(), seed=0)
        with pytest.raises(ValueError, match=r"expected walks of n_decisions=5, got \[3\]"):
            made.set_env(WalkEnv(3))
        both = DummyVecEnv([WalkEnv, lambda: WalkEnv(3)])
        with pytest.raises(ValueError, match=r"expected walks of n_decisions=3, got \[3, 5\]"):
            TPE("MlpPolicy", both)

    def test_states_and_starts_are_one_for_each_observation(self) -> None:
        made = search(CMAES, 4)
        batch = np.zeros((2, 2), np.float32)
        _, state = made.predict(batch, (np.array([3, 1]),), np.array([True, False]))
        assert state[0].tolist() == [1, 2]
        with pytest.raises(ValueError, match=r"expected state of shape \(2,\), got \(1,\)"):
            made.predict(batch, (np.array([3]),))
        with pytest.raises(ValueError, match=r"expected episode_start of shape \(2,\), got \(3,\)"):
            made.predict(batch, None, np.zeros(3, bool))
        with pytest.raises(ValueError, match="Unexpected observation shape"):
            made.predict(np.zeros(3, np.float32))


def test_the_best_is_so_by_rewards_as_they_are() -> None:
    """Those of VecNormalize depend on the episodes before."""
    env = VecNormalize(DummyVecEnv([lambda: TargetEnv(N_STEPS)]))
    found = [
        search.best_return
        for search in (
            CMAES("MlpPolicy", each, n_decisions=N_STEPS, seed=0).learn(20 * N_STEPS)
            for each in (env, TargetEnv(N_STEPS))
        )
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_a_copied_optimizer_draws_on_its_own() -> None:
    """Of two copies each gives the points that the other gives."""
    one = CovarianceAdaptation(3, 0, 0.5, None)
    two, three = copy.deepcopy(one), pickle.loads(pickle.dumps(one))
    points = [[optimizer.ask().tolist() for _ in range(4)] for optimizer in (one, two, three)]
    assert points[0] == points[1] == points[2]


class TestRefusals:
    def test_unknown_length(self) -> None:
        with pytest.raises(ValueError, match="expected n_decisions, as the environment has no w"):
            CMAES("MlpPolicy", TargetEnv(), seed=0)

    def test_discrete_actions(self) -> None:
        with pytest.raises(ValueError, match=r"expected a Box of actions, got Discrete\(2\)"):
            TPE("MlpPolicy", gym.make("CartPole-v1"), n_decisions=3)

    def test_longer_episodes(self) -> None:
        with pytest.raises(ValueError, match="at most n_decisions=2 steps"):
            CMAES("MlpPolicy", TargetEnv(3), n_decisions=2, seed=0).learn(9)

    def test_nothing_found_yet(self) -> None:
        made = TPE("MlpPolicy", TargetEnv(2), n_decisions=2)
        with pytest.raises(RuntimeError, match="call learn first"):
            made.predict(np.zeros(2))

    @pytest.mark.parametrize(
        ("build", "settings", "message"),
        [
            (CMAES, {"sigma0": 0.0}, "sigma0 must be above 0 and finite, got 0.0"),
            (CMAES, {"population_size": 2}, "population_size must be at least 3, got 2"),
            (CMAES, {"n_decisions": 1}, "at least 2 dimensions, got 1"),
            (CMAES, {"start": 2.0}, r"expected start to be 2 actions in \[-1, 1\], got 2.0"),
            (TPE, {"start": [0.0] * 3}, "expected start to be 2 actions"),
            (TPE, {"spread": -0.1}, "spread must be at least 0"),
            (TPE, {"n_startup_episodes": 0}, "n_startup_episodes must be at least 1, got 0"),
        ],
        ids=[
            "sigma0",
            "population_size",
            "one dimension",
            "start",
            "length",
            "spread",
            "n_startup",
        ],
    )
    def test_settings(self, build: Any, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build("MlpPolicy", TargetEnv(2), **({"n_decisions": 2} | settings))

    def test_missing_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "optuna", None)
        with pytest.raises(ImportError, match="extra benchmark"):
            TPE("MlpPolicy", TargetEnv(2), n_decisions=2)
