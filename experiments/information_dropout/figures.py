"""Figures of information dropout: what is passed on, the weights, and the noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from experiments.common.drawing.figures import make_panels

__all__ = ["Noise", "draw_information", "draw_noise", "draw_weights"]

LogNormal = tuple[float, float]
"""Mean and standard deviation of the logarithm."""


class Noise(NamedTuple):
    """Samples of noise, and log-normals beside them."""

    heading: str
    """What the panel is called."""
    samples: NDArray[np.float64]
    """(n,) positive."""
    fitted: LogNormal
    """The one that was fitted."""
    true: LogNormal | None = None
    """The true one, if there is one."""


def draw_information(images: Tensor, information: Mapping[str, Tensor], title: str) -> Figure:
    """Draw images above the information kept at each of their pixels, a row for each network.

    Args:
        images: (b, C, H, W).
        information: (b, H, W), nats, by what the network is called. Each has a scale of its own.
        title: Of the figure.
    """
    n_rows = 1 + len(information)
    figure, axes = make_panels(n_rows, len(images), (1.0 + 1.5 * len(images), 0.6 + 1.5 * n_rows))
    for panel, image in zip(axes[0], images.mean(1).cpu().numpy(), strict=True):
        panel.imshow(image, cmap="gray")
    for row, (name, nats) in zip(axes[1:], information.items(), strict=True):
        low, high = float(nats.min()), float(nats.max())
        for panel, pixels in zip(row, nats.cpu().numpy(), strict=True):
            drawn = panel.imshow(pixels, cmap="viridis", vmin=low, vmax=high)
        row[0].set_ylabel(name.replace("_", " "))
        figure.colorbar(drawn, ax=list(row), label="nats per pixel")
    _without_ticks(axes)
    axes[0, 0].set_ylabel("input")
    figure.suptitle(title)
    return figure


def draw_weights(weights: Tensor, information: Tensor, title: str) -> Figure:
    """Draw the filters of a first layer, those that keep most information first.

    Args:
        weights: (N, C, H, W); the mean over input channels is shown.
        information: (N,) mean over images and positions, nats.
        title: Of the figure.
    """
    n_columns = min(8, len(weights))
    n_rows = math.ceil(len(weights) / n_columns)
    size = (0.8 + 1.3 * n_columns, 0.9 + 1.5 * n_rows)
    figure, axes = make_panels(n_rows, n_columns, size)
    shown = weights.detach().mean(1).cpu().numpy()  # (N, C, H, W) -> (N, H, W)
    bound = float(np.abs(shown).max())
    _without_ticks(axes)
    for panel in axes.flat[len(weights) :]:
        panel.set_axis_off()
    for panel, channel in zip(
        axes.flat, information.argsort(descending=True).tolist(), strict=False
    ):
        drawn = panel.imshow(shown[channel], cmap="coolwarm", vmin=-bound, vmax=bound)
        panel.set_title(f"{information[channel]:.3f} nats", fontsize=8)
    figure.colorbar(drawn, ax=list(axes.flat), label="weight")
    figure.suptitle(title)
    return figure


def _without_ticks(axes: NDArray[Any]) -> None:
    for panel in axes.flat:
        panel.set_xticks([])
        panel.set_yticks([])


def draw_noise(noises: Sequence[Noise], title: str) -> Figure:
    """Draw histograms of sampled noise with log-normal densities.

    Args:
        noises: A panel each.
        title: Of the figure.
    """
    figure, axes = make_panels(1, len(noises), (1.0 + 3.6 * len(noises), 3.6))
    for panel, (heading, samples, fitted, true) in zip(axes.flat, noises, strict=True):
        highest = float(np.quantile(samples, 0.999))
        style = {"color": "C0", "alpha": 0.4, "label": "noise"}
        panel.hist(samples, bins=80, range=(0.0, highest), density=True, **style)
        _draw_density(panel, highest, fitted, "C1", "fitted log-normal", "-")
        if true is not None:
            _draw_density(panel, highest, true, "k", "true log-normal", ":")
        panel.set(xlabel="noise", ylabel="density", title=heading)
        panel.legend(fontsize=8)
    figure.suptitle(title)
    return figure


def _draw_density(
    axes: Axes, highest: float, parameters: LogNormal, color: str, label: str, style: str
) -> None:
    mu, sigma = parameters
    x = np.linspace(highest / 500, highest, 500)
    density = stats.lognorm(s=sigma, scale=math.exp(mu)).pdf(x)
    axes.plot(x, density, style, color=color, label=label)
