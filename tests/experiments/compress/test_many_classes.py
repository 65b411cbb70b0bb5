"""What is told of a network with many classes: errors of the first answer, and of five."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console

from compress_env.quantization.packing import load
from compress_env.task.task import CompressionTask
from experiments.compress.compress import Config, run
from experiments.compress.inputs import Given
from experiments.compress.outcome.report import read_rows
from experiments.tables.tables import read_runs, summarize
from tests.fakes import PlainNet, make_data, seeded

pytestmark = pytest.mark.usefixtures("blank_figures")


def test_errors_of_five_answers_stand_beside_those_of_one(tmp_path: Path) -> None:
    model, data = seeded(lambda: PlainNet(12, side=12)), make_data(12, side=12)
    shown, folder = StringIO(), tmp_path / "run"
    config = Config(
        model="object:PlainNet",
        data="object:custom",
        macs=0.6,
        size=0.5,
        algo="uniform",
        compare=(),
        finetune_steps=1,
        final_finetune_steps=2,
        device="cpu",
        out=folder,
    )
    rows = run(config, Console(file=shown, width=200), Given(model, data))
    task = CompressionTask(model, data, device="cpu")
    network = load(folder / "network-uniform.cenv", seeded(lambda: PlainNet(12, side=12)))
    batch = [data.test.batches([torch.arange(len(data.test))])]
    ((images, labels),) = batch[0]
    for row, each in zip(rows, (model, network), strict=True):
        with torch.no_grad():
            ranks = each(images).argsort(1, descending=True)
        hits = (ranks == labels[:, None])[:, :5]
        assert row.test_error == pytest.approx(1 - hits[:, 0].float().mean().item())
        assert row.test_error_top5 == pytest.approx(1 - hits.any(1).float().mean().item())
        assert row.onnx_test_error_top5 == pytest.approx(row.test_error_top5, abs=0.05)
        assert row.test_error_top5 is not None and row.test_error_top5 < row.test_error
    first, five = task.accuracies(model, "test", (1, 5))
    assert (1 - first, 1 - five) == (rows[0].test_error, rows[0].test_error_top5)
    table = pd.read_csv(folder / "table.csv")
    assert table["test_error_top5"].tolist() == [row.test_error_top5 for row in rows]
    assert read_rows(folder / "table.csv") == rows
    heading = "| network | test error % | top-5 error % | MACs % |"
    assert heading in (folder / "report.md").read_text()
    assert "top-5 error %" in shown.getvalue()
    page = (folder / "report.html").read_text()
    assert "among its five best, " in page and ">ONNX top-5 error %<" in page
    assert heading in summarize(read_runs((folder,)))
    assert "| ONNX error % | ONNX top-5 error % |" in (folder / "report.md").read_text()
