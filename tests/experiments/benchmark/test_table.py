"""Leaderboards: scores, intervals and verdicts of trials, and the best known accuracies."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from compress_env.suite import SUITE
from experiments.benchmark import table as benchmark_table
from experiments.benchmark.report import difference, draw_scores, format_leaderboard, verdicts
from experiments.benchmark.table import (
    BEST_KNOWN,
    Reference,
    make_leaderboard,
    normalize,
    read_best_known,
    read_runs,
    update_best_known,
)
from experiments.common.intervals import improvement_interval, iqm_interval
from experiments.trial.trials import read_trials


def rows(**accuracies: list[float]) -> pd.DataFrame:
    """Trials of agents on one task, one for each seed."""
    return pd.DataFrame(
        {
            "agent": agent,
            "task": "compress_env/A-v0",
            "seed": seed,
            "validation_accuracy": accuracy,
            "test_accuracy": accuracy - 0.01,
            "reward": accuracy - 1.0,
            "best_reward": accuracy - 1.0,
            "n_evaluations": 7.0,
            "seconds": 1.5,
            "limit": 7.0,
        }
        for agent, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    )


def test_scores_by_hand() -> None:
    reference = Reference(0.8, 0.9, "x")
    np.testing.assert_allclose(normalize([0.8, 0.85, 0.9, 0.95], reference), [0, 0.5, 1, 1.5])
    # Of eight numbers the lowest two and the highest two go: (2 + 3 + 4 + 5) / 4.
    score = iqm_interval([0, 1, 2, 3], [4, 5, 6, 100])
    assert score.value == 3.5
    assert 0.0 < score.low < 3.5 < score.high < 100.0
    assert iqm_interval([1, 1], [3, 3]) == (2.0, 2.0, 2.0)  # seeds are resampled, not tasks
    single = iqm_interval([1.0], [3.0])
    assert single.value == 2.0 and np.isnan(single.low)


def test_probability_of_improvement_by_hand() -> None:
    # First task: of 2 x 3 pairs 3 are better and 1 is a tie. Second task: all are better.
    found = improvement_interval([[2.0, 1.0], [9.0]], [[1.0, 0.0, 3.0], [8.0, 7.0]])
    assert found.value == pytest.approx((3.5 / 6 + 1.0) / 2) and np.isnan(found.low)
    # All of 2 x 2 pairs: four numbers rule out nothing but low shares.
    sure = improvement_interval([[2.0, 3.0]], [[1.0, 0.0]])
    assert sure.value == 1.0 == sure.high and 0.0 < sure.low < 0.2
    mixed = improvement_interval([[0.0, 1.0, 2.0]], [[0.0, 1.0, 2.0]])
    assert mixed.value == 0.5 and 0.0 <= mixed.low < 0.4 and 0.6 < mixed.high <= 1.0
    assert np.isnan(improvement_interval([], []).value)


def test_trials_that_tell_of_another_network_than_the_best_are_named() -> None:
    found = rows(ppo=[0.93, 0.95], random=[0.9, 0.91])
    known = {"compress_env/A-v0": Reference(0.8, 0.99, "somebody")}
    table = make_leaderboard(found, known)
    assert "most accurate" not in format_leaderboard(table, found, known)
    found["best_reward"] += [0.0, 0.01, 0.0, 0.0]
    text = format_leaderboard(table, found, known)
    assert "In 1 of 4 trials of A-v0 what is told of is the most accurate network, " in text


def test_leaderboard_tells_how_likely_an_agent_is_better() -> None:
    found = rows(ppo=[0.93, 0.95, 0.97], random=[0.9, 0.91, 0.94], cma_es=[0.98, 0.99, 0.96])
    known = {"compress_env/A-v0": Reference(0.8, 0.99, "somebody")}
    table = make_leaderboard(found, known).set_index("agent")
    assert table.loc["ppo", "over_random"] == pytest.approx(8 / 9)
    assert table.loc["ppo", "over_cma_es"] == pytest.approx(1 / 9)
    assert table.loc["cma_es", "over_random"] == 1.0
    assert float(table["over_random_low"]["cma_es"]) < 1.0
    assert table["over_cma_es"].isna()["cma_es"]
    text = format_leaderboard(table.reset_index(), found, known)
    assert "| agent | score | better than random search | better than CMA-ES | tasks |" in text
    scores, _ = text.split("## Does learning win?")
    (line,) = re.findall(r"^\| `ppo` \| .*$", scores, re.M)
    ends = r"\(0.\d\d to 0.\d\d\)"
    assert re.search(rf"\| 0.89 {ends} \| 0.11 {ends} \| 1 \| 3 \|", line)
    (line,) = re.findall(r"^\| `cma_es` \| .*$", scores, re.M)
    assert re.search(r"\| 1.00 \(0.\d\d to 1.00\) \| - \| 1 \| 3 \|", line)


def test_figure_of_scores_takes_intervals_of_no_width_and_no_scores() -> None:
    # The bootstrap adds these up in another order, which changes the last digit.
    values = np.random.default_rng(1).random((60, 5))[40]
    samples = [np.full(3, value) for value in values]
    interval = iqm_interval(*samples)
    assert interval.low <= interval.value <= interval.high
    columns = ["agent", "score", "low", "high"]
    for rows in ([["greedy", *interval]], [["uniform", np.nan, np.nan, np.nan]]):
        assert draw_scores(pd.DataFrame(rows, columns=columns).assign(trials=5)).axes


def test_scores_far_below_uniform_leave_the_axis_as_it_is() -> None:
    table = pd.DataFrame(
        {"agent": ["a", "b"], "score": [-1.4, -3.3], "low": np.nan, "high": np.nan, "trials": 1}
    )
    (axes,) = draw_scores(table).axes
    left, right = axes.get_xlim()
    assert -1.1 < left < -1.0 and 1.0 < right < 1.1


def test_leaderboard_ranks_and_says_what_exceeds_the_best_known() -> None:
    found = rows(good=[0.95, 0.95], bad=[0.85, 0.85])
    known = {"compress_env/A-v0": Reference(0.8, 0.9, "somebody")}
    table = make_leaderboard(found, known)
    assert table["agent"].tolist() == ["good", "bad"]
    np.testing.assert_allclose(table["score"], [1.5, 0.5])
    text = format_leaderboard(table, found, known)
    assert "`good`, seed 0, exceeds the best known of A-v0: 95.00 against 90.00 %" in text
    assert "Not in the table of the best known, without score: A-v0." in format_leaderboard(
        make_leaderboard(found, {}), found, {}
    )


def test_differences_and_verdicts_by_hand() -> None:
    found = rows(ppo=[0.93, 0.95, 0.97], random=[0.9, 0.91, 0.92], cma_es=[0.9, 0.99, 0.9])
    # Differences 3, 4 and 5: mean 4, deviation 1, t = 4.3027 with two degrees of freedom.
    half = 4.3027 / np.sqrt(3)
    assert difference(found, "ppo", "validation_accuracy", "random") == pytest.approx(
        (4.0, 4.0 - half, 4.0 + half), rel=1e-4
    )
    (line,) = verdicts(found)
    assert line.startswith(
        "- A-v0: no learner beats both; random search is beaten by `ppo`, CMA-ES is beaten by "
        "none. The best, `ppo`: +4.00 ± 2.48 over random search, +2.00 ± "
    )
    found = rows(ppo=[0.93, 0.95, 0.97], random=[0.9, 0.91, 0.92], cma_es=[0.91, 0.92, 0.93])
    assert verdicts(found)[0].startswith("- A-v0: `ppo` beats both: +4.00 ± 2.48 over random")
    assert verdicts(rows(ppo=[0.9, 0.9])) == [
        "- A-v0: no verdict without random search and CMA-ES."
    ]
    assert verdicts(rows(random=[0.9], cma_es=[0.9])) == ["- A-v0: no learner was run."]
    assert "no learner beats" in verdicts(rows(ppo=[0.9], random=[0.8], cma_es=[0.8]))[0]


def test_learners_around_a_rule_are_compared_with_searches_around_it() -> None:
    blind = {"random": [0.7, 0.7], "cma_es": [0.8, 0.8]}
    learner = {"ppo+l1": [0.95, 0.95]}
    assert verdicts(rows(**blind, **learner)) == [
        "- A-v0 around `l1`: no verdict without `random+l1` and `cma_es+l1`."
    ]
    around = {"random+l1": [0.94, 0.94], "cma_es+l1": [0.95, 0.95]}
    assert verdicts(rows(**blind, **learner, **around)) == [
        "- A-v0 around `l1`: no learner beats both; `random+l1` is beaten by `ppo+l1`, `cma_es+l1` "
        "is beaten by none. The best, `ppo+l1`: +1.00 ± 0.00 over `random+l1`, +0.00 ± 0.00 over "
        "`cma_es+l1`."
    ]
    other = {"ppo+l2": [0.9, 0.9], "random+l2": [0.8, 0.8]}
    first, second, third = verdicts(rows(**blind, **learner, **around, ppo=[0.81, 0.81], **other))
    assert first.startswith("- A-v0 around `l1`: no learner beats both")
    assert second == (
        "- A-v0: `ppo` beats both: +11.00 ± 0.00 over random search, +1.00 ± 0.00 over CMA-ES."
    )
    assert third == "- A-v0 around `l2`: no verdict without `cma_es+l2`."


def test_verdict_passes_over_an_agent_without_the_seeds_of_the_others() -> None:
    theirs = rows(random=[0.9, 0.9], cma_es=[0.9, 0.9], ppo=[0.91, 0.89])
    mine = rows(**{"my_module:MyAgent": [0.95]}).assign(seed=7)
    for found in (pd.concat([mine, theirs]), pd.concat([theirs, mine])):
        (line,) = verdicts(found)
        assert "The best, `ppo`: +0.00 ± " in line and "nan" not in line


def test_fewer_evaluations_than_allowed_are_shown() -> None:
    found = rows(ppo=[0.93, 0.95], random=[0.9, 0.91], cma_es=[0.9, 0.99])
    assert "evaluations" not in verdicts(found)[0]
    found.loc[found["agent"] == "cma_es", "n_evaluations"] = [7.0, 2.0]
    (line,) = verdicts(found)
    assert line.endswith(" over CMA-ES. CMA-ES has used 4 of 7 evaluations.")
    known = {"compress_env/A-v0": Reference(0.8, 0.99, "somebody")}
    text = format_leaderboard(make_leaderboard(found, known), found, known)
    (table,) = (part for part in text.split("\n\n") if "\n| `random` | 7 |" in part)
    assert "\n| `cma_es` | 4 |" in table and "\n| `ppo` | 7 |" in table


def test_best_known_grows_only() -> None:
    known = {"compress_env/A-v0": Reference(0.8, 0.9, "somebody")}
    assert update_best_known(known, rows(ppo=[0.89])) == known
    updated = update_best_known(known, rows(ppo=[0.89, 0.91]))
    assert updated["compress_env/A-v0"] == Reference(0.8, 0.91, "ppo, seed 1, 7 evaluations")
    fresh = update_best_known({}, rows(ppo=[0.9], uniform=[0.7]))
    assert fresh["compress_env/A-v0"] == Reference(0.7, 0.9, "ppo, seed 0, 7 evaluations")
    with pytest.raises(ValueError, match="expected a trial of uniform on compress_env/A-v0"):
        update_best_known({}, rows(ppo=[0.9]))


def test_trials_of_a_changed_task_or_without_a_limit_are_not_ranked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(__file__).parents[3] / "results" / "volatility-digits"
    registered = read_trials(folder).query("env_kwargs == '{}'")
    with pytest.raises(ValueError, match="PruneLeNet5Digits-v0 as it is registered, got it with"):
        read_runs([folder])
    monkeypatch.setattr(benchmark_table, "read_trials", lambda _: registered)
    with pytest.raises(ValueError, match="expected trials of a number of evaluations, got one wi"):
        read_runs([folder])


def test_shipped_table_is_readable() -> None:
    assert all(reference.found_by for reference in read_best_known(BEST_KNOWN).values())


def test_tasks_come_in_the_order_of_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["another/Task-v0", *(task.id for task in reversed(SUITE)), "another/Task-v0"]
    table = pd.DataFrame({"agent": "random", "task": names, "seed": range(14), "limit": 300.0})
    table["env_kwargs"], table["shaping"] = "{}", 0.0
    monkeypatch.setattr(benchmark_table, "read_trials", lambda _: table)
    found = read_runs([Path("anywhere")])
    assert found["task"].tolist() == [*(task.id for task in SUITE), *["another/Task-v0"] * 2]
    assert found["seed"].tolist() == [*range(12, 0, -1), 0, 13]
    table.loc[3, "shaping"] = 0.5
    with pytest.raises(ValueError, match=r"random must have the same shaping, got \[0.0, 0.5\]"):
        read_runs([Path("anywhere")])
