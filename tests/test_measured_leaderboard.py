"""The second leaderboard, and what README says of it, are as they were measured."""

from __future__ import annotations

import pandas as pd

from experiments.benchmark.confirmed_report import leaderboard_of
from experiments.benchmark.table import read_best_known, read_runs
from experiments.common.drawing.intervals import format_mean
from tests.pages import PAGES, README, ROOT

FOLDER = ROOT / "results" / "benchmark-v1"
BUDGETS = (30, 100, 300)
BLIND = {"cma_es": 5, "tpe": 5, "random": 5}
AROUND = ("cma_es", "random", "q_critic_ppo")
RULES = {"pruning": ("Prune", "kl_curve"), "bits": ("Quantize", "relative_error")}


def by_seed(trials: pd.DataFrame, stage: str, agent: str, budget: int) -> pd.Series:
    """Return the mean over the stage's deep tasks, percent, of each seed."""
    is_deep = ~trials["task"].str.contains("LeNet5") & trials["task"].str.contains(stage)
    mine = trials[is_deep & (trials["agent"] == agent)]
    return 100.0 * mine.groupby("seed")[f"confirmed_{budget}"].mean()


def test_second_leaderboard_is_as_it_was_measured() -> None:
    trials, known = read_runs([FOLDER]), read_best_known(FOLDER / "best_known.csv")
    assert leaderboard_of(trials, known)[1].split("\n\n", 1)[1].strip() in PAGES["leaderboard.md"]


def test_second_leaderboard_is_summed_up_as_it_was_measured() -> None:
    trials = read_runs([FOLDER])
    page = " ".join(PAGES["leaderboard.md"].split())
    told = {}
    for label, (stage, rule) in RULES.items():
        alone = by_seed(trials, stage, rule, 300)
        first = [
            label,
            format_mean(by_seed(trials, stage, "uniform", 300)),
            f"`{rule}` {format_mean(alone)}",
            format_mean(by_seed(trials, stage, "portfolio", 300)),
        ]
        for search, n_seeds in (BLIND | {f"{name}+{rule}": 3 for name in AROUND}).items():
            found = [by_seed(trials, stage, search, budget) for budget in BUDGETS]
            assert len(found[0]) == n_seeds
            cells = [*first, f"`{search}`", *map(format_mean, found)]
            row = f"| {' | '.join(cells)} |".replace("|  ", "| ")
            assert row in PAGES["leaderboard.md"], row
            first = [""] * len(first)
        for budget in (30, 300):
            ahead = by_seed(trials, stage, "cma_es", budget) - alone.iloc[0]
            told[label, budget] = format_mean(abs(ahead.mean()) / ahead.mean() * ahead, 1)
        for budget in (100, 300):
            around = by_seed(trials, stage, f"cma_es+{rule}", budget) - alone.iloc[0]
            told[f"around {label}", budget] = format_mean(around, 1)
    few, many = told["around pruning", 100], told["around pruning", 300]
    assert f"is ahead of it by {few} points after 100 evaluations" in page
    assert f"by {many} after 300, on MobileNet-v2" in page
    assert f"it gains {told['around bits', 300]} after 300" in page
    chosen = " ".join(PAGES["choosing.md"].split())
    assert f"it adds {few} points in 100 evaluations and {many} in 300" in chosen
    assert f"in 300 evaluations is {told['around bits', 300]} points" in chosen
    shown = f"adds {few} to it with 100 for pruning, {told['around bits', 100]} for bits"
    assert shown in README
    assert f"by {told['pruning', 30]} points for pruning and {told['bits', 30]} for bits" in page
    assert f"is ahead of `kl_curve` by {told['pruning', 300]} points" in page
    assert f"is behind `relative_error` by {told['bits', 300]} points" in page
    assert f"by {told['pruning', 30]} points of test accuracy for pruning and by" in README
    assert f"{told['bits', 30]} for bits; with 300 CMA-ES is ahead by" in README
    assert (
        f"{told['pruning', 300]} for pruning and behind by {told['bits', 300]} for bits" in README
    )


def test_rules_are_those_of_the_best_validation_accuracy() -> None:
    trials = read_runs([FOLDER])
    for _, (stage, rule) in RULES.items():
        is_deep = ~trials["task"].str.contains("LeNet5") & trials["task"].str.contains(stage)
        rules = trials[is_deep & (trials["n_evaluations"] == 1) & (trials["agent"] != "uniform")]
        assert rules.groupby("agent")["validation_accuracy"].mean().idxmax() == rule


