"""What `render()` shows: the layers decided so far as a table and as bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["draw_bars", "format_table"]


class Decided(Protocol):
    """What is shown of a layer."""

    @property
    def layer(self) -> str:
        """Dotted name."""

    @property
    def value(self) -> float:
        """Executed pruning rate or bits."""

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy after the step, a fraction."""

    @property
    def cost(self) -> float | None:
        """Live cost after the step, None where it was not measured."""


def format_table(value_name: str, history: Sequence[Decided], full_cost: float) -> str:
    """Format the layers decided so far, one a line; the cost is in percent of `full_cost`."""
    lines = [f"{'layer':<24} {value_name:>12} {'accuracy':>9} {'cost %':>7}"]
    for row in history:
        accuracy = "-" if row.accuracy is None else f"{row.accuracy:.4f}"
        cost = "-" if row.cost is None else f"{100.0 * row.cost / full_cost:.2f}"
        lines.append(f"{row.layer:<24} {row.value:>12.4g} {accuracy:>9} {cost:>7}")
    return "\n".join(lines)


def draw_bars(
    value_name: str, layers: Sequence[str], history: Sequence[Decided], limit: float
) -> NDArray[np.uint8]:
    """Draw one bar per layer, those not yet decided left empty: (400, 600, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # only where something is drawn
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    values = [row.value for row in history] + [0.0] * (len(layers) - len(history))
    axes.bar(range(len(layers)), values, color="tab:blue")
    axes.set_xticks(range(len(layers)), layers, rotation=45, ha="right")
    axes.set_ylim(0, limit)
    axes.set_ylabel(value_name)
    accuracy = history[-1].accuracy if history else None
    axes.set_title("" if accuracy is None else f"validation accuracy {accuracy:.4f}")
    canvas.draw()  # type: ignore[no-untyped-call]
    rgba = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    pixels: NDArray[np.uint8] = rgba[..., :3].copy()
    return pixels
