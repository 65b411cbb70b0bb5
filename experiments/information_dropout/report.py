"""What the rows of information dropout say, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from experiments.common.drawing.intervals import format_ends, format_mean
from experiments.common.drawing.outputs import format_markdown
from experiments.common.intervals import Interval, mean_interval, paired_interval

__all__ = ["format_report"]

LEVEL = 0.05
TRAINED = "trained"
MEASURES = {
    "test_accuracy": "test accuracy without noise, %",
    "information_strokes": "strokes, nats per pixel",
    "information_background": "background, nats per pixel",
    "information_far": "background that sees neither stroke nor edge, nats per pixel",
    "ratio": "ratio strokes / background, mean over test images",
    "ratio_far": "ratio strokes / background that sees neither, mean over test images",
    "images_higher": "test images with more at strokes, %",
}
PERCENT = ("test_accuracy", "images_higher")


def format_report(rows: pd.DataFrame, units: pd.DataFrame, title: str) -> str:
    """Format the verdict and the tables.

    Args:
        rows: One for each network, kind and seed.
        units: One for each network, seed, place and channel.
        title: Networks and data set.
    """
    parts = [
        f"# Information dropout: {title}",
        f"{rows['seed'].nunique()} seeds; means over seeds and 95 % intervals (Student).",
    ]
    for model, own in rows.groupby("model", sort=False):
        trained = own[own["kind"] == TRAINED]
        parts += [
            f"## {model}",
            *_format_pixels(own),
            _format_noise(trained, units[units["model"] == model]),
            *(f"![{name}]({name}-{model}.png)" for name in ("information", "weights", "noise")),
        ]
    return "\n\n".join(parts) + "\n"


def _format_pixels(rows: pd.DataFrame) -> list[str]:
    """Say whether strokes keep more information than the background, and whether digits matter."""
    kinds = list(dict.fromkeys(rows["kind"]))
    lines = []
    for name, text in MEASURES.items():
        scale = 100.0 if name in PERCENT else 1.0
        cells = (_number(scale * rows.loc[rows["kind"] == kind, name]) for kind in kinds)
        lines.append((text, *cells))
    heads = ("information of the first convolution", *(kind.replace("_", " ") for kind in kinds))
    return [_format_verdict(rows, kinds), format_markdown(heads, lines)]


def _format_verdict(rows: pd.DataFrame, kinds: Sequence[str]) -> str:
    """Judge the claim: by the trained network's ratio, and by how it differs from the controls'."""
    claim = "The claim that the first layer passes the digit on rather than the background"
    own, differences = _against_controls(rows, kinds, rows["ratio"])
    if len(own) < 2:
        return f"**{claim}: one seed, no interval.**"
    side = mean_interval(own - 1.0).side
    sides = {kind: difference.side for kind, difference in differences.items()}
    if side == "above" and all(each == "above" for each in sides.values()):
        verdict = "holds, and more than for either control"
    elif side == "above":
        same = ", ".join(kind.replace("_", " ") for kind, s in sides.items() if s != "above")
        verdict = f"strokes keep more, but not more than in a control ({same}): not due to digits"
    else:
        verdict = {"below": "fails", "undecided": "undecided"}[side]
    contrast = rows["information_strokes"] - rows["information_background"]
    own, in_nats = _against_controls(rows, kinds, contrast)
    return (
        f"**{claim}: {verdict}**, by the ratio of information, which differs from that of "
        f"{_listed(differences)}. Strokes keep {_number(own)} nats per pixel more than the "
        f"background; that differs from that of {_listed(in_nats)}."
    )


def _against_controls(
    rows: pd.DataFrame, kinds: Sequence[str], values: pd.Series
) -> tuple[pd.Series, dict[str, Interval]]:
    """Return the trained network's values by seed, and how they differ from each control's."""
    by_seed = {
        kind: values[rows["kind"] == kind].set_axis(rows.loc[rows["kind"] == kind, "seed"])
        for kind in kinds
    }
    own = by_seed.pop(TRAINED)
    return own, {kind: paired_interval(own, other[own.index]) for kind, other in by_seed.items()}


def _listed(differences: dict[str, Interval]) -> str:
    return " and of ".join(
        f"{kind.replace('_', ' ')} by {format_ends(difference, 3, '+')}"
        for kind, difference in differences.items()
    )


def _format_noise(rows: pd.DataFrame, units: pd.DataFrame) -> str:
    """Say how well the two moment equations recover the parameters."""
    error = (units["fitted_sigma"] - units["alpha"]).abs() / units["alpha"]
    rejected = float((units["p_true"] < LEVEL).mean())
    lines = [
        ("units", f"{len(units)}"),
        ("alpha", f"{units['alpha'].min():.3f} to {units['alpha'].max():.3f}"),
        ("relative error of sigma, median and largest", f"{error.median():.4f}, {error.max():.4f}"),
        (
            "error of mu, largest",
            f"{(units['fitted_mu'] - units['true_mu']).abs().max():.5f}",
        ),
        ("distance of new samples to the fit, largest", f"{units['ks_fitted'].max():.4f}"),
        (f"units whose true log-normal is rejected at {LEVEL}", f"{100 * rejected:.1f} %"),
        ("all units of the layer: mean of the noise", _number(rows["pooled_mean"])),
        ("all units of the layer: distance to a fit", _number(rows["pooled_ks"])),
    ]
    return (
        "A unit's noise is log-normal by construction; what is tested is that the network's noise "
        "is as constructed and that the two moment equations find its parameters. The noise of "
        "all units together is a mixture of log-normals of different widths. Distances are "
        "Kolmogorov-Smirnov's.\n\n" + format_markdown(("noise of the first convolution", ""), lines)
    )


def _number(values: pd.Series) -> str:
    return format_mean(values.to_numpy(), 3)
