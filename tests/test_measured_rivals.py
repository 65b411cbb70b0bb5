"""The page of rivals says what its cells have measured, in commands that work."""

import json
import shlex
from pathlib import Path

import pandas as pd
import pytest

from experiments.common.cli.parsing import parse_command
from experiments.rivals import rivals
from experiments.train import train
from tests.pages import PAGES, ROOT


def test_rows_are_told_as_they_were_measured() -> None:
    rows = pd.read_csv(ROOT / "results" / "rivals-resnet20" / "sweep.csv").set_index("agent")
    errors = [f"{100 * rows['test_error'][agent]:.2f} % by" for agent in ("uniform", "tp_l2")]
    shares = [f"{100 * rows['bytes_share'][agent]:.1f}" for agent in ("uniform", "tp_l2")]
    page = " ".join(PAGES["rivals.md"].split())
    assert f"{errors[0]} `uniform` and {errors[1]} `tp_l2`" in page
    assert f"itself is wrong about {100 * rows['baseline_test_error']['uniform']:.2f} %" in page
    assert f"at {shares[0]} and {shares[1]} % of the bytes" in page


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
