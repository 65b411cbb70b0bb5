"""What figures share, and the figures of a search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from experiments.search.episodes import Episode
from experiments.tables.tables import mean_interval

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
    intervals = np.array([mean_interval(sample) for sample in samples], np.float64)
    means, halves = intervals.reshape(-1, 2).T
    axes.errorbar(places, means, halves, marker=".", capsize=2, **style)


def beside(number: int, n: int, step: float) -> float:
    """Return by how much the `number`-th of `n` lines or bars is moved, as they would overlap."""
    return step * (number - (n - 1) / 2)


def draw_rewards(rewards: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Draw the reward of every episode and its running mean over 10 episodes, by search."""
    figure, axes = _one_panel()
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


def _one_panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4), layout="constrained")
    return figure, figure.subplots()


def _running_mean(values: Sequence[float]) -> NDArray[np.float64]:
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - WINDOW, 0)
    mean: NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return mean


def draw_layers(chosen: dict[str, Episode], ylabel: str, title: str) -> Figure:
    """Draw the executed value of every layer as bars, one colour per search."""
    figure, axes = _one_panel()
    layers = next(iter(chosen.values())).layers
    width = 0.8 / len(chosen)
    for number, (name, episode) in enumerate(chosen.items()):
        places = np.arange(len(layers)) + beside(number, len(chosen), width)
        axes.bar(places, episode.values, width, label=name)
    axes.set_xticks(range(len(layers)), layers)
    axes.set(xlabel="layer", ylabel=ylabel, title=title)
    figure.legend(loc="outside right upper")
    return figure


def draw_tradeoff(episodes: Mapping[str, Sequence[Episode]], xlabel: str, title: str) -> Figure:
    """Draw accuracy against cost of every finished episode, with the Pareto front marked."""
    figure, axes = _one_panel()
    finished = [e for search in episodes.values() for e in search if e.accuracy is not None]
    for name, search in episodes.items():
        points = [(e.cost, e.accuracy) for e in search if e.accuracy is not None]
        style = {"marker": ".", "alpha": 0.5} if len(points) > 1 else {"marker": "s"}
        axes.plot(*zip(*points, strict=True), linestyle="none", label=name, **style)
    costs = np.array([e.cost for e in finished])
    accuracies = np.array([e.accuracy for e in finished], np.float64)
    front = pareto_front(costs, accuracies)
    axes.step(
        costs[front], accuracies[front], "k-o", where="post", markersize=4, label="Pareto front"
    )
    axes.set(xlabel=xlabel, ylabel="validation accuracy", title=title)
    figure.legend(loc="outside right upper")
    return figure


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


def draw_pareto(episodes: Sequence[Episode], front: Sequence[Episode]) -> Figure:
    """Draw accuracy against dense MACs, coloured by non-zero parameters; the front is ringed."""
    figure, axes = _one_panel()
    points = axes.scatter(
        [e.dense_macs for e in episodes],
        [e.accuracy or 0.0 for e in episodes],
        c=[e.sparse_params for e in episodes],
        s=12,
        cmap="viridis",
    )
    ringed = ([e.dense_macs for e in front], [e.accuracy or 0.0 for e in front])
    axes.scatter(*ringed, s=60, facecolors="none", edgecolors="k", label="not dominated")
    figure.colorbar(points, label="non-zero parameters")
    axes.set(xlabel="dense multiply-accumulates per image", ylabel="validation accuracy")
    axes.set_title("Pruned networks: MACs, non-zero parameters, accuracy")
    axes.legend(loc="lower right")
    return figure
