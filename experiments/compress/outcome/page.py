"""`report.html`: what a run has come to, on one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from experiments.compress.outcome.report import Row, file_table, final_table, format_times

__all__ = ["Figure", "Page", "format_headline", "format_page", "format_snippets"]


@dataclass(frozen=True)
class Figure:
    """A drawing with what it shows."""

    svg: str
    """An `<svg>` element."""
    caption: str
    """A sentence or two."""


@dataclass(frozen=True)
class Page:
    """The contents of the page."""

    title: str
    """The task."""
    rows: Sequence[Row]
    """The final table; the first is the baseline."""
    chosen: str
    """The row that the page is about."""
    macs: str
    """Which multiply-accumulates count: dense or sparse."""
    budgets: Mapping[str, float]
    """Highest fraction of the baseline's, by what is limited."""
    removed: str
    """What pruning removes of a layer: its input channels, or weights."""
    rates: Mapping[str, float]
    """Pruning rate by layer; empty if nothing was pruned."""
    bits: Mapping[str, float]
    """Bits by layer; empty if nothing was quantized."""
    unpruned: Mapping[str, str]
    """Layers left out of the pruning walk, with the reason."""
    unquantized: Mapping[str, str]
    """Weights that stay float32, with the reason."""
    figures: Sequence[Figure]
    """Drawings."""
    notes: Sequence[str]
    """Paragraphs below the tables."""
    snippets: Mapping[str, str]
    """Python code by what it does."""
    settings: Mapping[str, Any]
    """Settings, versions and hardware of the run."""


def format_page(page: Page) -> str:
    """Return the page, in HTML; all texts but the drawings are escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = (
        files("experiments.compress.outcome")
        .joinpath("page.html.jinja")
        .read_text(encoding="utf-8")
    )
    rows, chosen = page.rows, _find(page.rows, page.chosen)
    time_headings, times = format_times(rows)
    tables = [
        ("", *final_table(rows)),
        ("Time", time_headings, times),
        ("Files", *file_table(rows)),
    ]
    return environment.from_string(source).render(
        page=page,
        headline=format_headline(rows[0], chosen, page.macs),
        verdicts=[_format_budgets(page.budgets, chosen), *_format_rivals(rows, chosen)],
        tables=[table for table in tables if table[2]],
        layers=_layers(page),
        left_out={
            "Not pruned": _by_reason(page.unpruned),
            "Not quantized, but stored as float32": _by_reason(page.unquantized),
        },
        svgs=[Markup(figure.svg) for figure in page.figures],
    )


def _find(rows: Sequence[Row], name: str) -> Row:
    return next(row for row in rows if row.network == name)


def format_headline(baseline: Row, chosen: Row, macs: str = "dense") -> str:
    """Say in a sentence what a network costs, how good and how fast it is, beside the baseline.

    Args:
        baseline: The unpruned network.
        chosen: The other one.
        macs: Which multiply-accumulates count: dense, or those by non-zero weights (sparse).
    """
    sparse = macs == "sparse"
    what = "multiply-accumulates" + (" by non-zero weights" if sparse else "")
    costs = {what: chosen.sparse_macs if sparse else chosen.macs, "bytes": chosen.size}
    shown = [f"{_percent(x)} of the {name}" for name, x in costs.items() if x != 1.0]
    start = f"At {' and '.join(shown)}" if shown else "At the same cost"
    right = f"{100 * (1 - chosen.test_error):.1f} % right"
    change = _format_change(baseline.test_error - chosen.test_error)
    five = _format_five(baseline.test_error_top5, chosen.test_error_top5)
    return f"{start} the network gets {right}, {change}{five}{_format_time(chosen)}."


def _percent(fraction: float) -> str:
    """Format with a digit more where a whole number would say too little."""
    form = ".0f" if 0.1 <= fraction <= 0.99 or fraction > 1.01 else ".1f"
    return f"{100 * fraction:{form}}".removesuffix(".0") + " %"


def _format_change(gain: float) -> str:
    points = f"{100 * abs(gain):.1f}"
    if points == "0.0":
        return "as much as before"
    return f"{points} points {'more' if gain > 0 else 'less'} than before"


def _format_five(baseline: float | None, chosen: float | None) -> str:
    if baseline is None or chosen is None:
        return ""
    right = f"{100 * (1 - chosen):.1f} % among its five best"
    return f", and {right}, {_format_change(baseline - chosen)}"


def _format_time(chosen: Row) -> str:
    times = {"onnxruntime": chosen.latency_1, "PyTorch": chosen.torch_latency_1}
    known = {name: ratio for name, ratio in times.items() if ratio is not None}
    if not known:
        return ""
    name, ratio = next(iter(known.items()))
    percent = f"{100 * ratio:.0f}"
    time = "as long as before" if percent == "100" else f"{percent} % of the time"
    return f"; one image takes {time} in {name}"


def _format_budgets(budgets: Mapping[str, float], chosen: Row) -> str:
    limits = " and ".join(f"{100 * limit:.3g} % of the {name}" for name, limit in budgets.items())
    met = "It keeps to" if chosen.within_budget else "It does not keep to"
    return f"{met} what was allowed: at most {limits}." if budgets else ""


def _format_rivals(rows: Sequence[Row], chosen: Row) -> list[str]:
    """Name the other networks within the budgets that are no worse in anything, and better."""

    def values(row: Row) -> tuple[float, ...]:
        return row.test_error, row.macs, row.sparse_macs, row.size

    mine = values(chosen)
    rivals = [
        row.network
        for row in rows[1:]
        if row.within_budget
        and values(row) != mine
        and all(theirs <= own for theirs, own in zip(values(row), mine, strict=True))
    ]
    if not rivals:
        return []
    return [f"No worse in error, multiply-accumulates and bytes: {', '.join(rivals)}."]


def _layers(page: Page) -> list[tuple[str, float | None, float | None]]:
    """Return name, pruning rate and bits of every layer that was decided."""
    names = dict.fromkeys([*page.bits, *page.rates])
    return [(name, page.rates.get(name), page.bits.get(name)) for name in names]


def _by_reason(names: Mapping[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for name, reason in names.items():
        reasons.setdefault(reason, []).append(name)
    return reasons


def format_snippets(
    name: str, build: str, shape: tuple[int, int, int], *, has_onnx: bool
) -> dict[str, str]:
    """Return Python code that loads a network's files from the run folder, by what it does.

    Args:
        name: Name of the files, without suffix.
        build: Code that makes the unpruned network: a call of `build_model`, or of a class.
        shape: (C, H, W) of an image.
        has_onnx: Whether there is an ONNX file.
    """
    is_named = build.startswith("build_model(")
    argument = "" if is_named else f", {build}"
    imported = "from compress_env.networks.models import build_model\n" if is_named else ""
    snippets = {
        "The packed file, quantizers attached": f"""\
import compress_env

network = compress_env.load({name + ".cenv"!r}{argument})
# Plain float32 weights from here on: compress_env.bake(network)
""",
        "The same weights as float32": f"""\
from safetensors.torch import load_file

{imported}from compress_env.quantization.shrinking import load_into

network = {build}
load_into(network, load_file({name + ".safetensors"!r}))  # takes the pruned shapes
network.eval()
""",
    }
    if has_onnx:
        snippets["ONNX, without PyTorch"] = f"""\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession({name + ".onnx"!r})
images = np.zeros({(1, *shape)}, np.float32)  # any number of images
(logits,) = session.run(None, {{"images": images}})
"""
    return snippets
