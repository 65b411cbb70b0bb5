"""The table of informed agents in `docs/agents.md` is that of the stored trials."""

from __future__ import annotations

import pandas as pd

from experiments.budgets.report import format_budgets, read_budgets
from experiments.common.drawing.intervals import format_mean
from experiments.search.hyperparameters import INFORMED
from experiments.search.names import short_name
from experiments.sweep.folder import SweepFolder
from tests.pages import PAGES, ROOT

COLUMNS = ("confirmed_30", "confirmed_100", "by_critic_100", "final_confirmed")
PATH = ROOT / "results" / "informed" / "trials.csv"


def informed_rows(trials: pd.DataFrame) -> list[str]:
    """Return a row for each variant on each task: means over seeds, in percent."""
    rows = []
    for (task, variant), mine in trials.groupby(["task", "variant"], sort=False):
        gap = mine["confirmed_validation_100"] - mine["final_confirmed_validation"]
        numbers = [mine[name] for name in COLUMNS] + [gap]
        cells = ["-" if each.isna().any() else format_mean(100.0 * each) for each in numbers]
        rows.append(f"| {short_name(str(task))} | {variant} | {len(mine)} | {' | '.join(cells)} |")
    for task, mine in trials.groupby("task", sort=False):
        alone = format_mean([100.0 * mine["rule_confirmed"].iloc[0]])
        rows.append(f"| {short_name(str(task))} | the rule alone | | | {alone} | | | |")
    return rows


def test_measurements_of_informed_agents_are_those_of_the_stored_trials() -> None:
    trials = pd.read_csv(PATH)
    rows = informed_rows(trials)
    assert len(rows) > 4
    for row in rows:
        assert row in PAGES["agents.md"], row
    numbers = trials.columns[trials.columns.get_loc("confirmed_30") :]
    assert not trials["command"].duplicated().any()
    assert not trials.duplicated(["task", *numbers]).any()  # no trial is another's
    alone = trials.groupby("task")["rule_confirmed"].nunique()
    assert (alone == 1).all()  # the rule has no seed


def test_what_is_told_of_wide_exploration_is_as_it_was_measured() -> None:
    trials = pd.read_csv(PATH)
    mine = trials[trials["task"] == "compress_env/PruneVGG8Digits-v1"]
    told = PAGES["agents.md"].replace("\n", " ")
    for variant, text in (("std 0.32", "right on {} % of"), ("std 0.1", "they are at {} %,")):
        mean = mine.loc[mine["variant"] == variant, "mean_validation"].mean()
        assert text.format(round(100.0 * mean)) in told
    rule = round(100.0 * mine["rule_confirmed_validation"].iloc[0])
    assert f"the rule alone on {rule} %" in told.replace("  ", " ")


def test_policies_after_300_evaluations_are_told_as_they_were_measured() -> None:
    rows = pd.read_csv(PATH.with_name("policies.csv"))
    columns = ["final_validation", "late_validation", "best_validation"]
    assert not rows["command"].duplicated().any() and not rows.duplicated(["task", *columns]).any()
    for (task, _), mine in rows.groupby(["task", "variant"]):
        cells = [", ".join(f"{100 * each:.1f}" for each in mine[name]) for name in columns]
        assert f" | {' | '.join(cells)} |" in PAGES["agents.md"], task
    slow = rows[rows["variant"] == "slower actor"].groupby("task")["seed"].apply(list)
    assert slow.tolist() == [[100, 101, 102]] * 2
    assert INFORMED["q_critic_ppo"]["actor_learning_rate"] == 3e-4


def test_search_for_their_settings_is_as_it_was_measured() -> None:
    told = (ROOT / "results" / "tune-informed" / "tune.md").read_text(encoding="utf-8")
    rows = [line for line in told.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 3
    for row in rows:
        assert row in PAGES["agents.md"], row


def test_one_policy_for_several_budgets_is_as_it_was_measured() -> None:
    rows = read_budgets(SweepFolder(ROOT / "results" / "budgets"))
    assert rows.groupby(["kind", "budget"])["seed"].nunique().tolist() == [3] * 8 + [1] * 4
    assert format_budgets(rows).split("\n\n")[1].strip() in PAGES["agents.md"]
