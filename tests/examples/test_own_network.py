"""The examples run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "own_network.ipynb", as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=500, resources=resources).execute()
    texts = [str(output) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("bytes packed" in text for text in texts)
    assert (tmp_path / "runs" / "own-network" / "report.html").is_file()


def test_notebook_and_script_have_the_same_network() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES / "own_network.ipynb", as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    script = (EXAMPLES / "own_network.py").read_text()
    for name in ("class Block", "class ResidualNet", "def load", "def trained"):
        found = re.search(rf"(?ms)^{name}\b.*?(?=^(class|def|if) |\Z)", script)
        assert found is not None and found[0].rstrip() in code


@pytest.mark.slow
def test_command_line_does_the_same_from_an_empty_folder(tmp_path: Path) -> None:
    example = EXAMPLES / "own_network.py"
    command = [
        sys.executable, "-m", "experiments.compress", "--model", f"{example}:trained",
        "--data", f"{example}:load", "--macs", "0.5", "--size", "0.1", "--effort", "quick",
        "--final-finetune-steps", "100", "--out", "run",
    ]  # fmt: skip
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"}
    )
    assert result.returncode == 0, result.stderr
    assert "10 decisions" in result.stdout and "portfolio" in result.stdout
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"report.html", "network-portfolio.cenv", "network-portfolio.onnx", "table.csv"} <= names
