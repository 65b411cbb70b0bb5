"""The page on volatility says what its searches have measured."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from experiments.common.drawing.intervals import format_interval
from experiments.common.intervals import mean_interval, paired_interval
from experiments.search.entrants import IMPROVEMENTS
from experiments.trial.trials import read_trials
from experiments.volatility import report as volatility_report
from experiments.volatility.volatility import OF_LENET5, SEARCHES, measure_trials
from tests.pages import PAGES, README, ROOT

LABELS = [SEARCHES[name].label for name in OF_LENET5]


@cache
def measured_volatility(folder: Path) -> tuple[pd.DataFrame, volatility_report.Curves]:
    """Measure the searches of a folder again from the rewards in it."""
    rows = read_trials(folder)
    labels = {cell: Path(cell).name.split("-")[0].replace("_", ", ", 1) for cell in rows["cell"]}
    assert set(labels.values()) == set(LABELS)
    return measure_trials(folder, labels)


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("volatility-digits", "digits"),
        ("volatility-mnist", "mnist"),
        ("volatility-slow-actor", "digits"),
        ("volatility-one-step", "digits"),
    ],
)
def test_volatility_is_reported_as_it_was_measured(name: str, dataset: str) -> None:
    folder = ROOT / "results" / name
    report = (folder / "volatility.md").read_text(encoding="utf-8")
    blocks = report.split("\n\n")
    verdict = blocks[blocks.index("## Verdict") + 1]
    tables = [block for block in blocks if block.startswith("|")]
    assert verdict.startswith("- The reward of the PPO family") and len(tables) == len(LABELS)
    assert all(block in PAGES["volatility.md"] for block in (verdict, *tables))
    table, curves = measured_volatility(folder)
    agents = list(dict.fromkeys(read_trials(folder)["agent"]))
    summary = volatility_report.summarize(table, curves, agents)
    text = volatility_report.format_report(table, curves, summary, f"LeNet-5 on {dataset}")
    assert text == report


def test_volatility_is_summed_up_as_it_was_measured() -> None:
    steadier: dict[str, list[tuple[str, str, str]]] = {}
    raw: list[str] = []
    for name in ("volatility-digits", "volatility-mnist"):
        table, curves = measured_volatility(ROOT / "results" / name)
        family = [a for a in volatility_report.PPO_FAMILY if (LABELS[0], a) in curves]
        for search, agent in product(LABELS, family):
            found = volatility_report.judge_dispersions(table, curves, search, agent, "ddpg")
            for measure, apart in found.items():
                steadier.setdefault(agent, []).append((search, measure, apart.side))
        for search, reward in product(LABELS, ("best_reward", "final_reward")):
            by_agent = {
                agent: rows.sort_values("seed")[reward]
                for agent, rows in table[table["search"] == search].groupby("agent")
            }
            raw.append(paired_interval(by_agent["q_critic_ppo_q"], by_agent["ppo"]).side)
    page = PAGES["volatility.md"].replace("\n  ", " ")

    steadier = {
        agent: [row for row in found if row[2] != "not counted"]
        for agent, found in steadier.items()
    }
    own = steadier["ppo"]
    lower, higher = ([m for _, m, outcome in own if outcome == o] for o in ("below", "above"))
    assert (len(own), len(lower), len(higher)) == (15, 13, 0)
    assert [lower.count(m) for m in ("drawdown", "within runs", "across seeds")] == [6, 5, 2]
    assert "13 of 15 comparisons on two data sets say so, none the opposite" in page
    assert "in all six searches, dispersion within runs in five, dispersion from seed to" in page
    for page_of_results in (README, PAGES["results.md"]):
        assert "PPO's is, in 13 of 15 comparisons, the opposite in none" in page_of_results

    both = steadier["q_critic_ppo"] + steadier["q_critic_ppo_q"]
    budget = [outcome for search, _, outcome in both if search == "pruning, budget"]
    elsewhere = [outcome for search, _, outcome in both if search != "pruning, budget"]
    assert (len(budget), budget.count("below"), budget.count("above")) == (10, 8, 0)
    assert (len(elsewhere), elsewhere.count("below"), elsewhere.count("above")) == (20, 5, 6)
    assert "(8 of 10 comparisons, none the opposite); elsewhere 5 of 20 say so," in page

    paper = [outcome for _, _, outcome in steadier["q_critic_ppo_paper"]]
    assert (len(paper), paper.count("below"), paper.count("above")) == (9, 0, 8)
    assert "in 8 of 9 comparisons on digits, steadier in none" in page
    assert "more volatile, in 8 of 9;" in README
    assert "more volatile than DDPG in 8 of 9 on digits" in PAGES["results.md"]

    assert (len(raw), raw.count("below"), raw.count("above")) == (12, 7, 0)
    assert "in 7 of 12 comparisons, better in none" in page


@pytest.mark.parametrize(
    ("name", "network", "dataset"),
    [("improvements-vgg8", "VGG8", "digits"), ("improvements-lenet5", "LeNet-5", "mnist")],
)
def test_what_improvements_do_is_reported_as_it_was_measured(
    name: str, network: str, dataset: str
) -> None:
    folder = ROOT / "results" / name
    report = (folder / "volatility.md").read_text(encoding="utf-8")
    tables = [block for block in report.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2 and all(table in PAGES["volatility.md"] for table in tables)
    trials = read_trials(folder)
    labels = {cell: Path(cell).name.split("-")[0].replace("_", ", ", 1) for cell in trials["cell"]}
    rows, curves = measure_trials(folder, labels)
    summary = volatility_report.summarize(rows, curves, list(IMPROVEMENTS))
    assert set(rows["agent"]) == set(IMPROVEMENTS) and rows["seed"].nunique() == 10
    title = f"{network} on {dataset}"
    assert volatility_report.format_report(rows, curves, summary, title) == report


def test_what_is_told_of_improvements_is_as_it_was_measured() -> None:
    page = " ".join(PAGES["volatility.md"].split())
    deep, small = (
        pd.read_csv(ROOT / "results" / f"improvements-{name}" / "summary.csv").set_index("agent")
        for name in ("vgg8", "lenet5")
    )
    whole, by_v, _, bare, _ = (
        f"{100 * deep['final_accuracy'][name]:.0f} %" for name in IMPROVEMENTS
    )
    assert f"on VGG8 (right on {by_v} of the images, not on {whole})" in page
    assert f"earns 0.19 less without them ({bare} right)" in page
    whole, by_v = (f"{100 * small['final_accuracy'].iloc[n]:.0f} %" for n in (0, 1))
    assert f"on LeNet-5 ({by_v}, not {whole})" in page
    more = [
        found["final_reward"].iloc[1] - found["final_reward"].iloc[0] for found in (deep, small)
    ]
    assert f"earns {more[0]:.2f} more on VGG8" in page and f"and {more[1]:.2f} more" in page
    promised = [f"{found['q_overestimation'].iloc[0]:.2f}" for found in (deep, small)]
    assert f"promises {' and '.join(promised)} too much" in page
    copied = [f"{found['q_overestimation'].iloc[3]:.2f}" for found in (deep, small)]
    assert f"with targets that are copied it is {' and '.join(copied)}" in page
    for name in ("vgg8", "lenet5"):
        trials = read_trials(ROOT / "results" / f"improvements-{name}")
        assert trials[trials["agent"] == "q_critic_ppo_paper"]["q_settled"].isna().all()


def test_errors_of_settled_critics_are_told_as_they_were_measured() -> None:
    trials = pd.read_csv(ROOT / "results" / "overestimation" / "trials.csv")
    rows = trials.groupby(["tau", "gradient_steps"])
    assert (rows["seed"].nunique() == 5).all()
    for (tau, n_steps), mine in rows:
        settled = mine["q_settled"].dropna()
        cells = [
            format_interval(mean_interval(settled), 3, "+") if len(settled) else "-",
            format_interval(mean_interval(mine["q_overestimation"]), 3, "+"),
            *(format_interval(mean_interval(mine[f"{x}_reward"]), 3) for x in ("best", "final")),
        ]
        row = f"| {tau:g} | {n_steps} | {len(settled)} of {len(mine)} | {' | '.join(cells)} |"
        assert row in PAGES["volatility.md"], row
