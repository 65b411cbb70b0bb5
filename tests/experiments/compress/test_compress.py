"""The main job, end to end on few episodes."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.networks.models import build_model, load_checkpoint
from compress_env.quantization.packing import load
from experiments.compress import compress
from experiments.compress.compress import Config, run
from experiments.compress.outcome.exports import Export
from experiments.compress.outcome.report import Row, best_row
from experiments.compress.stages import Job
from tests.experiments.compress import jobs
from tests.fakes import quiet, slow

pytestmark = pytest.mark.usefixtures("blank_figures")

SMALL: dict[str, Any] = jobs.SMALL | {
    "compare": ("uniform", "portfolio", "random", "8bit", "uniform-bits"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row], str]:
    """Run the job once, with its figures."""
    out = tmp_path_factory.mktemp("run") / "out"
    text = StringIO()
    rows = run(Config(out=out, **(SMALL | {"onnx": True})), Console(file=text, width=120))
    return out, rows, text.getvalue()


def test_folder_holds_what_is_promised(finished: tuple[Path, list[Row], str]) -> None:
    out = finished[0]
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "episodes.csv", "policy.json", "table.csv", "report.md"} <= names
    assert {"baseline.safetensors", "baseline.onnx"} <= names
    assert {f"network-q_critic_ppo.{suffix}" for suffix in ("cenv", "safetensors", "onnx")} <= names
    figures = [f"{k}-{s}.png" for k in ("reward", "layers", "tradeoff") for s in STAGES]
    figures.append("pareto.png")
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in figures)
    config = json.loads((out / "config.json").read_text())
    assert (config["seed"], config["evaluations"]) == (0, 3)
    assert {"versions", "git_revision", "hardware", "date", "command"} <= set(config)


STAGES = ("pruning", "quantization")


def test_table_compares_networks_within_the_budgets(
    finished: tuple[Path, list[Row], str],
) -> None:
    out, rows, text = finished
    baseline, *others = rows
    bits = ["q_critic_ppo-8bit", "q_critic_ppo-uniform-bits"]
    names = ["uniform", "portfolio", "random", *bits, "q_critic_ppo"]
    assert [row.network for row in rows] == ["baseline", *names]
    assert (baseline.macs, baseline.params, baseline.size) == (1.0, 1.0, 1.0)
    for row in others:
        assert row.macs <= SMALL["macs"]
        is_within = row.size <= SMALL["size"]
        assert is_within == row.within_budget
        assert is_within or row.network.endswith("8bit") or f"{row.network}: too little" in text
        path = out / f"network-{row.network}"
        assert row.size_bytes == path.with_suffix(".cenv").stat().st_size
        assert row.float_bytes == path.with_suffix(".safetensors").stat().st_size
        assert row.onnx_bytes == path.with_suffix(".onnx").stat().st_size
        assert row.size_bytes < row.float_bytes < baseline.float_bytes == baseline.size_bytes
        assert row.onnx_test_error == pytest.approx(row.test_error, abs=1 / 359)
        assert row.latency_1_ms and row.latency_64_ms and row.latency_64_ms > row.latency_1_ms
        assert row.network in text
    assert f"best on validation images within the budgets: {best_row(rows).network} (" in text
    assert "portfolio: pruning: " in text and "is best by reward (uniform -0." in text
    stored = pd.read_csv(out / "table.csv").to_dict("records")
    known = [{k: v for k, v in row._asdict().items() if v is not None} for row in rows]
    assert known == [pytest.approx(row) for row in stored]
    assert not any("top5" in str(name) for name in stored[0])  # of ten classes


def test_random_search_spends_as_many_evaluations(
    finished: tuple[Path, list[Row], str],
) -> None:
    rows = {row.network: row for row in finished[1]}
    assert rows["random"].n_evaluations == rows["q_critic_ppo"].n_evaluations
    assert rows["uniform"].n_evaluations == 2


def test_uniform_bits_are_given_to_the_network_of_the_agent(
    finished: tuple[Path, list[Row], str],
) -> None:
    rows = {row.network: row for row in finished[1]}
    for name in ("8bit", "uniform-bits"):
        row, agent = rows[f"q_critic_ppo-{name}"], rows["q_critic_ppo"]
        assert (row.macs, row.params) == (agent.macs, agent.params)
    table = pd.read_csv(finished[0] / "episodes.csv").set_index("search")
    bits = table.filter(like="value:")
    eight = bits.loc["q_critic_ppo-8bit"].dropna()
    assert set(eight) == {8.0} and len(eight) == 5
    uniform = bits.loc["q_critic_ppo-uniform-bits"].dropna()
    assert len(set(uniform)) == 1 and uniform.iloc[0] < 8


def test_baselines_are_left_out_on_request(tmp_path: Path) -> None:
    settings = SMALL | {"algo": "uniform", "compare": (), "final_finetune_steps": 1}
    rows = run(Config(out=tmp_path / "out", **settings), Console(file=StringIO()))
    assert [row.network for row in rows] == ["baseline", "uniform"]


def test_every_episode_is_recorded(finished: tuple[Path, list[Row], str]) -> None:
    table = pd.read_csv(finished[0] / "episodes.csv")
    agent = table[table["search"] == "q_critic_ppo"]
    assert agent.groupby("stage")["index"].apply(list).to_dict() == {
        "pruning": [0, 1, 2],
        "quantization": [0, 1, 2],
    }
    assert (table["search"] == "uniform").sum() == 2
    pruning = agent[agent["stage"] == "pruning"]
    rates = pruning[["value:conv2", "value:fc1", "value:fc2", "value:fc3"]]
    assert rates.notna().all(axis=None) and ((rates >= 0) & (rates < 1)).all(axis=None)
    bits = agent[agent["stage"] == "quantization"]["value:conv1"]
    assert bits.isin(range(1, 9)).all()
    assert (table["seconds"] > 0).all()


def test_policy_gives_its_accuracy_again(finished: tuple[Path, list[Row], str]) -> None:
    policy = json.loads((finished[0] / "policy.json").read_text())["q_critic_ppo"]["pruning"]
    env = PruningEnv(
        flops_budget=0.164,
        method="magnitude",
        finetune_steps=2,
        finetune_at="episode",
        reward_at="episode",
    )
    env.reset()
    for action in policy["actions"]:
        info = env.step(np.array([action], np.float32))[-1]
    assert info["accuracy"] == policy["validation_accuracy"]


def test_compressed_file_scores_what_the_table_says(
    finished: tuple[Path, list[Row], str],
) -> None:
    out, rows, _ = finished
    env = QuantizationEnv()
    model = load(out / "network-q_critic_ppo.cenv")
    assert 1.0 - env.task.accuracy(model, "test") == rows[-1].test_error
    baseline = build_model("lenet5", 10, (1, 32, 32))
    load_checkpoint(baseline, out / "baseline.safetensors")
    assert env.task.accuracy(baseline, "validation") == rows[0].validation_accuracy


def test_same_seed_gives_the_same_rows(
    finished: tuple[Path, list[Row], str], tmp_path: Path
) -> None:
    again = run(Config(out=tmp_path / "again", **SMALL), Console(file=StringIO()))
    varying = {"seconds", *Export._fields}
    names = [name for name in Row._fields if name not in varying and "latency" not in name]
    assert [[getattr(row, name) for name in names] for row in again] == [
        [getattr(row, name) for name in names] for row in finished[1]
    ]


@pytest.mark.parametrize(
    "algo",
    [
        *("portfolio", "cma_es", "sac", "afie", "ppo+l1", "random+uniform"),
        *slow("ppo", "a2c", "ddpg", "td3", "random", "uniform", "sbpf", "cma_es+relative_error"),
    ],
)
def test_every_algorithm_runs_the_job(algo: str, tmp_path: Path) -> None:
    settings = SMALL | {
        "evaluations": 2,
        "finetune_steps": 0,
        "algo": algo,
        "compare": ("portfolio",),
    }
    rows = run(Config(out=tmp_path / "out", **settings), Console(file=StringIO()))
    expected = ["baseline", "portfolio", algo] if algo != "portfolio" else ["baseline", "portfolio"]
    assert [row.network for row in rows] == expected


def test_the_rule_of_the_search_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a search is compared with acts as it would without it: 0 is the middle for it."""
    seen: dict[str, dict[str, Any]] = {}
    search = Job._search

    def spy(job: Job, key: tuple[str, str], env: Any, algorithm: str) -> Any:
        seen.setdefault(algorithm, {})[key[1]] = env.prior
        return search(job, key, env, algorithm)

    monkeypatch.setattr(Job, "_search", spy)
    settings = SMALL | {"evaluations": 2, "finetune_steps": 0, "compare": ("random", "uniform")}
    run(Config(out=tmp_path / "out", **settings | {"algo": "cma_es+l1"}), quiet())
    blind = {"pruning": "middle", "quantization": "middle"}
    assert seen.pop("cma_es+l1") == {"pruning": "l1", "quantization": "relative_error"}
    assert seen == {"random": blind, "uniform": blind}


