"""The final table of the main job: on the terminal, as Markdown, and in `report.md`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.common.drawing.outputs import format_markdown
from experiments.common.stored import parse, read_table

__all__ = [
    "FILE_HEADINGS",
    "HEADINGS",
    "Row",
    "best_row",
    "file_table",
    "final_table",
    "format_markdown",
    "format_noise",
    "format_report",
    "format_times",
    "print_rows",
    "read_rows",
    "to_rows",
    "with_ratios",
]

HEADINGS = (
    "network",
    "test error %",
    "MACs %",
    "sparse MACs %",
    "params %",
    "sparse params %",
    "size %",
    "evals",
)

FILE_HEADINGS = (
    "network",
    "packed bytes",
    "float32 bytes",
    "ONNX bytes",
    "ONNX error %",
)

TOP5 = "top-5 error %"
"""Comes after the test error, and that of the ONNX file, where there are many classes."""

TIMES = {
    "latency_1": "onnxruntime, 1 image",
    "latency_64": "onnxruntime, 64 images",
    "torch_latency_1": "PyTorch, 1 image",
    "torch_latency_64": "PyTorch, 64 images",
}
"""What is timed, by the beginning of its columns."""

NOISY = 0.3
"""Distance of the quartiles, a fraction of the median, that no idle machine shows."""


class Row(NamedTuple):
    """One line of the final tables."""

    network: str
    """Baseline, or the name of the search."""
    validation_accuracy: float
    """Fraction of validation images that the final network gets right, or what the caller's measure
    says of it."""
    test_error: float
    """Fraction of test images that it gets wrong."""
    macs: float
    """Dense multiply-accumulates, a fraction of the baseline's."""
    sparse_macs: float
    """Multiply-accumulates by non-zero weights, a fraction of the baseline's dense ones."""
    params: float
    """Stored parameters, a fraction of the baseline's."""
    sparse_params: float
    """Non-zero parameters, a fraction of the baseline's stored ones."""
    size_bytes: int
    """Bytes of the file on disk."""
    size: float
    """Bytes, a fraction of the baseline's float32 file."""
    float_bytes: int
    """Bytes of a float32 file (safetensors) of the same network."""
    within_budget: bool
    """Whether multiply-accumulates and file are within their budgets."""
    n_evaluations: int
    """Networks evaluated on the validation images, both stages together."""
    seconds: float
    """Wall-clock time of the searches."""
    onnx_bytes: int | None = None
    """Bytes of the ONNX file; None if there is none, as below."""
    onnx_test_error: float | None = None
    """Fraction of test images that the ONNX file gets wrong."""
    latency_1_ms: float | None = None
    """Median milliseconds of the ONNX file in onnxruntime for one image."""
    latency_64_ms: float | None = None
    """The same for 64 images at once."""
    torch_latency_1_ms: float | None = None
    """Median milliseconds in PyTorch, on the task's device, for one image; weights dequantized."""
    torch_latency_64_ms: float | None = None
    """The same for 64 images at once."""
    latency_1_iqr_ms: float | None = None
    """Distance of the quartiles of the times whose median is `latency_1_ms`; likewise below."""
    latency_64_iqr_ms: float | None = None
    torch_latency_1_iqr_ms: float | None = None
    torch_latency_64_iqr_ms: float | None = None
    latency_1: float | None = None
    """`latency_1_ms`, a fraction of the baseline's; likewise below."""
    latency_64: float | None = None
    torch_latency_1: float | None = None
    torch_latency_64: float | None = None
    test_error_top5: float | None = None
    """Fraction of test images whose class is none of the five with the largest logits; None where
    there are at most ten classes, and below."""
    onnx_test_error_top5: float | None = None
    """The same of the ONNX file."""

    def cells(self, *, has_top5: bool = False) -> tuple[str, ...]:
        """Format the columns of `final_table`."""
        percents = (
            self.test_error,
            *([self.test_error_top5] if has_top5 else []),
            self.macs,
            self.sparse_macs,
            self.params,
            self.sparse_params,
        )
        return (
            self.network,
            *(_format(_percent(p), ".2f") for p in percents),
            f"{100 * self.size:.2f}" + ("" if self.within_budget else "*"),
            str(self.n_evaluations),
        )

    def file_cells(self, *, has_top5: bool = False) -> tuple[str, ...]:
        """Format the columns of `file_table`."""
        errors = (self.onnx_test_error, *([self.onnx_test_error_top5] if has_top5 else []))
        return (
            self.network,
            *(_format(b, ",") for b in (self.size_bytes, self.float_bytes, self.onnx_bytes)),
            *(_format(_percent(error), ".2f") for error in errors),
        )

    def time_cells(self, name: str) -> tuple[str, str]:
        """Format milliseconds with their spread, and the percentage of the baseline's.

        Args:
            name: A key of `TIMES`.
        """
        milliseconds, spread = getattr(self, f"{name}_ms"), getattr(self, f"{name}_iqr_ms")
        shown = "" if spread is None else f" ± {spread:.3f}"
        return _format(milliseconds, ".3f") + shown, _format(_percent(getattr(self, name)), ".1f")


