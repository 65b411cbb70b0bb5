"""Reports, tables and figures as files."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from experiments.common.drawing.outputs import write_outputs, write_table

TABLE = pd.DataFrame({"a": [1, 2], "b": [0.5, 0.1 + 0.2]})


def drawn() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2], [3, 4])
    return figure


def test_a_report_is_printed_and_written_with_what_belongs_to_it(tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=20)
    tables, figures = {"rows.csv": TABLE}, {"line.png": drawn()}
    text = "# [Title]\n\na line that is longer than the console\n"
    write_outputs(tmp_path, "report", text, console, tables=tables, figures=figures)
    assert console.file.getvalue() == f"{text}\n"  # type: ignore[attr-defined]
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == text
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "rows.csv"), TABLE)
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "rows.csv", "line.png"}


def test_figures_have_a_palette(tmp_path: Path) -> None:
    write_outputs(tmp_path, "a", "", Console(file=StringIO()), figures={"line.png": drawn()})
    with Image.open(tmp_path / "line.png") as image:
        assert (image.mode, image.size) == ("P", (200, 100))
        assert len(image.getcolors() or ()) <= 128


def test_compressed_tables_are_the_same_each_time_and_stand_alone(tmp_path: Path) -> None:
    packed, plain = tmp_path / "rows.csv.gz", tmp_path / "rows.csv"
    write_table(plain, TABLE)
    write_table(packed, TABLE)
    first = packed.read_bytes()
    assert not plain.exists()
    write_table(packed, TABLE)
    assert packed.read_bytes() == first
    pd.testing.assert_frame_equal(pd.read_csv(packed), TABLE)
    write_table(plain, TABLE)
    assert not packed.exists()
