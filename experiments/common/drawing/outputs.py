"""What an experiment leaves for its readers: a report, tables and figures."""

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from compress_env.files import replacing
from experiments.common.cli.say import say

__all__ = ["format_markdown", "write_figure", "write_outputs", "write_table"]

N_COLORS = 128


def write_outputs(
    folder: Path,
    name: str,
    report: str,
    console: Console,
    *,
    tables: Mapping[str, pd.DataFrame] | None = None,
    figures: Mapping[str, Figure] | None = None,
) -> None:
    """Print a report and write it beside its tables and figures, each file whole or not at all.

    Args:
        folder: Where they go.
        name: Name of the report's file, without its ending.
        report: Markdown.
        console: Where the report is printed.
        tables: By the name of their file, `.csv` or `.csv.gz`.
        figures: By the name of their file, `.png`.
    """
    say(console, report)
    with replacing(folder / f"{name}.md") as path:
        path.write_text(report, encoding="utf-8")
    for file, table in (tables or {}).items():
        write_table(folder / file, table)
    for file, figure in (figures or {}).items():
        write_figure(folder / file, figure)


def format_markdown(headings: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    """Format a Markdown table; the first column is text, the others numbers."""
    rule = ("---", *["---:"] * (len(headings) - 1))
    return "\n".join("| " + " | ".join(line) + " |" for line in (headings, rule, *lines))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, compressed if its name ends in `.gz`.

    The same rows make the same bytes, and of `NAME.csv` and `NAME.csv.gz` only one is left.
    """
    content = table.to_csv(index=False).encode()
    is_packed = path.suffix == ".gz"
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0) if is_packed else content)
    path.with_name(path.stem if is_packed else f"{path.name}.gz").unlink(missing_ok=True)


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG at 100 dpi with a palette, which takes a quarter of full colours."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    with replacing(path) as temporary, Image.open(drawn) as image:
        # Every colour has one near it, however rare: so that scales keep their ends.
        method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
        few = image.convert("RGB").quantize(N_COLORS, method, dither=dither)
        few.save(temporary, optimize=True)
