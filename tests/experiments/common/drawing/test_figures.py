"""What figures of a search mark, and how they name it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.common.drawing.figures import draw_layers, draw_pareto, draw_tradeoff
from tests.fakes import EPISODE

EPISODES = [
    replace(EPISODE, cost=cost, accuracy=accuracy, sparse_params=n)
    for cost, accuracy, n in [(10.0, 0.8, 9), (20.0, 0.7, 1), (30.0, 0.9, 5)]
]


def lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    found = {str(line.get_label()): line for line in figure.axes[0].lines}
    return {
        name: (np.ravel(line.get_xdata()).tolist(), np.ravel(line.get_ydata()).tolist())
        for name, line in found.items()
    }


def test_pareto_figure_rings_no_dominated_dot_and_names_what_it_marks() -> None:
    figure = draw_pareto(
        EPISODES, {"ppo": EPISODES[2]}, (100.0, 0.95), 40.0, cost="MACs", title="task"
    )
    shown = lines(figure)
    assert shown["Pareto front"] == ([10.0, 30.0], [0.8, 0.9])  # few parameters are no excuse
    assert shown["baseline"] == ([100.0], [0.95])
    assert shown["chosen: ppo"] == ([30.0], [0.9])
    assert shown["budget: 40 %"][0] == [40.0, 40.0]
    axes = figure.axes[0]
    assert (axes.get_title(), axes.get_xlabel()) == ("task", "MACs, % of the baseline's")
    assert axes.get_xscale() == "log" and "%" in axes.get_ylabel()
    assert [axes.xaxis.get_major_formatter()(x) for x in (10.0, 50.0, 0.5)] == ["10", "50", "0.5"]


def test_pareto_figure_without_budget_and_near_the_baseline_is_linear() -> None:
    infinite = float("inf")
    figure = draw_pareto(EPISODES, {}, (29.0, 0.95), infinite, cost="MACs", title="task")
    assert figure.axes[0].get_xscale() == "linear"
    assert not any("budget" in name for name in lines(figure))


@pytest.mark.parametrize("is_marked", [False, True])
def test_tradeoff_marks_front_choice_and_budget(is_marked: bool) -> None:
    failed = replace(EPISODE, accuracy=None)
    searches = {"ppo": EPISODES, "uniform": [EPISODES[1]], "random": [failed]}
    figure = (
        draw_tradeoff(searches, "bytes", "task", chosen={"ppo": EPISODES[0]}, budget=25.0)
        if is_marked
        else draw_tradeoff(searches, "bytes", "task")
    )
    shown = lines(figure)
    assert shown["Pareto front"] == ([10.0, 30.0], [0.8, 0.9])
    assert shown["ppo"][0] == [10.0, 20.0, 30.0] and shown["random"][0] == []
    assert ("budget" in shown) == ("chosen: ppo" in shown) == is_marked


def test_layers_are_rows_from_the_first_to_the_last() -> None:
    many = replace(EPISODE, layers=tuple(f"stage.{i}.conv" for i in range(60)), values=(0.5,) * 60)
    figure = draw_layers({"a": many, "b": many}, "pruning rate", "task")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == list(many.layers)
    low, high = axes.get_ylim()
    assert low > high and len(axes.patches) == 120
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in pairwise(boxes))