def final_table(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and cells of the table of all networks."""
    has_top5 = any(row.test_error_top5 is not None for row in rows)
    headings = (*HEADINGS[:2], TOP5, *HEADINGS[2:]) if has_top5 else HEADINGS
    return headings, [row.cells(has_top5=has_top5) for row in rows]


def file_table(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and cells of the table of files."""
    has_top5 = any(row.onnx_test_error_top5 is not None for row in rows)
    headings = (*FILE_HEADINGS, f"ONNX {TOP5}") if has_top5 else FILE_HEADINGS
    return headings, [row.file_cells(has_top5=has_top5) for row in rows]


def to_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows of `table.csv`; what is told of many classes alone is left out of others."""
    of_many = [name for name in Row._fields if name.endswith("_top5")]
    empty = {name for name in of_many if all(getattr(row, name) is None for row in rows)}
    return [{k: v for k, v in row._asdict().items() if k not in empty} for row in rows]


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _format(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """Return rows with their times as fractions of the first row's, where both are known."""
    first = rows[0]

    def ratios(row: Row) -> dict[str, Any]:
        both = {name: (getattr(row, f"{name}_ms"), getattr(first, f"{name}_ms")) for name in TIMES}
        return {name: mine / base for name, (mine, base) in both.items() if mine and base}

    return [row._replace(**ratios(row)) for row in rows]


def read_rows(path: Path) -> list[Row]:
    """Read the final table from the CSV file of a finished run.

    Files of earlier versions lack columns of times, those of few classes top-5 errors: these
    are None.

    Raises:
        ValueError: If it is no such table.
    """
    kinds = typing.get_type_hints(Row)
    needed = [name for name in kinds if name not in Row._field_defaults]
    table = parse(path, read_table(path, needed), kinds).reindex(columns=[*kinds])
    rows = table.astype(object).itertuples(index=False)
    values = ((None if value != value else value for value in row) for row in rows)
    found = [Row._make(row) for row in values]
    return with_ratios(found) if found else []


def best_row(rows: Sequence[Row]) -> Row:
    """Return the network to take: within its budgets, with the highest validation accuracy.

    Ties go to fewer evaluations. Where nothing is within the budgets, the smallest counts.

    Args:
        rows: The final table; the first row, the baseline, does not compete.
    """
    fitting = [row for row in rows[1:] if row.within_budget]
    if not fitting:
        return min(rows[1:], key=lambda row: row.size_bytes)
    return max(fitting, key=lambda row: (row.validation_accuracy, -row.n_evaluations))


def print_rows(console: Console, rows: list[Row]) -> None:
    """Print the final tables."""
    title = "Final networks (*: over the size budget)"
    _print_table(console, title, *final_table(rows))
    _print_table(console, "Files", *file_table(rows))
    names = _timed(rows)
    if names:
        title = "Milliseconds (percent of the baseline's)"
        lines = [(row.network, *(_brief(row, name) for name in names)) for row in rows]
        _print_table(console, title, ("network", *(TIMES[name] for name in names)), lines)


def _brief(row: Row, name: str) -> str:
    milliseconds, ratio = getattr(row, f"{name}_ms"), getattr(row, name)
    return "-" if ratio is None else f"{milliseconds:.3f} ({100 * ratio:.0f})"


def _timed(rows: Sequence[Row]) -> list[str]:
    """Return the keys of `TIMES` for which a network has a time."""
    return [name for name in TIMES if any(getattr(row, f"{name}_ms") is not None for row in rows)]


def _print_table(
    console: Console, title: str, headings: tuple[str, ...], lines: list[tuple[str, ...]]
) -> None:
    # Eight columns fit into 80 characters.
    table = Table(
        title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True
    )
    for number, heading in enumerate(headings):
        first = number == 0
        table.add_column(heading, justify="left" if first else "right", no_wrap=first)
    for line in lines:
        table.add_row(*map(Text, line))  # names are no markup
    console.print(table)


def format_noise(rows: Sequence[Row]) -> list[str]:
    """Say which times vary so much that they tell little, if any do."""

    def spread(row: Row, name: str) -> float:
        median, iqr = getattr(row, f"{name}_ms"), getattr(row, f"{name}_iqr_ms")
        return iqr / median if median and iqr is not None else 0.0

    noisy = [TIMES[n] for n in _timed(rows) if any(spread(row, n) > NOISY for row in rows)]
    if not noisy:
        return []
    return [f"The machine was busy, and these times tell little: {'; '.join(noisy)}."]


def format_times(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and cells of the table of times; no cells if nothing was timed.

    Milliseconds are medians ± the distance of the quartiles; what no network has is left out.
    """
    names = _timed(rows)
    headings = [[f"{TIMES[name]}, ms", "% of baseline"] for name in names]
    lines = [[cell for name in names for cell in row.time_cells(name)] for row in rows]
    return (
        ("network", *(heading for pair in headings for heading in pair)),
        [(row.network, *line) for row, line in zip(rows, lines, strict=True)] if names else [],
    )


def format_report(
    config: Any,
    rows: list[Row],
    unpruned: Mapping[str, str],
    unquantized: Mapping[str, str],
    notes: Sequence[str] = (),
    figures: Sequence[str] = (),
) -> str:
    """Format `report.md`.

    Args:
        config: The experiment's dataclass.
        rows: The final table.
        unpruned: Layers left out of the pruning walk, with the reason.
        unquantized: Weights that stay float32, with the reason.
        notes: Paragraphs to put below the tables.
        figures: Names of the figures beside it.
    """
    headings, times = format_times(rows)
    settings = [(k, str(v)) for k, v in dataclasses.asdict(config).items()]
    return "\n".join(
        [
            f"# {config.title}: {config.searcher}",
            "",
            format_markdown(*final_table(rows)),
            "",
            format_markdown(*file_table(rows)),
            "",
            *([format_markdown(headings, times), ""] if times else []),
            *(line for note in notes for line in (note, "")),
            "Errors are on the test images, which no search has seen. Sizes are bytes on disk:",
            "float32 safetensors for the baseline, packed files for the others.",
            "MACs and parameters count tensors as they are; sparse ones count what is not zero,",
            "which does not make dense kernels faster.",
            "The best episode of each search was chosen by reward (validation). A size with a star",
            "is over the budget: 8 bits know none, and so little may have been pruned that 1 bit",
            "everywhere does not meet it.",
            "",
            *(f"![{name.removesuffix('.png')}]({name})" for name in figures),
            "",
            "Layers left out of the pruning walk:",
            "",
            *_listed(unpruned),
            "",
            "Weights that quantization leaves as float32:",
            "",
            *_listed(unquantized),
            "",
            "Settings:",
            "",
            format_markdown(("setting", "value"), settings),
            "",
        ]
    )


def _listed(reasons: Mapping[str, str]) -> list[str]:
    return [f"- `{name}`: {reason}" for name, reason in reasons.items()] or ["None."]