def test_what_to_start_from_is_as_it_was_measured() -> None:
    trials, page = read_runs([FOLDER]), " ".join(PAGES["choosing.md"].split())
    behind = by_seed(trials, "Quantize", "relative_error", 300).iloc[0] - by_seed(
        trials, "Quantize", "cma_es", 300
    )
    assert f"CMA-ES is {format_mean(behind, 1)} points behind" in page
    seconds = trials.loc[trials["agent"] == "kl_curve", "seconds"]
    assert f"{seconds.min():.0f} to {seconds.max():.0f} s on the suite" in page
    tried = trials.loc[trials["agent"] == "portfolio", "n_evaluations"]
    assert f"({tried.min():.0f} to {tried.max():.0f} networks)" in page
    deep = trials[~trials["task"].str.contains("LeNet5")]
    by_agent = deep.groupby("agent")
    accuracy = {name: mine.groupby("task")["confirmed_30"].mean() for name, mine in by_agent}
    for rule in ("l1", "l2", "taylor", "fisher"):
        assert (accuracy["kl_curve"] - accuracy[rule]).max() > 0.18


def test_gains_around_a_rule_are_told_by_network_as_they_were_measured() -> None:
    trials, page = read_runs([FOLDER]), PAGES["choosing.md"]
    networks = {"MobileNet-v2": "MobileNetV2", "ResNet-20": "ResNet20"}
    for name in ("MobileNet-v2", "ResNet-20", "VGG8", "DenseNet"):
        cells = []
        for stage, rule in RULES.values():
            task = f"{stage}{networks.get(name, name)}Digits-v1"
            for budget in (100, 300):
                alone = by_seed(trials, task, rule, budget).iloc[0]
                gain = by_seed(trials, task, f"cma_es+{rule}", budget) - alone
                cells.append(format_mean(gain))
        assert f"| {name} | {' | '.join(cells)} |" in page
    told = " ".join(page.split())
    for stage, rule in RULES.values():
        alone = by_seed(trials, stage, rule, 30).iloc[0]
        for agent in BLIND:
            assert format_mean(alone - by_seed(trials, stage, agent, 30), 1) in told
    early = by_seed(trials, "Prune", "random+kl_curve", 30)
    behind = format_mean(early - by_seed(trials, "Prune", "q_critic_ppo+kl_curve", 30))
    assert f"{behind} points behind it at 30" in told
    assert f"for pruning by {behind} points" in " ".join(PAGES["leaderboard.md"].split())
    few = format_mean(
        by_seed(trials, "Prune", "cma_es+kl_curve", 100)
        - by_seed(trials, "Prune", "kl_curve", 100).iloc[0],
        1,
    )
    assert f"CMA-ES {few} points with 100 evaluations for pruning" in PAGES["results.md"]


def test_what_is_told_of_policies_and_single_tasks_is_as_it_was_measured() -> None:
    trials, page = read_runs([FOLDER]), " ".join(PAGES["leaderboard.md"].split())
    policies = trials[trials["agent"].str.startswith("q_critic_ppo+")]
    behind = 100.0 * (policies["confirmed_validation_300"] - policies["final_confirmed_validation"])
    assert f"it is {behind.mean():.1f} points of validation accuracy behind the nominee" in page
    assert f"on average and {behind.max():.1f} at most" in page
    ends = policies.assign(confirmed_300=policies["final_confirmed"])
    for (stage, rule), told in zip(RULES.values(), ("for pruning", "for bits"), strict=True):
        final = by_seed(ends, stage, f"q_critic_ppo+{rule}", 300)
        assert f"{format_mean(final)} % {told}" in page
    for task, rule, text in (
        ("PruneMobileNetV2Digits-v1", "kl_curve", "on MobileNet-v2 by {}."),
        ("QuantizeDenseNetDigits-v1", "relative_error", "on DenseNet it loses {}:"),
    ):
        here = trials[trials["task"] == f"compress_env/{task}"]
        mine, alone = (
            here.loc[here["agent"] == agent, "confirmed_300"] for agent in (f"cma_es+{rule}", rule)
        )
        gain = 100.0 * (mine - alone.iloc[0])
        assert text.format(format_mean(abs(gain.mean()) / gain.mean() * gain, 1)) in page
