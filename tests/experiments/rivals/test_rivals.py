"""A comparison: its cells, what is added to it, and its tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from torch import nn

from agents.rules import BIT_RULES
from compress_env.task.task import CompressionTask
from experiments.rival import rival
from experiments.rivals import rivals
from experiments.rivals.report import draw_errors, format_rivals, read_rivals
from experiments.rivals.rivals import ROWS, Config, run
from experiments.sweep.cells import make_cell
from experiments.sweep.folder import SweepFolder
from experiments.trial.trial import Config as Trial
from tests.experiments.benchmark.folders import text_of
from tests.fakes import NOISY, InProcessPool, quiet, tiny_tasks

SMALL = Config(
    ("unpruned", "l1", "tp_l2", "relative_error"),
    *NOISY,
    macs=(0.5,),
    size=(0.5,),
    seeds=(0,),
    epochs=1,
    batch_size=16,
    evaluations=2,
    bf16=False,
    channels_last=False,
)


def measured(model: nn.Module, task: CompressionTask, folder: Path) -> dict[str, Any]:
    """Measure a network without files of it, which take seconds."""
    return measured_row(0.5, 1.0 - task.accuracy(model, "test"))


@pytest.fixture(autouse=True, scope="module")
def _tasks() -> Iterator[None]:
    with tiny_tasks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(rivals, "LocalPool", InProcessPool)
        patch.setattr(rival, "measure_network", measured)
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rivals") / "out"
    assert run(replace(SMALL, out=out), quiet()) == []
    return out


def test_each_row_takes_part_where_it_can_and_the_unpruned_once() -> None:
    made = [(each.algo, each.macs, each.size) for each in SMALL.rivals()]
    assert made == [
        ("unpruned", 1.0, None),
        ("l1", 0.5, None),
        ("tp_l2", 0.5, None),
        ("relative_error", None, 0.5),
    ]


def test_the_first_seed_and_the_first_budget_come_first() -> None:
    several = replace(SMALL, algo=("uniform", "unpruned"), macs=(0.3, 0.6), size=(), seeds=(1, 0))
    found = [(each.seed, each.algo, each.macs) for each in several.rivals()]
    by_seed = [("unpruned", 1.0), ("uniform", 0.3), ("uniform", 0.6)]
    assert found == [(seed, *each) for seed in (1, 0) for each in by_seed]


def test_all_rows_are_known() -> None:
    made = {each.algo for each in replace(SMALL, algo=ROWS).rivals()}
    assert made == set(ROWS)


def test_by_default_rows_are_those_of_the_budgets() -> None:
    made = {each.algo for each in Config().rivals()}
    assert {"kl_curve", "fastnas"} <= made and not made & set(BIT_RULES)
    made = {each.algo for each in Config(macs=(), size=(0.1,)).rivals()}
    assert set(BIT_RULES) <= made and "l1" not in made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"macs": (), "size": ()}, "expected budgets, macs or size or both, got none"),
        ({"algo": ("tp_l2",), "macs": ()}, "tp_l2 prunes: give budgets of multiply-accumulates"),
        ({"algo": ("hawq_v2",), "size": ()}, "hawq_v2 chooses bits"),
        ({"seeds": (0, 0)}, "expected seeds that differ"),
        ({"macs": (0.5, 0.5)}, "expected macs that differ"),
        ({"size": (0.1, 0.1)}, "expected size that differ"),
    ],
    ids=["no budget", "library", "stage", "seeds", "macs", "size"],
)
def test_a_wrong_grid_is_told_in_a_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes).rivals()


def test_a_published_folder_is_added_to(ran: Path, tmp_path: Path) -> None:
    out, shown = tmp_path / "out", quiet()
    out.mkdir()
    for name in ("sweep.json", "sweep.csv"):
        shutil.copy(ran / name, out / name)
    assert run(replace(SMALL, algo=("uniform",), size=(), out=out), shown) == []
    assert "1 of 5 cells to work on" in text_of(shown)
    before, after = (pd.read_csv(path / "sweep.csv", dtype=str) for path in (ran, out))
    kept = after[after["agent"] != "uniform"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before, check_like=True)


def test_other_settings_are_refused(ran: Path) -> None:
    with pytest.raises(ValueError, match="was made with epochs=1, got 2"):
        run(replace(SMALL, epochs=2, out=ran), quiet())


def test_a_folder_of_trials_is_left_as_it_is(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "out")
    with folder.open([make_cell("trial", Trial(task=NOISY[0]))]):
        before = folder.marker.read_text()
    with pytest.raises(ValueError, match="holds runs of trial, none of which go with those of ri"):
        run(replace(SMALL, out=folder.path), quiet())
    assert folder.marker.read_text() == before


def test_a_folder_has_its_tables_and_figures(ran: Path) -> None:
    text = (ran / "rivals.md").read_text()
    assert text.count("| row | seeds |") == 2 and text.count("| unpruned | 1 |") == 2
    assert {path.name for path in ran.glob("*.png")} == {"rivals-macs.png", "rivals-bytes.png"}
    assert "resume" not in json.dumps(read_rivals(ran).columns.tolist())


GRID = ("agent", "task", "flops_budget", "size_budget", "distill", "seed")


def measured_row(share: float, error: float) -> dict[str, Any]:
    return {
        "validation_accuracy": 1.0 - error,
        "test_error": error,
        "baseline_test_error": 0.08,
        "macs": share,
        "params": share,
        "bytes": 1000.0 * share,
        "bytes_share": share,
        "latency_1_ms": 0.5,
        "baseline_latency_1_ms": 1.0,
    }


def stored_row(agent: str, budget: float, seed: int, error: float) -> dict[str, Any]:
    share = 1.0 if agent == "unpruned" else budget - 0.01
    grid = (agent, "compress_env/Some-v1", budget, float("nan"), 0.0, seed)
    searched = {"n_evaluations": 1.0, "search_seconds": 12.4}
    return dict(zip(GRID, grid, strict=True)) | measured_row(share, error) | searched


def test_a_table_has_means_over_seeds_with_the_best_row_first() -> None:
    errors = {"l1": (0.10, 0.12), "kl_curve": (0.09, 0.09)}
    rows = [stored_row("unpruned", 1.0, 0, 0.075)]
    rows += [
        stored_row(agent, 0.3, seed, error)
        for agent, both in errors.items()
        for seed, error in enumerate(both)
    ]
    lines = format_rivals(pd.DataFrame(rows)).splitlines()
    assert lines[0] == (
        "At 30 % of the multiply-accumulates, fine-tuned without distillation; the network as it "
        "was: 8.00 % test error."
    )
    # Student's t of one degree of freedom, 12.706, times 1.414 / sqrt(2) points.
    assert lines[4:] == [
        "| unpruned | 1 | 7.50 | 100.0 | 100.0 | 1,000 | 50 | 0.50 | 1 | 12 |",
        "| kl_curve | 2 | 9.00 ± 0.00 | 29.0 | 29.0 | 290 | 50 | 0.50 | 1 | 12 |",
        "| l1 | 2 | 11.00 ± 12.71 | 29.0 | 29.0 | 290 | 50 | 0.50 | 1 | 12 |",
    ]
    [(name, figure)] = draw_errors(pd.DataFrame(rows)).items()
    assert name == "rivals-macs.png"
    _, labels = figure.axes[0].get_legend_handles_labels()
    assert labels == ["l1", "kl_curve"]
