"""What a leaderboard says of informed agents, on made trials."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.benchmark.around_rules import best_of, format_around_rules
from experiments.benchmark.report import difference

TASK = "compress_env/PruneVGG8Digits-v1"


def made(agent: str, test: dict[int, list[float]], policy: float = np.nan) -> list[dict[str, Any]]:
    """Return trials of an agent, one a seed; its nominees are as good on validation images."""
    return [
        {"agent": agent, "task": TASK, "seed": seed, "final_confirmed_validation": policy}
        | {f"confirmed_{budget}": values[seed] for budget, values in test.items()}
        | {f"confirmed_validation_{budget}": values[seed] for budget, values in test.items()}
        for seed in range(len(next(iter(test.values()))))
    ]


@pytest.fixture
def trials() -> pd.DataFrame:
    rows = [
        *made("l1", {30: [0.85], 300: [0.85]}),
        *made("portfolio", {30: [0.84, 0.84], 300: [0.84, 0.84]}),
        *made("random", {30: [0.7, 0.7], 300: [0.8, 0.8]}),
        *made("cma_es", {30: [0.75, 0.75], 300: [0.83, 0.83]}),
        *made("cma_es+l1", {30: [0.85, 0.85], 300: [0.86, 0.86]}, policy=0.85),
        *made("random+l1", {30: [0.84, 0.84], 300: [0.84, 0.84]}, policy=0.5),
        *made("ppo+l1", {30: [0.86, 0.88], 300: [0.89, 0.87]}, policy=0.78),
    ]
    return pd.DataFrame(rows)


def test_differences_are_paired_by_seed(trials: pd.DataFrame) -> None:
    over = difference(trials, "ppo+l1", "confirmed_300", "cma_es+l1")
    assert over.value == pytest.approx(2.0) and over.side == "undecided"
    over_rule = difference(trials, "random+l1", "confirmed_300", "l1")  # which has a single seed
    assert over_rule.value == pytest.approx(-1.0) and over_rule.side == "below"
    last = difference(trials, "ppo+l1", "confirmed_300", "ppo+l1", "confirmed_30")
    assert last.value == pytest.approx(1.0)


def test_the_best_is_chosen_on_validation_images(trials: pd.DataFrame) -> None:
    chosen_by = trials["agent"].map({"random": 0.9}).fillna(trials["confirmed_validation_300"])
    trials["confirmed_validation_300"] = chosen_by
    assert best_of(trials, ["random", "cma_es"], 300) == "random"
    assert best_of(trials, ["random", "cma_es"], 30) == "cma_es"
    assert best_of(trials, ["tpe"], 30) is None


def test_section_says_what_was_reached(trials: pd.DataFrame) -> None:
    *_, table, _, aims = format_around_rules(trials)
    (line,) = (line for line in table.splitlines() if "`cma_es+l1`" in line)
    assert line.split(" | ")[2:] == [
        *("2", "85.00 ± 0.00", "86.00 ± 0.00"),
        *("+1.00 ± 0.00", "+3.00 ± 0.00", "-1.00 ± 0.00 |"),
    ]
    (other,) = (line for line in table.splitlines() if "`random+l1`" in line)
    assert other.endswith("| +4.00 ± 0.00 | - |")
    few, learners, below, policies = (part for part in aims.split("\n- "))
    assert "on 1 of 1 (0 of 0) tasks" in few and "Aim: at least 6 of 8; not reached:" in few
    assert "`ppo+l1` +4.00" in few and "over `cma_es`" in few
    assert "on 1 of 1 (0 of 0) tasks, by more than the intervals on 0 of 1 (0 of 0)" in learners
    assert "Aim: at least 2 of 8; not reached:" in learners
    assert "+2.00 ± 12.71 over `cma_es+l1` and +4.00 ± 12.71 over `portfolio`" in learners
    assert "1 of 3 (0 of 0). Aim: none on any task; not reached:" in below
    assert "`random+l1` -1.00" in below
    assert "`cma_es` on 1 of 1" in policies and "`ppo` on 0 of 1" in policies
    assert "-1.00): reached" in policies and "-10.00): not reached" in policies
    assert "`random`" not in policies


def test_aims_are_told_without_the_tasks_that_settings_were_chosen_on(
    trials: pd.DataFrame,
) -> None:
    far = trials["agent"] == "ppo+l1"
    trials.loc[far, "confirmed_300"] = 0.95
    trials.loc[trials["agent"] == "random+l1", "confirmed_300"] = 0.85
    names = (TASK, *(f"compress_env/Prune{name}Digits-v1" for name in ("ResNet20", "DenseNet")))
    found = pd.concat([trials.assign(task=name) for name in names])
    *_, intro, aims = format_around_rules(found)
    assert "were chosen on PruneVGG8Digits-v1, which have a star" in intro
    assert "\n  - PruneVGG8Digits-v1\\* `ppo+l1`" in aims and "ResNet20Digits-v1 `ppo+l1`" in aims
    assert (
        "after 300 evaluations on 3 of 3 (2 of 2) tasks, by more than the intervals on 3 of 3 "
        "(2 of 2). Aim: at least 2 of 8; reached:"
    ) in aims
    assert "evaluations: 0 of 9 (0 of 6). Aim: none on any task; reached." in aims
    found.loc[found["agent"].eq("ppo+l1") & found["seed"].eq(0), "confirmed_300"] = 0.87
    *_, aims = format_around_rules(found)
    assert "Aim: at least 2 of 8; reached by the means, not by more than the intervals:" in aims


def test_a_learner_is_compared_with_the_best_search_around_any_rule(trials: pd.DataFrame) -> None:
    better = pd.DataFrame(made("cma_es+l2", {30: [0.86, 0.86], 300: [0.9, 0.9]}, policy=0.9))
    *_, aims = format_around_rules(pd.concat([trials, better], ignore_index=True))
    (line,) = (line for line in aims.splitlines() if "over `portfolio`" in line)
    assert "`ppo+l1` -2.00 ± 12.71 over `cma_es+l2` and" in line
    assert "portfolio after 300 evaluations on 0 of 1 (0 of 0) tasks" in aims


def test_there_is_no_section_without_informed_agents(trials: pd.DataFrame) -> None:
    assert format_around_rules(trials[~trials["agent"].str.contains(r"\+")]) == []
