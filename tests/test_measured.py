"""Every table and figure of the README and the pages in `docs/` is that of the stored runs."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from compress_env.suite import SUITE, SUITE_CIFAR, SUITE_V0, describe_suite
from experiments.benchmark import table as benchmark_table
from experiments.benchmark.report import NOT_LEARNING, difference, format_leaderboard, verdicts
from experiments.benchmark.table import (
    BEST_KNOWN,
    OPPONENTS,
    make_leaderboard,
    read_best_known,
    update_best_known,
)
from experiments.common.drawing.intervals import format_interval, format_mean
from experiments.common.intervals import paired_interval
from experiments.common.stored import find_stored
from experiments.compress.outcome.report import (
    FILE_HEADINGS,
    HEADINGS,
    format_markdown,
    format_times,
    read_rows,
)
from experiments.importance_benefit.report import format_report as benefit_report
from experiments.importance_stability.report import format_report as stability_report
from experiments.ppo_penalties.ppo_penalties import TABLES
from experiments.ppo_penalties.report import Results, format_report
from experiments.search.hyperparameters import HYPERPARAMETERS
from experiments.single_layer.report import format_report as single_layer_report
from experiments.suite.snr import better_half, snr_of, snr_row
from experiments.tables.tables import read_runs, summarize
from tests.pages import PAGES, ROOT


@pytest.mark.parametrize("runs", ["default", "digits", "mnist", "mnist-variational"])
def test_tables_over_seeds_are_those_of_the_stored_runs(runs: str) -> None:
    folders = tuple(sorted((ROOT / "results").glob(f"compress-{runs}-seed*")))
    assert len(folders) >= 3
    assert summarize(read_runs(folders)).strip() in PAGES["compression.md"]


def test_tables_of_a_single_run_are_those_of_the_stored_run() -> None:
    rows = read_rows(ROOT / "results" / "compress-cifar10-jpeg-seed0" / "table.csv")
    page = PAGES["compression.md"]
    assert format_markdown(HEADINGS, [row.cells() for row in rows]) in page
    assert format_markdown(FILE_HEADINGS, [row.file_cells() for row in rows]) in page
    assert format_markdown(*format_times(rows)) in page


def test_tables_are_those_of_the_stored_runs() -> None:
    pages = {
        "throughput*/throughput.md": "costs.md",
        "information-dropout-*/information_dropout.md": "pruning.md",
        "smallest-*/smallest.md": "compression.md",
    }
    found = [(path, page) for name, page in pages.items() for path in (ROOT / "results").glob(name)]
    assert len(found) == 6
    for path, page in found:
        blocks = path.read_text(encoding="utf-8").split("\n\n")
        tables = [block.strip() for block in blocks if block.startswith("|")]
        assert tables
        assert all(table in PAGES[page] for table in tables)


def test_verdicts_on_single_layers_are_those_of_the_stored_runs() -> None:
    paths = sorted((ROOT / "results").glob("single-layer-*/single_layer.md"))
    assert len(paths) == 3
    for path in paths:
        _, after = path.read_text(encoding="utf-8").split("After fine-tuning, rates")
        verdict = [line for line in after.split("## ")[0].splitlines() if line.startswith("- ")]
        assert len(verdict) >= 4
        assert " ".join(verdict) in " ".join(PAGES["pruning.md"].split())


def test_what_is_told_of_single_layers_is_as_it_was_measured() -> None:
    page = " ".join(PAGES["pruning.md"].split())
    mnist, cifar = (
        pd.read_csv(ROOT / "results" / f"single-layer-{name}" / "table.csv.gz")
        for name in ("mnist", "cifar10-jpeg")
    )

    def compare(rows: pd.DataFrame, worse: str, better: str, *, signed: bool = False) -> str:
        errors = 100.0 * rows.groupby(["method", "seed"])["error_after"].mean()
        found = paired_interval(errors[worse], errors[better])
        return format_interval(found, 2, "+") if signed else format_interval(found, 2)

    by_weight, most = "elements_by_weight", mnist[mnist["rate"] == 0.9]
    deep = cifar[cifar["rate"] == 0.9]
    assert f"gone by {compare(most, 'magnitude', 'channel')} points on MNIST" in page
    assert f"and by {compare(deep, 'magnitude', 'channel')} on CIFAR-10" in page
    assert f"by {compare(deep, 'channel', 'channel+variational')} points at 90 %" in page
    assert f"by {compare(cifar, 'channel', by_weight)} points over all rates on CIFAR" in page
    assert f"and by {compare(mnist, 'channel', by_weight)} on MNIST" in page
    assert f"input is {compare(cifar, 'variational', by_weight, signed=True)} points" in page
    assert f"and {compare(mnist, 'variational', by_weight, signed=True)} on MNIST" in page
    shuffled = "shuffled_information"
    costs = (compare(rows, shuffled, "variational") for rows in (cifar, deep))
    assert "it costs {} points ({} at 90 %)".format(*costs) in page
    assert f"input alone by {compare(cifar, shuffled, by_weight)}." in page
    assert f"level ({compare(mnist, 'variational', shuffled, signed=True)})" in page
    for name, is_apart in {"conv2": True, "fc1": True, "fc2": False}.items():
        errors = cifar[cifar["layer"] == name].groupby(["method", "seed"])["error_after"].mean()
        assert (paired_interval(errors[shuffled], errors["variational"]).low > 0.0) == is_apart
    rates = [
        rate
        for rate, rows in cifar.groupby("rate")
        if paired_interval(
            *(
                rows[rows["method"] == m].groupby("seed")["error_after"].mean()
                for m in ("channel", "channel+variational")
            )
        ).low
        > 0.0
    ]
    assert rates == [0.6, 0.7, 0.8, 0.9] and "With 60 to 90 % gone `channel+variational`" in page
    layer = most[(most["layer"] == "fc2") & (most["method"] == "variational")]["error_after"]
    low, high, ruined = (100.0 * sorted(layer)[place] for place in (0, -2, -1))
    assert f"({ruined:.1f} % of error where the other four have {low:.1f} to {high:.1f})" in page


def test_importance_is_reported_as_it_was_measured() -> None:
    told = " ".join(PAGES["importance.md"].split())
    paths = sorted((ROOT / "results").glob("importance-*/importance_*.md"))
    assert len(paths) == 7
    for path in paths:
        text = path.read_text(encoding="utf-8")
        verdicts = re.findall(r"^- (?:\*\*|`).*$", text, re.MULTILINE)
        errors = re.findall(r"^Test error %.*?\n\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
        assert verdicts
        assert len(errors) == (2 if "benefit" in path.name else 0)
        for lines in (*verdicts, *errors):
            assert " ".join(lines.split()) in told


def test_rules_of_filters_are_reported_as_they_were_measured() -> None:
    trials = pd.read_csv(ROOT / "results" / "importance-filters" / "trials.csv")
    tasks = list(dict.fromkeys(trials["task"]))
    assert len(tasks) == 4 and trials["agent"].nunique() == 6
    lines = []
    for agent, mine in trials.groupby("agent", sort=False):
        by_task = {task: rows for task, rows in mine.groupby("task")}
        accuracies = (100.0 * by_task[task]["test_accuracy"].to_numpy() for task in tasks)
        macs = (100.0 * by_task[task]["macs"].mean() for task in tasks)
        cells = (f"{format_mean(x)} ({y:.0f})" for x, y in zip(accuracies, macs, strict=True))
        lines.append((f"`{agent}`", *cells))
    assert format_markdown(("rule", *tasks), lines) in PAGES["importance.md"]


def stored(folder: Path, name: str) -> pd.DataFrame:
    """Read a table of a results folder, compressed or not."""
    path = find_stored(folder / name)
    assert path is not None
    return pd.read_csv(path)


STUDIES = [
    path.parent
    for pattern in ("single-layer-*/single_layer.md", "importance-*/importance_*.md")
    for path in sorted((ROOT / "results").glob(pattern))
]


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_reports_of_studies_follow_from_their_rows(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rows = stored(folder, "table.csv")
    label = config["label"] or config.get("data") or config["dataset"]
    if folder.name.startswith("importance-stability"):
        name, text = "importance_stability", stability_report(rows, label, config["target"])
    elif folder.name.startswith("importance-benefit"):
        unit, steps = config.get("unit", "filters"), config["final_finetune_steps"]
        title, name = f"{config['model']} on {label}", "importance_benefit"
        text = benefit_report(rows, title, unit, config["selection"], steps)
    else:
        title, name = f"{config['model']} on {label}", "single_layer"
        steps = (config["finetune_steps"], config["variational_steps"])
        text = single_layer_report(rows, title, *steps)
    assert text == (folder / f"{name}.md").read_text(encoding="utf-8")


def test_table_of_pendulum_is_that_of_the_stored_runs() -> None:
    report = (ROOT / "results" / "pendulum" / "ppo_penalties.md").read_text(encoding="utf-8")
    table = re.search(r"^\| task, agent \| steps.*?\n\n", report, re.MULTILINE | re.DOTALL)
    assert table is not None and table[0].count("Pendulum-v1") == 3
    assert table[0] in PAGES["control.md"]


@pytest.mark.parametrize("runs", ["ppo-penalties", "ppo-penalties-fixed"])
def test_penalties_are_reported_as_they_were_measured(runs: str) -> None:
    folder = ROOT / "results" / runs
    report = (folder / "ppo_penalties.md").read_text(encoding="utf-8")
    results = Results(*(stored(folder, name) for name in TABLES))
    assert format_report(results) == report
    shown = [block for block in report.split("\n\n") if block.startswith(("|", "- "))]
    assert len(shown) == 5
    if runs == "ppo-penalties-fixed":  # returns alone
        shown = shown[1:3]
    assert all(block in PAGES["control.md"] for block in shown)


def test_tables_of_the_suite_are_what_is_registered_and_as_measured() -> None:
    page = PAGES["suite.md"]
    for tasks in (SUITE, SUITE_CIFAR, SUITE_V0):
        described = describe_suite(tasks)
        pairs = zip(described, tasks, strict=True)
        lines = [(*row.values(), task.description) for row, task in pairs]
        assert format_markdown((*described[0], "what it is"), lines) in page
    rows = (ROOT / "results" / "suite" / "suite.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2 + 8
    for row in rows[2:]:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert " | ".join([cells[0], *cells[9:]]) in page
        fixed = next(task for task in described if task["task"] == cells[0])
        assert cells[: len(fixed)] == list(fixed.values())
        assert float(cells[13]) < 0.6 and int(cells[14]) < 60


def test_allocations_of_the_suite_differ_by_more_than_luck() -> None:
    stored = pd.read_csv(ROOT / "results" / "suite" / "snr.csv")
    worth_having = set()
    for task, episodes in stored.groupby("task"):
        assert "| " + " | ".join(snr_row(episodes)) + " |" in PAGES["suite.md"]
        accuracy = episodes.pivot(index="allocation", columns="order", values="accuracy").to_numpy()
        assert accuracy.shape == (24, 6)
        if snr_of(accuracy).ratio >= 2.0 and snr_of(better_half(accuracy)).ratio >= 1.0:
            worth_having.add(task)
    assert worth_having >= {task.id for task in SUITE}
    names = "PruneLeNet5MNIST PruneVGG8Digits QuantizeVGG8Digits QuantizeMobileNetV2Digits".split()
    first = {f"compress_env/{name}-v0" for name in names}
    assert worth_having & {task.id for task in SUITE_V0} == first


def test_leaderboard_is_that_of_the_stored_trials() -> None:
    folder = ROOT / "results" / "benchmark"
    text = (folder / "leaderboard.md").read_text(encoding="utf-8")
    blocks = [block for block in text.split("\n\n") if block.startswith("| agent | PruneLe")]
    accuracies, _, evaluations = (block.strip() for block in blocks)
    for table in (accuracies, evaluations):
        assert table.count("-v0 |") == len(SUITE_V0) and table in PAGES["archive/leaderboard.md"]
    known = read_best_known(folder / "best_known.csv")
    assert known.keys() == {task.id for task in SUITE_V0}
    shipped = read_best_known(BEST_KNOWN)
    assert all(shipped[task].best >= known[task].best for task in known)
    trials = benchmark_table.read_runs([folder])
    assert make_leaderboard(trials, known).equals(
        make_leaderboard(trials, update_best_known({}, trials))
    )
    assert format_leaderboard(make_leaderboard(trials, known), trials, known) == text
    blocks = text.split("\n\n")
    shown = [block for block in blocks if re.match(r"\| agent \| score|- |With fewer", block)]
    assert len(shown) == 3 and all(block in PAGES["archive/leaderboard.md"] for block in shown)
    counts = trials.groupby(["task", "agent"]).size()
    assert set(counts) == {3} and counts.groupby("task").size().tolist() == [20] * 6 + [18] * 6
    said = f"{len(trials)} trials, {trials['seconds'].sum() / 3600:.1f} core-hours"
    assert said in " ".join(PAGES["archive/leaderboard.md"].split())


def test_wins_of_learners_are_counted_as_the_trials_have_them() -> None:
    trials = benchmark_table.read_runs([ROOT / "results" / "benchmark"])
    page = " ".join(PAGES["archive/leaderboard.md"].split())
    n_compared, wins, losses = 0, [], []
    for task, rows in trials.groupby("task", sort=False):
        learners = sorted(set(rows["agent"]) - NOT_LEARNING)
        assert len(learners) == 13
        for agent, opponent in product(learners, OPPONENTS):
            side = difference(rows, agent, "validation_accuracy", opponent).side
            n_compared += 1
            if side == "above":
                wins.append((str(task), agent, opponent))
            if side == "below":
                losses.append(opponent)
    assert "Of 312 comparisons, " in page and n_compared == 312
    assert "fifteen are in a learner's favour, one of them against CMA-ES" in page
    assert len(wins) == 15 and sum(opponent == "cma_es" for *_, opponent in wins) == 1
    assert "CMA-ES beats a learner in 22, random search in 9." in page
    assert [losses.count(opponent) for opponent in ("cma_es", "random")] == [22, 9]
    vgg8 = [agent for task, agent, _ in wins if task == "compress_env/PruneVGG8Digits-v0"]
    assert len(vgg8) == 8 and "eight of thirteen learners beat random search" in page
    assert {(task[13:], agent) for task, agent, opponent in wins if opponent == "random"} == {
        *(("PruneVGG8Digits-v0", agent) for agent in vgg8),
        *(("QuantizeMobileNetV2Digits-v0", agent) for agent in ("ars", "sac")),
        ("QuantizeResNet20Digits-v0", "q_critic_ppo"),
        *(("PruneLeNet5MNIST-v0", agent) for agent in ("ppo", "a2c")),
        ("PruneLeNet5Digits-v0", "ddpg"),
    }


def test_further_seeds_of_ars_are_reported_as_they_were_measured() -> None:
    trials = benchmark_table.read_runs([ROOT / "results" / "benchmark-ars"])
    earlier = benchmark_table.read_runs([ROOT / "results" / "benchmark"])
    assert not set(trials["seed"]) & set(earlier["seed"]) and trials["seed"].nunique() == 7
    page, told = PAGES["archive/leaderboard.md"], " ".join(PAGES["archive/leaderboard.md"].split())
    (verdict,) = verdicts(trials)
    assert "`ars` beats both" in verdict and verdict in page
    on_test = trials.assign(validation_accuracy=trials["test_accuracy"])
    for opponent in OPPONENTS:
        assert format_interval(difference(on_test, "ars", "validation_accuracy", opponent)) in page
    seen, unseen = (
        format_interval(difference(rows, "ars", "validation_accuracy", "cma_es"), 1)
        for rows in (trials, on_test)
    )
    assert f"CMA-ES by {seen} points of validation" in told and f"on test images {unseen}" in told


def test_what_the_actors_learning_rate_does_is_as_it_was_measured() -> None:
    trials = pd.read_csv(ROOT / "results" / "actor-rate" / "trials.csv")
    rates = sorted(set(trials["actor_learning_rate"]))
    for rate, name in zip(rates, ("0.0015", "0.018, as found"), strict=True):
        mine = (
            100.0
            * trials.loc[
                trials["actor_learning_rate"] == rate, ["validation_accuracy", "final_accuracy"]
            ]
        )
        assert len(mine) == 5
        cells = " | ".join(format_mean(mine[column].to_numpy()) for column in mine)
        assert f"| {name} | {cells} |" in PAGES["archive/leaderboard.md"]
    found = HYPERPARAMETERS["q_critic_ppo"]["actor_learning_rate"]
    assert found == rates[-1] == pytest.approx(0.018, abs=5e-4)


def test_hyper_parameters_are_those_that_were_found() -> None:
    folder = ROOT / "results" / "tune"
    found = json.loads((folder / "hyperparameters.json").read_text(encoding="utf-8"))
    assert found == HYPERPARAMETERS
    chosen = pd.read_csv(folder / "chosen.csv").query("chosen").set_index("agent")
    assert {name: json.loads(text) for name, text in chosen["settings"].items()} == found
    report = (folder / "tune.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z]\w+.*) \| 12 \| .* \| (.*) \| (.*) \| (.*) \|$", report, re.M)
    assert len(rows) == len(found) == 7
    page = PAGES["archive/leaderboard.md"]
    for agent, other, before, after in rows:
        assert f"| {agent} | {before} | {'as before' if other == '-' else after} |" in page
