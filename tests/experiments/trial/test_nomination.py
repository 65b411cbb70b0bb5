"""Which candidates are compared, how their runs are divided, and who is the nominee."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from compress_env.envs.options import DRAWN
from experiments.search.episodes import Episode
from experiments.trial.confirmation import Search, conclude
from experiments.trial.nomination import (
    Candidate,
    Round,
    budgets_of,
    choose_candidates,
    fresh_orders,
    nominate,
    schedule,
    searched,
    spent_by,
)
from experiments.trial.reruns import Rerun, Reruns


def episode(index: int, accuracy: float | None, **others: Any) -> Episode:
    made = Episode(
        index=index,
        layers=("a",),
        actions=(index / 10,),
        values=(float(index),),
        accuracy=accuracy,
        reward=0.0 if accuracy is None else accuracy - 1.0,
        cost=1.0,
        dense_macs=1,
        dense_params=1,
        sparse_macs=1,
        sparse_params=1,
        n_evaluations=index + 1,
        seconds=0.0,
    )
    return replace(made, **others)


def candidate(name: str) -> Candidate:
    return Candidate(name, (0.0,), (float(ord(name)),))


class TestBudgets:
    @pytest.mark.parametrize(
        ("evaluations", "budgets"),
        [(300, (30, 100, 300)), (100, (30, 100)), (200, (30, 100, 200)), (7, (7,))],
    )
    def test_are_those_below_and_the_last(self, evaluations: int, budgets: tuple[int, ...]) -> None:
        assert budgets_of(evaluations) == budgets

    def test_leave_a_fifth_for_nomination(self) -> None:
        assert [searched(budget) for budget in (30, 100, 300, 7, 1)] == [24, 80, 240, 6, 1]

    def test_end_with_the_episode_that_uses_up_the_search(self) -> None:
        # three evaluations an episode: 24 are reached with the eighth
        episodes = [episode(i, 0.5, n_evaluations=3 * i + 3) for i in range(20)]
        assert len(spent_by(episodes, 30)) == 8
        assert len(spent_by(episodes, 300)) == 20


class TestSchedule:
    @pytest.mark.parametrize(
        ("n_runs", "rounds"),
        [
            (0, []),
            (1, []),
            (2, [(2, 1)]),
            (6, [(4, 1), (2, 1)]),
            (20, [(8, 1), (4, 1), (2, 4)]),
            (60, [(16, 1), (8, 2), (4, 3), (2, 8)]),
        ],
    )
    def test_is_what_its_docstring_says(self, n_runs: int, rounds: list[tuple[int, int]]) -> None:
        assert schedule(n_runs, 1000) == [Round(*each) for each in rounds]

    @pytest.mark.parametrize("n_candidates", [1, 2, 3, 5, 7, 12])
    def test_never_has_more_runs_than_there_are(self, n_candidates: int) -> None:
        for n_runs in range(70):
            rounds = schedule(n_runs, n_candidates)
            spent = sum(each.n_candidates * each.n_orders for each in rounds)
            assert spent <= n_runs
            if rounds:
                assert n_runs - spent < 2 and rounds[-1].n_candidates == 2

    def test_has_nothing_to_choose_from_one(self) -> None:
        assert schedule(60, 1) == []


class TestCandidates:
    def test_are_the_best_by_validation_and_the_policy(self) -> None:
        episodes = [episode(i, accuracy) for i, accuracy in enumerate([0.2, 0.9, None, 0.5, 0.7])]
        policy = candidate("p")
        found = choose_candidates(episodes, policy, 3)
        assert [each.source for each in found] == ["episode 1", "episode 4", "p"]
        alone = choose_candidates(episodes, None, 3)
        assert [each.source for each in alone] == ["episode 1", "episode 4", "episode 3"]

    def test_of_equal_accuracies_go_by_reward_then_cost_then_index(self) -> None:
        episodes = [
            episode(0, 0.5),
            episode(1, 0.5, cost=0.5),
            episode(2, 0.5, reward=0.0),
            episode(3, 0.5, cost=0.5),
        ]
        found = choose_candidates(episodes, None, 4)
        assert [each.values for each in found] == [(2.0,), (1.0,), (3.0,), (0.0,)]

    def test_are_each_allocation_once(self) -> None:
        episodes = [episode(i, 0.5 + i / 10, values=(float(i % 2),)) for i in range(4)]
        policy = Candidate("policy", (0.5,), (1.0,))
        found = choose_candidates(episodes, policy, 4)
        assert [each.source for each in found] == ["episode 3", "episode 2"]

    def test_are_those_that_a_critic_values_most(self) -> None:
        episodes = [episode(i, accuracy) for i, accuracy in enumerate([0.9, 0.2, None, 0.5, 0.95])]
        found = choose_candidates(episodes, None, 3, values=[-0.5, -0.3, 0.0, -0.3])
        # of equal values the more accurate; the last, which has no value, after all others
        assert [each.source for each in found] == ["episode 3", "episode 1", "episode 0"]
        whole = choose_candidates(episodes, candidate("p"), 9, values=[-0.5, -0.3, 0.0, -0.3])
        assert [each.source for each in whole][3:] == ["episode 4", "p"]

    def test_need_an_episode_that_finished(self) -> None:
        with pytest.raises(RuntimeError, match="no episode finished: FloatingPointError"):
            choose_candidates([episode(0, None, error="FloatingPointError")], None, 4)


class TestNominee:
    def test_is_the_best_mean_over_fresh_runs(self) -> None:
        # d is lucky under the first order and then found out
        found = {
            ("a", 10): 0.1, ("b", 10): 0.2, ("c", 10): 0.6, ("d", 10): 0.8,
            ("c", 11): 0.7, ("d", 11): 0.4,
        }  # fmt: skip
        asked = []

        def run(each: Candidate, order: int) -> tuple[float, float]:
            asked.append((each.source, order))
            return found[each.source, order], 0.5

        candidates = [candidate(name) for name in "abcd"]
        nomination = nominate(candidates, schedule(6, 4), [10, 11], run)
        assert nomination.nominee == candidate("c")
        assert asked == [*((n, 10) for n in "abcd"), ("d", 11), ("c", 11)]
        assert [row["round"] for row in nomination.runs] == [0, 0, 0, 0, 1, 1]
        assert nomination.runs[0] == {
            "round": 0,
            "source": "a",
            "noise_seed": 10,
            "validation": 0.1,
            "actions": "0",
            "seconds": 0.5,
        }

    def test_is_the_first_of_equal_ones_and_where_there_are_no_runs(self) -> None:
        candidates = [candidate(name) for name in "ab"]
        assert nominate(candidates, [], [], lambda *_: (0.0, 0.0)).nominee == candidates[0]
        equal = nominate(candidates, schedule(2, 2), [1], lambda *_: (0.5, 0.0))
        assert equal.nominee == candidates[0]


def test_fresh_orders_of_a_trial_begin_alike_and_are_none_of_a_confirmation() -> None:
    assert fresh_orders(3, 20)[:5] == fresh_orders(3, 5) != fresh_orders(4, 5)
    assert len(set(fresh_orders(3, 20))) == 20
    assert all(0 <= order < DRAWN for order in fresh_orders(3, 20))


class AllAlike:
    """Stands for `Reruns`: any allocation is right about half of the images."""

    def run(self, candidate: Candidate, order: int, *, with_test: bool = False) -> Rerun:
        return Rerun(0.5, 0.5, 0.0, candidate.values)


class TestConclusion:
    def conclude(self, accuracies: list[float | None], n_before: int = 0) -> dict[str, Any]:
        episodes = [
            episode(n, accuracy, n_evaluations=n_before + n + 1)
            for n, accuracy in enumerate(accuracies)
        ]
        search = Search(episodes, {}, 100, seed=0, per_run=1)
        return conclude(search, cast(Reruns, AllAlike()), ["a"]).columns

    def test_leaves_out_a_budget_whose_episodes_have_all_failed(self) -> None:
        found = self.conclude([*[None] * 24, *[0.5] * 56])
        assert found["confirmed_100"] == 0.5 and found["n_fresh"] == 20
        assert "confirmed_30" not in found

    def test_leaves_out_a_budget_that_was_spent_before_the_first_episode(self) -> None:
        found = self.conclude([0.5] * 50, n_before=30)
        assert found["confirmed_100"] == 0.5 and "confirmed_30" not in found

    def test_needs_one_episode_that_has_not_failed(self) -> None:
        with pytest.raises(RuntimeError, match="no episode finished"):
            self.conclude([None] * 80)