NAMED = ["--model", "lenet5", "--data", "digits", "--macs", "0.2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algo", "magic"], "unknown algorithm 'magic'; valid: q_critic_ppo, ppo"),
        ([*NAMED, "--model", "lenet6"], "unknown model 'lenet6'"),
        ([*NAMED, "--data", "digitz"], "no data set 'digitz', did you mean 'digits'"),
        (["--model", "lenet5"], "--model needs --data"),
        (["--model", "lenet5", "--data", "digits"], "expected a budget: --macs, --params"),
        ([*NAMED, "--macs", "0.0001"], "macs must be in"),
        ([*NAMED, "--params", "0.0001"], "params must be in"),
        ([*NAMED, "--size", "0.0001"], "size must be in"),
        ([*NAMED, "--algo", "ppo+l11"], "unknown rule 'l11', did you mean 'l1'"),
        ([*NAMED, "--shaping", "0.5"], "shaping is for learners around a rule.*got portfolio"),
        (["--evaluations", "0"], "evaluations must be at least 1, got 0"),
        (["--compare", "unifrom"], "unknown comparison 'unifrom', did you mean 'uniform'"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--activation-bits", "4"], "activation_bits must be 8, got 4"),
        (["--train-epochs", "0"], "train_epochs must be at least 1, got 0"),
        (["--train-epochs", "1", "--weights", "."], "train_epochs or weights, not both"),
        ([*NAMED, "--model", "cnn4"], r"no recipe for cnn4 on digits.*--train-epochs"),
        ([*NAMED, "--data", "mnist", "--data-root", "nowhere"], "nowhere.*--download"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_ends_with_one_line_and_no_folder(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["compress", *arguments, "--out", "out"])
    with pytest.raises(SystemExit, match=message) as caught:
        compress.main()
    assert str(caught.value).startswith("error: ")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_with_code_in_it_is_refused_unexecuted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"conv1.weight": Payload()}, tmp_path / "evil.pt")
    argv = ["compress", "--weights", str(tmp_path / "evil.pt"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit, match=r"error: .*evil\.pt"):
        compress.main()
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pt"]


def test_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        run(Config(out=tmp_path, **SMALL), Console(file=StringIO()))
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_main_job_on_mnist(mnist: Path, tmp_path: Path) -> None:
    settings = SMALL | {"evaluations": 1, "final_finetune_steps": 20, "compare": ("uniform",)}
    named = {"data": "mnist", "data_root": mnist}
    config = Config(out=tmp_path / "out", **(settings | named))
    rows = run(config, Console(file=StringIO()))
    assert rows[0].test_error < 0.015
    assert all(row.macs <= 0.164 for row in rows[1:])
