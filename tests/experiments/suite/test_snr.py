"""How far allocations are apart, against the luck of a minibatch order."""

from __future__ import annotations

import math
import os
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from experiments.suite import snr
from experiments.suite.snr import better_half, measure_allocations, read_or_measure, snr_of, snr_row
from experiments.suite.suite import Config, run

TASK = "compress_env/PruneVGG8Digits-v1"


def test_signal_is_without_the_noise_of_the_means() -> None:
    # Variance over orders 0.02 each; of the means 0.6 and 0.8 it is 0.02, half of it by noise.
    found = snr_of(np.array([[0.5, 0.7], [0.7, 0.9]]))
    assert found.noise == pytest.approx(math.sqrt(0.02))
    assert found.signal == pytest.approx(0.1)
    assert found.ratio == pytest.approx(math.sqrt(0.5))
    assert found.low <= found.ratio <= found.high


@pytest.mark.parametrize(
    ("accuracy", "ratio"),
    [
        ([[0.5, 0.5], [0.7, 0.7]], math.inf),
        ([[0.5, 0.7], [0.7, 0.5]], 0.0),
        ([[0.5, 0.5], [0.5, 0.5]], 0.0),
    ],
    ids=["no noise", "no signal", "neither"],
)
def test_ends_of_the_range(accuracy: list[list[float]], ratio: float) -> None:
    assert snr_of(np.array(accuracy)).ratio == ratio


def test_known_ratio_is_found() -> None:
    rng = np.random.default_rng(0)
    accuracy = rng.normal(0.8, 0.06, (400, 1)) + rng.normal(0.0, 0.03, (400, 6))
    found = snr_of(accuracy)
    assert found.ratio == pytest.approx(2.0, abs=0.15)
    assert found.low < 2.0 < found.high
    assert found.high - found.low < 0.5


def test_better_half_has_the_highest_means() -> None:
    accuracy = np.array([[0.9, 0.1], [0.6, 0.8], [0.2, 0.2], [0.5, 0.7], [0.9, 0.9]])
    assert better_half(accuracy).tolist() == [[0.6, 0.8], [0.5, 0.7], [0.9, 0.9]]


def test_allocations_are_the_same_in_every_order() -> None:
    episodes = measure_allocations(TASK, 2, 2)
    assert episodes["allocation"].tolist() == [0, 0, 1, 1]
    assert episodes.groupby("allocation")["used"].nunique().tolist() == [1, 1]
    assert episodes["used"].nunique() == 2
    assert episodes["used"].between(0.5, 1.0).all()
    assert episodes["accuracy"].between(0.1, 1.0).all()
    assert (episodes["seconds"] > 0).all()


def episodes_of(task: str, n_allocations: int, n_orders: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    places = [(a, k) for a in range(n_allocations) for k in range(n_orders)]
    columns = pd.DataFrame(places, columns=["allocation", "order"])
    return columns.assign(task=task, accuracy=rng.uniform(size=len(places)), used=1.0, seconds=0.25)


def test_known_episodes_are_not_played_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = []

    def measure(task: str, n_allocations: int, n_orders: int) -> pd.DataFrame:
        played.append(task)
        return episodes_of(task, n_allocations, n_orders)

    monkeypatch.setattr(snr, "measure_allocations", measure)
    path = tmp_path / "results" / "snr.csv"
    first = snr_row(read_or_measure(path, TASK, 4, 3))
    read_or_measure(path, "compress_env/Another-v0", 4, 3)
    assert snr_row(read_or_measure(path, TASK, 4, 3)) == first
    assert played == [TASK, "compress_env/Another-v0"]
    with pytest.raises(ValueError, match=r"expected 5 x 3 episodes of .* got 12: give another"):
        read_or_measure(path, TASK, 5, 3)


def test_table_has_a_row_for_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snr, "measure_allocations", episodes_of)
    text, tasks = StringIO(), ("PruneVGG8Digits-v0", "PruneVGG8Digits-v1")
    rows = run(Config(tasks, snr=True, allocations=4, orders=3), Console(file=text))
    assert [row[0] for row in rows] == list(tasks)
    assert all(row[-2:] == ("100", "0.25") for row in rows)
    assert all("| " + " | ".join(row) + " |" in text.getvalue() for row in rows)


def test_one_order_has_no_spread() -> None:
    with pytest.raises(ValueError, match="orders must be 2 or more, got 1"):
        run(Config(snr=True, orders=1), Console(file=StringIO()))


WHOLE = episodes_of(TASK, 4, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no table"),
        ("a,b\n1,2\n", "has no column task, allocation"),
        (WHOLE.to_csv(index=False)[:-9], r"row 12: expected 6 cells, got 5"),
        (WHOLE.assign(accuracy=math.nan).to_csv(index=False), "accuracy must be a finite number"),
        (WHOLE.assign(order=0).to_csv(index=False), "expected 4 x 3 episodes of .* got 12: give"),
    ],
    ids=["empty", "other columns", "truncated", "no number", "one order"],
)
def test_a_damaged_file_is_told_in_one_line_and_kept(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "snr.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_or_measure(path, TASK, 4, 3)
    assert "\n" not in str(caught.value) and path.read_text() == text


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "snr.csv")
    with pytest.raises(FileNotFoundError, match="No such file"):
        read_or_measure(tmp_path / "snr.csv", TASK, 4, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(snr=True, train=True), "snr measures nothing else"),
        (Config(out=Path("snr.csv")), "out keeps the episodes of snr"),
        (Config(seed=-1), "seed must be 0 or more"),
        (Config(snr=True, allocations=2), "allocations must be 3 or more"),
    ],
    ids=["train", "out", "seed", "allocations"],
)
def test_settings_that_contradict_each_other_are_refused(config: Config, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(config, Console(file=StringIO()))
