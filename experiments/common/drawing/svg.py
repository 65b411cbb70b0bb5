"""Figures as SVG inside of a page: text and lines take the colour of the page's text."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

__all__ = ["to_svg"]

INK = "#0a0b0c"
"""Stands for the colour of the text until the figure is drawn."""
SIZE = (5.6, 4.2)
"""Inches: so small that letters can be read on a phone."""
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "figure.facecolor": "none",
    "font.size": 11.0,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def to_svg(draw: Callable[[], Figure], name: str, description: str) -> str:
    """Draw a figure as an `<svg>` element as wide as its place; equal figures give equal texts.

    Args:
        draw: Makes the figure.
        name: Different for every figure of a page.
        description: What the figure shows, for those who do not see it.
    """
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure = draw()
        figure.set_size_inches(*SIZE)
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    head, body = text[text.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="[\d. ]+"', head)
    assert box is not None
    # Numbers of groups are the same in every figure; nothing refers to them.
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    body = re.sub(r"<defs>\s*<style.*?</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;]*;", "", body)  # that of the page
    label = html.escape(description)
    element = f'<svg role="img" aria-label="{label}" {box[0]}>{body.strip()}'
    return element.replace(INK, "currentColor")
