"""What the rows of information dropout say, as Markdown."""

from __future__ import annotations

import pandas as pd

from experiments.common.drawing.intervals import format_mean, student_interval
from experiments.common.drawing.outputs import format_markdown

__all__ = ["format_report"]

LEVEL = 0.05
VERDICTS = {"above": "holds", "below": "fails", "undecided": "undecided"}
"""What is said of the claim, by the side of the ratio's difference to 1."""


def format_report(rows: pd.DataFrame, units: pd.DataFrame, title: str) -> str:
    """Format the verdict and the tables.

    Args:
        rows: One for each seed.
        units: One for each seed, place and channel.
        title: Network and data set.
    """
    parts = [
        f"# Information dropout: {title}",
        f"{len(rows)} seeds; means over seeds and 95 % intervals (Student). Test accuracy without "
        f"noise {_percent(rows['test_accuracy'])}.",
        "## What is passed on",
        _format_pixels(rows),
        "## Noise",
        _format_noise(rows, units),
        "![information](information.png)",
        "![weights](weights.png)",
        "![noise](noise.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _format_pixels(rows: pd.DataFrame) -> str:
    """Say whether strokes keep more information than the background."""
    verdict = "one seed: no interval"
    if len(rows) > 1:
        verdict = VERDICTS[student_interval(rows["ratio"] - 1.0).side]
    names = {
        "information_strokes": "strokes, nats per pixel",
        "information_background": "background, nats per pixel",
        "information_far": "background that sees neither stroke nor edge, nats per pixel",
        "ratio": "ratio strokes / background, mean over test images",
        "ratio_far": "ratio strokes / background that sees neither, mean over test images",
    }
    lines = [(text, _number(rows[name])) for name, text in names.items()]
    lines.append(("test images with more at strokes", _percent(rows["images_higher"])))
    return (
        f"**The claim that the first layer passes the digit on rather than the background: "
        f"{verdict}.**\n\n" + format_markdown(("information of the first convolution", ""), lines)
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


def _percent(fractions: pd.Series) -> str:
    return f"{format_mean(100.0 * fractions.to_numpy())} %"
