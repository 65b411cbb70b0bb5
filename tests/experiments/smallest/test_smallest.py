"""The smallest file of a sweep that is no worse than the float32 network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.smallest import smallest
from experiments.smallest.smallest import choose, format_choices, read_sweeps


def row(seed: int, network: str, size: int, accuracy: float, error: float) -> dict[str, Any]:
    return {
        "model": "lenet5",
        "dataset": "mnist",
        "seed": seed,
        "network": network,
        "size_bytes": size,
        "validation_accuracy": accuracy,
        "test_error": error,
        "sparse_params": size / 1000,
        "flops_budget": 0.164,
        "size_budget": 0.03,
        "within_budget": size < 300,
    }


ROWS = [
    row(0, "baseline", 1000, 0.990, 0.010),
    row(0, "uniform", 100, 0.991, 0.012),  # smaller and no worse by validation images
    row(0, "random", 200, 0.980, 0.010),  # as good by test images
    row(0, "agent", 50, 0.989, 0.011),  # too bad by either
    row(1, "baseline", 1000, 0.990, 0.010),
    row(1, "uniform", 400, 0.990, 0.009),
    row(1, "random", 500, 0.999, 0.001),
]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    pd.DataFrame(ROWS).to_csv(tmp_path / "sweep.csv", index=False)
    return tmp_path


def test_the_smallest_that_is_no_worse_is_chosen_for_each_seed(sweep: Path) -> None:
    rows = read_sweeps([sweep])
    assert choose(rows, "validation_error")["size_bytes"].tolist() == [100, 400]
    assert choose(rows, "test_error")["size_bytes"].tolist() == [200, 400]
    assert choose(rows, "test_error")["baseline_size_bytes"].tolist() == [1000, 1000]


def test_a_seed_without_such_a_network_is_left_out(sweep: Path) -> None:
    rows = read_sweeps([sweep])
    rows = rows[~rows["size_bytes"].isin([400, 500])]
    assert choose(rows, "test_error")["seed"].tolist() == [0]
    assert "| test images | 1 | none | - |" in format_choices(rows)


def test_report_and_figure_are_written(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["smallest", "--sweeps", str(sweep)])
    smallest.main()
    text = (sweep / "smallest.md").read_text()
    assert text == format_choices(read_sweeps([sweep])) and text in capsys.readouterr().out
    assert "| validation images | 0 | 100 | 10.0 | 1.20 | 1.00 | 10.00 % | 0.164 | 0.03 |" in text
    assert "| test images | 1 | 400 | 2.5 | 0.90 | 1.00 | 40.00 % | 0.164 | over |" in text
    assert "The smallest of 5 files over 2 seeds" in text
    assert (sweep / "smallest.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("a,b\n1,2\n", "validation_accuracy"),
        ("model,dataset,validation_accuracy\na,x,1\nb,x,1\n", "expected one model"),
    ],
    ids=["nothing", "other table", "two networks"],
)
def test_what_is_no_sweep_ends_with_one_line(
    content: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "sweep.csv").write_text(content)
    monkeypatch.setattr("sys.argv", ["smallest", "--sweeps", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"error: no sweep to choose from in .*{message}"):
        smallest.main()


def test_sweeps_are_put_together(sweep: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    pd.DataFrame([ROWS[0], row(0, "uniform", 90, 0.995, 0.010)]).to_csv(other / "sweep.csv")
    assert choose(read_sweeps([sweep, other]), "test_error")["size_bytes"].tolist() == [90, 400]
