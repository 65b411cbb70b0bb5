"""What figures share, and the figures of a search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray

from experiments.common.intervals import mean_interval
from experiments.search.episodes import Episode

__all__ = [
    "beside",
    "draw_layers",
    "draw_means",
    "draw_pareto",
    "draw_rewards",
    "draw_tradeoff",
    "make_panels",
    "name_lines",
    "non_dominated",
    "pareto_front",
]

WINDOW = 10
MIDTONES = LinearSegmentedColormap.from_list("midtones", ["#2f78c4", "#9a5fb8", "#e0533d"])
"""Colours that stand out on white and on black."""


def make_panels(
    n_rows: int, n_columns: int, size: tuple[float, float], **sharing: Any
) -> tuple[Figure, NDArray[Any]]:
    """Return a figure and its axes, (n_rows, n_columns).

    Args:
        n_rows: Panels above each other.
        n_columns: Panels side by side.
        size: Width and height in inches.
        sharing: `sharex` and `sharey`, as in `Figure.subplots`.
    """
    figure = Figure(figsize=size, layout="constrained")
    panels: NDArray[Any] = figure.subplots(n_rows, n_columns, squeeze=False, **sharing)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    return figure, panels


def name_lines(figure: Figure, title: str, ncols: int = 6) -> None:
    """Put a title above a figure, and below it the names of the lines in its first panel."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(ncols, len(labels)))
    figure.suptitle(title)


def draw_means(axes: Axes, places: ArrayLike, samples: Iterable[ArrayLike], **style: Any) -> None:
    """Draw a line through means over seeds, with their 95 % intervals as error bars.

    Args:
        axes: Where to draw.
        places: (n,) on the x axis.
        samples: One number per seed for each place.
        style: As in `Axes.errorbar`.
    """
    found = [mean_interval(sample) for sample in samples]
    reach = np.array([each.reach for each in found], np.float64).reshape(-1, 2)  # (n, 2)
    means = [each.value for each in found]
    axes.errorbar(places, means, reach.T, marker=".", capsize=2, **style)


def beside(number: int, n: int, step: float) -> float:
    """Return by how much the `number`-th of `n` lines or bars is moved, as they would overlap."""
    return step * (number - (n - 1) / 2)


def draw_rewards(rewards: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Draw the reward of every episode and its running mean over 10 episodes, by search."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, values) in enumerate(rewards.items()):
        color = f"C{number}"
        if len(values) == 1:
            axes.axhline(values[0], color=color, linestyle="--", label=f"{name}, its only episode")
            continue
        axes.plot(values, ".", color=color, alpha=0.3, markersize=4)
        axes.plot(_running_mean(values), color=color, label=f"{name}, mean of last {WINDOW}")
    axes.set(xlabel="episode", ylabel="reward", title=title)
    axes.legend()
    return figure


def _running_mean(values: Sequence[float]) -> NDArray[np.float64]:
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - WINDOW, 0)
    mean: NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return mean


def draw_layers(chosen: dict[str, Episode], xlabel: str, title: str) -> Figure:
    """Draw the executed value of every layer as bars, one colour per search, a row per layer."""
    layers = next(iter(chosen.values())).layers
    height = max(4.0, 1.2 + len(layers) * (0.1 + 0.09 * len(chosen)))
    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.subplots()
    thickness = 0.8 / len(chosen)
    for number, (name, episode) in enumerate(chosen.items()):
        places = np.arange(len(layers)) + beside(number, len(chosen), thickness)
        axes.barh(places, episode.values, thickness, label=name)
    axes.set_yticks(range(len(layers)), layers)
    axes.set_ylim(len(layers) - 0.5, -0.5)  # the first layer on top
    axes.set(xlabel=xlabel, title=title)
    figure.legend(loc="outside right upper")
    return figure


def draw_tradeoff(
    episodes: Mapping[str, Sequence[Episode]],
    xlabel: str,
    title: str,
    *,
    chosen: Mapping[str, Episode] = MappingProxyType({}),
    budget: float = float("inf"),
) -> Figure:
    """Draw accuracy against cost of every finished episode, with the Pareto front marked.

    Args:
        episodes: Episodes by the name of their search.
        xlabel: What it is that costs, with its unit.
        title: What to write above.
        chosen: Episodes whose networks were chosen, by the name they go by.
        budget: Highest cost allowed; infinite for none.
    """
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    finished = [e for search in episodes.values() for e in search if e.accuracy is not None]
    for name, search in episodes.items():
        points = _points([e for e in search if e.accuracy is not None])
        style = {"marker": ".", "alpha": 0.5} if len(points) > 1 else {"marker": "s"}
        axes.plot(*points.T, linestyle="none", label=name, **style)
    _draw_front(axes, finished)
    _mark(axes, chosen, budget, "budget")
    _label(axes, xlabel, title)
    axes.xaxis.set_major_formatter(EngFormatter())
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _points(episodes: Sequence[Episode]) -> NDArray[np.float64]:
    """Return cost and accuracy of episodes, (n, 2)."""
    return np.array([(e.cost, e.accuracy) for e in episodes], np.float64).reshape(-1, 2)


