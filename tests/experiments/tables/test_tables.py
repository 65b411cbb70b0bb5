"""Means over seeds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from experiments.tables import tables
from experiments.tables.tables import read_runs, summarize

SETTINGS = {
    "model": "lenet5",
    "dataset": "digits",
    "algo": "ppo",
    "method": "channel",
    "flops_budget": 0.2,
    "size_budget": 0.05,
    "reward": "err",
    "reward_at": "episode",
    "episodes": 10,
}


def test_files_are_told_in_percents_of_the_unpruned_network(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", 0, (0.01, 0.05, 0.03, 0.02))
    table = pd.read_csv(run / "table.csv")
    table["float_bytes"], table["onnx_bytes"] = [1000, 400, 300, 250], [2000, 400, 300, 100]
    table["onnx_test_error"] = table["test_error"]
    table["latency_1_ms"], table["latency_64_ms"] = [2.0, 1.0, 1.5, 0.5], [8.0, 4.0, 2.0, 1.0]
    table.to_csv(run / "table.csv", index=False)
    text = summarize(read_runs((run,)))
    assert "| ppo | 2.00 | 50.00 | 50.00 | 10.00 | 3 |" in text
    assert "| network | packed size % | float32 size % | ONNX size % | ONNX test error % |" in text
    assert "| ppo | 10.00 | 25.00 | 5.00 | 2.00 | 25.00 | 12.50 |" in text


def write_run(folder: Path, seed: int, errors: tuple[float, ...], **changes: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SETTINGS | {"seed": seed} | changes))
    names = ["baseline", "uniform", "random", "ppo"]
    rows = [
        {"network": n, "test_error": e, "macs": 0.5, "params": 0.5, "size": 0.1, "n_evaluations": 3}
        for n, e in zip(names, errors, strict=True)
    ]
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder


def test_summary_compares_the_agent_seed_by_seed(tmp_path: Path) -> None:
    runs = (
        write_run(tmp_path / "a", 0, (0.01, 0.05, 0.03, 0.02)),
        write_run(tmp_path / "b", 1, (0.01, 0.07, 0.05, 0.04)),
    )
    text = summarize(read_runs(runs))
    assert "Mean over 2 seeds" in text
    assert "| baseline | 1.00 | 50.00 | 50.00 | 10.00 | 3 |" in text
    assert "| ppo | 3.00 ± 12.71 |" in text
    assert "ppo minus uniform: -3.00 points" in text
    assert "ppo minus random: -1.00 points" in text


@pytest.mark.parametrize(
    ("seed", "changes", "message"),
    [(0, {}, "a seed of its own"), (1, {"episodes": 99}, "must agree in episodes, got 10 and 99")],
    ids=["same seed", "other settings"],
)
def test_runs_that_cannot_be_averaged_are_refused(
    tmp_path: Path, seed: int, changes: dict[str, object], message: str
) -> None:
    first = write_run(tmp_path / "a", 0, (0.0,) * 4)
    second = write_run(tmp_path / "b", seed, (0.0,) * 4, **changes)
    with pytest.raises(ValueError, match=message):
        read_runs((first, second))


def test_runs_from_before_a_setting_have_what_it_is_now_by_default(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", 0, (0.0,) * 4)
    second = write_run(tmp_path / "b", 1, (0.0,) * 4, shaping=0.0, preparation="auto")
    assert "Mean over 2 seeds" in summarize(read_runs((first, second)))
    third = write_run(tmp_path / "c", 2, (0.0,) * 4, shaping=0.2)
    with pytest.raises(ValueError, match=re.escape("must agree in shaping, got 0.0 and 0.2")):
        read_runs((first, third))


def test_costs_stand_beside_each_difference(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", 0, (0.01, 0.05, 0.03, 0.02))
    table = pd.read_csv(run / "table.csv")
    table["sparse_macs"], table["size"] = [1.0, 0.12, 0.14, 0.144], [1.0, 0.02, 0.02, 0.03]
    table.to_csv(run / "table.csv", index=False)
    text = summarize(read_runs((run,)))
    costs = "50.00 against 50.00 % of the MACs, 14.40 against 12.00 % of the sparse MACs, 3.00 "
    assert f"- ppo minus uniform: -3.00 points of test error, seed by seed, at {costs}" in text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "[]", "must hold a JSON object"),
        ("config.json", '{"seed": "0"}', " must be a whole number, got '0'"),
        ("config.json", "\x00", "no JSON that can be read"),
        ("table.csv", "network,test_error\na,1\n", "has no column n_evaluations"),
        ("table.csv", "network,test_error,n_evaluations\na,x,1\n", "row 1: test_error must be"),
        ("table.csv", "network,test_error,n_evaluations\na,1,1\na,1,1\n", "each network once"),
        ("table.csv", "network,test_error,n_evaluations\n", "each network once, at least one"),
    ],
)
def test_file_of_another_kind_ends_with_one_line(
    file: str, content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "a", 0, (0.0,) * 4)
    (run / file).write_text(content)
    monkeypatch.setattr("sys.argv", ["tables", "--runs", str(run)])
    with pytest.raises(SystemExit, match=f"^error: .*{file}.*{message}"):
        tables.main()


def test_folder_without_a_table_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["tables", "--runs", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: .* is not a finished run"):
        tables.main()
