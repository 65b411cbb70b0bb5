"""What the README and the pages in `docs/` say works as it stands, and is what was measured."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.networks.models import MODELS, build_model
from compress_env.pruning.graph.surgery import find_walk
from compress_env.suite import SUITE, describe_suite
from compress_env.task.layers import compute_layers
from experiments.benchmark import table as benchmark_table
from experiments.benchmark.report import NOT_LEARNING, beats, format_leaderboard, verdicts
from experiments.benchmark.table import (
    BEST_KNOWN,
    OPPONENTS,
    make_leaderboard,
    read_best_known,
    update_best_known,
)
from experiments.common.drawing.intervals import format_mean, paired_interval
from experiments.common.latency import OnnxNetwork
from experiments.common.stored import find_stored
from experiments.compress.report import (
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
from experiments.tables.tables import read_runs, summarize
from experiments.trial.trials import read_trials
from experiments.volatility import report as volatility_report
from experiments.volatility.volatility import SEARCHES, measure_trials
from tests.fakes import PlainNet, seeded

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8")
    for path in (*DOCS.glob("*.md"), *DOCS.glob("archive/*.md"))
}


def snippet(text: str, number: int) -> str:
    """Find an example of a page by its number, from 0."""
    examples: list[str] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return examples[number]


def test_training_an_agent() -> None:
    names: dict[str, Any] = {}
    example = snippet(PAGES["quickstart.md"], 0)
    assert example in README
    exec(example, names)
    assert isinstance(names["small"], nn.Module)
    full = names["env"].unwrapped.unpruned.macs
    assert names["info"]["dense_macs"] <= 0.164 * full
    n_params = sum(p.numel() for p in names["small"].parameters())
    assert n_params == names["info"]["dense_params"] < 61_706


def test_own_network_and_data() -> None:
    generator = torch.Generator().manual_seed(0)

    def images(n: int) -> torch.Tensor:
        return torch.rand(n, 1, 8, 8, generator=generator)

    names: dict[str, Any] = {
        "train_images": images(60),
        "train_labels": torch.arange(60) % 3,
        "test_images": images(30),
        "test_labels": torch.arange(30) % 3,
        "trained_module": seeded(PlainNet),
    }
    exec(snippet(PAGES["own_network.md"], 1), names)
    env = names["env"]
    env.reset(seed=0)
    info = env.step(np.zeros(1, np.float32))[-1]
    assert 0.0 <= info["accuracy"] <= 1.0


def test_a_network_with_branches_on_tensors() -> None:
    names: dict[str, Any] = {}
    exec(snippet(PAGES["own_network.md"], 2), names)
    env, network, small = names["env"].unwrapped, names["network"], names["small"]
    assert env.skipped_layers == {}
    assert [layer.name for layer in env.walk] == ["pointwise", "head"]
    assert type(small) is type(network)
    assert names["info"]["dense_macs"] <= 0.4 * env.unpruned.macs
    assert small.depthwise.groups == small.stem[0].out_channels <= 16
    assert small.head.in_features == small.pointwise.out_channels + small.plain.out_channels < 32
    assert names["info"]["accuracy"] > 0.5


def test_files_are_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippet(PAGES["files.md"], 0), names)
    assert names["n_bytes"] == names["info"]["size_bytes"] <= 0.1 * 247_560
    assert (tmp_path / "small.cenv").stat().st_size == names["n_bytes"]
    with torch.no_grad():
        logits = names["network"](names["image"])
        assert torch.equal(names["again"](names["image"]), logits)
    exported = OnnxNetwork("small.onnx").logits(names["image"])
    torch.testing.assert_close(exported, logits, rtol=0, atol=1e-4)
    assert all(isinstance(p, nn.Parameter) for p in names["again"].parameters())


@pytest.mark.slow
def test_parallel_actors(tmp_path: Path) -> None:
    (tmp_path / "actors.py").write_text(snippet(PAGES["clients.md"], 3), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "actors.py"], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "transitions.sqlite").exists()


def test_pruning_by_importance() -> None:
    names: dict[str, Any] = {}
    exec(snippet(PAGES["allocation.md"], 0), names)
    plan, env = names["env"].plan, names["env"]
    rates = names["rates"]["pruning_rate"].tolist()
    assert plan.count(rates, "filters") <= 0.5 * plan.full("filters") == env.budget
    assert names["info"]["layer"] == env.walk[-1].name


@pytest.mark.parametrize("number", [0, 2], ids=["stable-baselines3", "gymnasium"])
def test_other_clients(number: int) -> None:
    names: dict[str, Any] = {}
    exec(snippet(PAGES["clients.md"], number), names)
    if number == 0:
        assert len(names["agent"].ep_info_buffer) == 64 // 4
    else:
        assert names["terminated"].all() and (names["infos"]["final_info"]["accuracy"] > 0.0).all()


def test_sb3_contrib() -> None:
    pytest.importorskip("sb3_contrib")
    names: dict[str, Any] = {}
    exec(snippet(PAGES["clients.md"], 1), names)
    assert names["agent"].num_timesteps == 40


def test_how_much_a_critic_promises() -> None:
    names: dict[str, Any] = {}
    exec(snippet(PAGES["clients.md"], 4), names)
    assert len(names["overestimation"].records) == 60 // 4


def test_table_of_environments_is_complete_and_true() -> None:
    rows = re.findall(r"\| `(compress_env/[\w-]+)` \|.*\| (.*) \|", PAGES["environments.md"])
    ids = {name for name in gym.registry if name.startswith("compress_env/")}
    assert {name for name, _ in rows} == ids
    for name, budget in rows:
        kwargs = gym.spec(name).kwargs
        fraction = kwargs.get("flops_budget", kwargs.get("size_budget"))
        percent = re.match(r"([\d.]+) %", budget)
        assert (None if percent is None else float(percent[1]) / 100) == pytest.approx(fraction)


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
    assert len(paths) == 2
    for path in paths:
        _, after = path.read_text(encoding="utf-8").split("After fine-tuning, rates")
        verdict = [line for line in after.split("## ")[0].splitlines() if line.startswith("- ")]
        assert len(verdict) >= 4
        assert " ".join(verdict) in " ".join(PAGES["pruning.md"].split())


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
    rows, label = stored(folder, "table.csv"), config["label"] or config["dataset"]
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
    described, page = describe_suite(), PAGES["suite.md"]
    headings = (*described[0], "what it is")
    lines = [(*row.values(), task.description) for row, task in zip(described, SUITE, strict=True)]
    assert format_markdown(headings, lines) in page
    rows = (ROOT / "results" / "suite" / "suite.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2 + 8
    for row in rows[2:]:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert " | ".join([cells[0], *cells[9:]]) in page
        fixed = next(task for task in described if task["task"] == cells[0])
        assert cells[: len(fixed)] == list(fixed.values())
        assert float(cells[13]) < 0.6 and int(cells[14]) < 60


def test_leaderboard_is_that_of_the_stored_trials() -> None:
    folder = ROOT / "results" / "benchmark"
    text = (folder / "leaderboard.md").read_text(encoding="utf-8")
    blocks = [block for block in text.split("\n\n") if block.startswith("| agent | PruneLe")]
    accuracies, _, evaluations = (block.strip() for block in blocks)
    for table in (accuracies, evaluations):
        assert table.count("-v0 |") == len(SUITE) and table in PAGES["archive/leaderboard.md"]
    known = read_best_known(folder / "best_known.csv")
    assert known.keys() == {task.id for task in SUITE}
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
            mean, half = beats(rows, agent, opponent)
            n_compared += 1
            if mean > half:
                wins.append((str(task), agent, opponent))
            if -mean > half:
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
        assert "{:.2f} ± {:.2f}".format(*beats(on_test, "ars", opponent)) in page
    seen = "CMA-ES by {:.1f} ± {:.1f} points of validation".format(*beats(trials, "ars", "cma_es"))
    unseen = "on test images {:.1f} ± {:.1f}".format(*beats(on_test, "ars", "cma_es"))
    assert seen in told and unseen in told


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


LABELS = [search.label for search in SEARCHES.values()]


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
    assert verdict.startswith("- The reward of the PPO family") and len(tables) == len(SEARCHES)
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
        for search, agent in product(LABELS, volatility_report.PPO_FAMILY):
            found = volatility_report.compare_volatility(table, curves, search, agent, "ddpg")
            for measure, difference in found.items():
                steadier.setdefault(agent, []).append((search, measure, difference.side))
        for search, reward in product(LABELS, ("best_reward", "final_reward")):
            by_agent = {
                agent: rows.sort_values("seed")[reward]
                for agent, rows in table[table["search"] == search].groupby("agent")
            }
            raw.append(paired_interval(by_agent["q_critic_ppo_q"], by_agent["ppo"]).side)
    page = PAGES["volatility.md"].replace("\n  ", " ")

    own = steadier["ppo"]
    lower, higher = ([m for _, m, outcome in own if outcome == o] for o in ("below", "above"))
    assert (len(own), len(lower), len(higher)) == (18, 12, 0)
    assert [lower.count(m) for m in ("drawdown", "within runs", "across seeds")] == [6, 5, 1]
    assert "12 of 18 comparisons on two data sets say so, none the opposite" in page
    assert "in all six searches, dispersion within runs in five. From seed to seed it is in" in page
    for page_of_results in (README, PAGES["results.md"]):
        assert "PPO's is, in 12 of 18 comparisons, the opposite in none" in page_of_results

    both = steadier["q_critic_ppo"] + steadier["q_critic_ppo_q"]
    budget = [outcome for search, _, outcome in both if search == "pruning, budget"]
    elsewhere = [outcome for search, _, outcome in both if search != "pruning, budget"]
    assert (len(budget), budget.count("below"), budget.count("above")) == (12, 6, 0)
    assert (len(elsewhere), elsewhere.count("below"), elsewhere.count("above")) == (24, 1, 5)
    assert "(6 of 12 comparisons, none the opposite); elsewhere 1 of 24 says so and 5" in page

    assert (len(raw), raw.count("below"), raw.count("above")) == (12, 7, 0)
    assert "in 7 of 12 comparisons, better in none" in page


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


NETWORKS = re.findall(
    r"\| `([\w/]+)`(?: \((\d)x(\d+)x\d+\))? \| ([\d,]+) \| .* \| (\d+) of (\d+) \| (\w+)",
    PAGES["networks.md"],
)
SMALL_NETWORKS = [row for row in NETWORKS if row[0].startswith(("lenet", "cnn")) or row[2] == "16"]
SMALL_NETWORKS += [row for row in NETWORKS if row[0].startswith("resnet20")]


@pytest.mark.parametrize("row", SMALL_NETWORKS, ids=lambda row: row[0])
def test_table_of_networks_is_true(row: tuple[str, ...]) -> None:
    name, channels, side, n_params, n_decided, n_layers, n_skipped = row
    shape = (int(channels or 3), int(side or 32), int(side or 32))
    model = build_model(name, 10, shape).eval()
    walk = find_walk(model, torch.zeros(1, *shape))
    assert sum(p.numel() for p in model.parameters()) == int(n_params.replace(",", ""))
    assert (len(walk.decisions), len(compute_layers(model))) == (int(n_decided), int(n_layers))
    assert len(walk.skipped) == (0 if n_skipped == "none" else int(n_skipped))


def test_table_of_networks_names_every_one() -> None:
    assert set(MODELS) == {row[0] for row in NETWORKS if "/" not in row[0]}


def test_arguments_of_the_environments_are_documented() -> None:
    for name in ("Pruning", "Quantization"):
        made = gym.make(f"compress_env/{name}-v0").unwrapped
        assert isinstance(made, LayerwiseCompressionEnv)
        named = set(re.findall(r"\| `(\w+)` \|", type(made).__doc__ or ""))
        accepted = set(type(made).__init__.__annotations__) - {"options", "return"}
        assert accepted <= named


TEXTS = {"README.md": README, **{f"docs/{name}": text for name, text in PAGES.items()}}
LINKS = [
    (name, target)
    for name, text in TEXTS.items()
    for target in re.findall(r"\]\(([^)#]*)#?[^)]*\)", text)
    if target and not target.startswith("http")
]
CONTENTS = re.findall(
    r"^([\w/]+)$", "\n".join(re.findall(r"```\{toctree\}.*?```", PAGES["index.md"], re.S)), re.M
)


def test_links_lead_somewhere() -> None:
    assert len(LINKS) > 60
    assert [link for link in LINKS if not (ROOT / link[0]).parent.joinpath(link[1]).exists()] == []


def test_every_page_is_found_from_the_readme_and_in_the_contents() -> None:
    found = ["README.md"]
    for name in found:  # which grows
        targets = [target for page, target in LINKS if page == name and target.endswith(".md")]
        paths = [(ROOT / name).parent.joinpath(target).resolve() for target in targets]
        known = [str(path.relative_to(ROOT)) for path in paths]
        found += [path for path in dict.fromkeys(known) if path in TEXTS and path not in found]
    generated = {"docs/changelog.md", "docs/reference.md", "docs/index.md"}
    assert set(TEXTS) - set(found) <= generated
    assert {f"docs/{name}.md" for name in CONTENTS} | {"README.md", "docs/index.md"} == set(TEXTS)
    assert len(CONTENTS) == len(set(CONTENTS))


def test_readme_is_short_and_has_the_one_call() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    first, last = (number for number, line in enumerate(lines) if line == "<!-- one call -->")
    assert 0 < last - first - 1 <= 15


def test_table_of_tools_is_that_of_the_comparison() -> None:
    table = [line for line in README.splitlines() if line.startswith("|") and line.count("|") == 8]
    compared = PAGES["comparison.md"].splitlines()
    assert len(table) == 2 + 7 and all(line in compared for line in table)
    rows = [line for line in compared if line.startswith("|")]
    sources = PAGES["comparison.md"].split("## Sources")[1]
    for tool in ("mit-han-lab/amc", "mit-han-lab/haq", "VainF", "NVIDIA", "facebookresearch"):
        assert f"https://github.com/{tool}" in sources
    assert len(rows) == 2 + 9


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = "pip install -e '.[test]' && pytest"
    assert f"```bash\n{command}\n```" in README
    assert "pip install -e . && python -m experiments.compress" in README
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_extras_are_those_the_quick_start_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"^\| `(\w+)` \|", PAGES["quickstart.md"], re.M)
    assert set(project["optional-dependencies"]) == set(named) and len(named) == 8
