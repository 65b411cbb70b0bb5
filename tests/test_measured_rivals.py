"""The page of rivals says what its cells have measured, in commands that work."""

import json
import shlex
from pathlib import Path

import pandas as pd
import pytest

from experiments.common.cli.parsing import parse_command
from experiments.rivals import rivals
from experiments.rivals.report import format_rivals, read_rivals
from experiments.train import train
from tests.pages import PAGES, ROOT


def test_rows_are_told_as_they_were_measured() -> None:
    folder = ROOT / "results" / "rivals-resnet20"
    text = format_rivals(read_rivals(folder))
    assert text == (folder / "rivals.md").read_text(encoding="utf-8")
    page = PAGES["rivals.md"]
    assert all(block in page for block in text.strip().split("\n\n"))
    rows = pd.read_csv(folder / "sweep.csv")
    assert f"itself is wrong about {100 * rows['baseline_test_error'][0]:.2f} %" in page
    assert set(rows["seed"]) == {0} and "of one seed" in page
    errors = rows.pivot(index="agent", columns="flops_budget", values="test_error")
    apart = (100 * (errors - errors.loc["uniform"])).round(1)
    told = {"kl_curve": (-1.2, -0.5), "l1": (-0.4, -0.3), "fisher": (-0.5, 0.1)}
    assert all(tuple(apart.loc[agent]) == both for agent, both in told.items())
    assert (
        "`kl_curve` makes the fewest errors at both budgets, 1.2 and 0.5 points fewer"
        in " ".join(page.split())
    )
    others = apart.loc[["tp_l2", "tp_taylor"]]
    assert (others.min(axis=None), others.max(axis=None)) == (0.1, 0.2)


def test_commands_of_the_page_are_valid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    lines = PAGES["rivals.md"].replace("\\\n", " ").splitlines()
    asked = [shlex.split(line)[3:] for line in lines if line.startswith("python -m experiments.")]
    trained = [shlex.split(line)[2:] for line in lines if line.startswith("compress-env train ")]
    comparisons = [parse_command(rivals.Config, options).rivals() for options in asked]
    assert len(comparisons) == 3 and len(trained) == 2
    for cell in (cell for cells in comparisons for cell in cells):
        cell.check()
    for cells, options in zip(comparisons[1:], trained, strict=True):  # Table 1
        training = parse_command(train.Config, options)
        kwargs = json.loads(cells[0].env_kwargs)
        assert training.recipe().epochs == 100
        assert kwargs["checkpoint"] == f"{training.out}/model.safetensors"
        assert kwargs["model"] == training.model
        assert {"q_critic_ppo_paper", "uniform", "unpruned"} <= {cell.algo for cell in cells}