def _draw_front(axes: Axes, episodes: Sequence[Episode]) -> None:
    costs, accuracies = _points(episodes).T
    front = pareto_front(costs, accuracies)
    ink = rcParams["text.color"]
    axes.step(costs[front], accuracies[front], color=ink, linewidth=1, where="post", zorder=1)
    style: dict[str, Any] = {
        "marker": "o",
        "markersize": 8,
        "markerfacecolor": "none",
        "linestyle": "none",
    }
    axes.plot(costs[front], accuracies[front], color=ink, label="Pareto front", **style)


def _mark(axes: Axes, chosen: Mapping[str, Episode], budget: float, label: str) -> None:
    """Mark chosen networks with stars, and a finite budget with a line."""
    for name, episode in chosen.items():
        star: dict[str, Any] = {
            "marker": "*",
            "markersize": 14,
            "color": "#f2b01e",
            "linestyle": "none",
        }
        star |= {"markeredgecolor": rcParams["text.color"], "markeredgewidth": 0.6}
        axes.plot(*_points([episode]).T, label=f"chosen: {name}", **star)
    if np.isfinite(budget):
        axes.axvline(budget, color=rcParams["text.color"], linestyle="--", linewidth=1, label=label)


def _label(axes: Axes, xlabel: str, title: str) -> None:
    axes.set(xlabel=xlabel, ylabel="validation images right, %", title=title)
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.5g}")


def pareto_front(costs: ArrayLike, accuracies: ArrayLike) -> NDArray[np.int64]:
    """Return the indices of the points that no other beats in both, by rising cost.

    Args:
        costs: (n,) lower is better.
        accuracies: (n,) higher is better.
    """
    cost, accuracy = np.asarray(costs, np.float64), np.asarray(accuracies, np.float64)
    order = np.lexsort((-accuracy, cost))
    best_before = np.maximum.accumulate(np.concatenate([[-np.inf], accuracy[order][:-1]]))
    front: NDArray[np.int64] = order[accuracy[order] > best_before]
    return front


def non_dominated(costs: ArrayLike, accuracies: ArrayLike) -> NDArray[np.int64]:
    """Return the indices of the points that no other beats, by rising first cost.

    A point beats another if it is no worse in anything and better in something; of equal points the
    first is kept.

    Args:
        costs: (n, k) lower is better.
        accuracies: (n,) higher is better.
    """
    points = np.column_stack([np.asarray(costs, np.float64), -np.asarray(accuracies, np.float64)])
    _, first = np.unique(points, axis=0, return_index=True)
    # np.unique sorts by the first column, then the next: nothing is beaten by what comes later.
    front = [i for i in first if not _is_beaten(points[i], points[first])]
    return np.array(front, np.int64)


def _is_beaten(point: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    no_worse, better = (others <= point).all(axis=1), (others < point).any(axis=1)
    return bool((no_worse & better).any())


def draw_pareto(
    episodes: Sequence[Episode],
    chosen: Mapping[str, Episode],
    baseline: tuple[float, float],
    budget: float,
    *,
    cost: str,
    title: str,
) -> Figure:
    """Draw accuracy against cost of pruned networks, coloured by their non-zero parameters.

    Rings mark the networks that no other drawn one beats in cost and accuracy.

    Args:
        episodes: Finished episodes.
        chosen: The one whose network was chosen, by the name it goes by.
        baseline: Cost and accuracy of the unpruned network.
        budget: Highest cost allowed; infinite for none.
        cost: What it is that costs.
        title: What to write above.
    """
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    full, accuracy = baseline
    costs, accuracies = _points(episodes).T
    n_params = [e.sparse_params for e in episodes]
    dots = axes.scatter(costs, accuracies, c=n_params, s=14, cmap=MIDTONES, zorder=2)
    figure.colorbar(dots, label="non-zero parameters", format=EngFormatter())
    _draw_front(axes, episodes)
    axes.plot(full, accuracy, "D", color="C7", markersize=9, label="baseline")
    _mark(axes, chosen, budget, f"budget: {100 * budget / full:.3g} %")
    _label(axes, f"{cost}, % of the baseline's", title)
    _scale_percents(axes, full, float(costs.min()))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _scale_percents(axes: Axes, full: float, lowest: float) -> None:
    """Show costs as percents of the full one, on a logarithmic axis if they lie far apart."""
    if 3 * lowest < full:
        axes.set_xscale("log")
        percents = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
        axes.set_xticks([p * full / 100 for p in percents if 70 * lowest < p * full])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x / full:.3g}")
