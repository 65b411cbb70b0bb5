"""Anytime curves: which agents share a panel, and that they can be told apart there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from experiments.benchmark.curves import draw_anytime, draw_anytime_scores
from experiments.benchmark.table import Reference
from experiments.search.entrants import SINGLE

PRUNING = ("compress_env/PruneVGG8Digits-v1", "compress_env/PruneResNet20Digits-v1")
BITS = "compress_env/QuantizeVGG8Digits-v1"
KNOWN = {task: Reference(0.5, 0.9, "x") for task in (*PRUNING, BITS)}
SEARCHES = (
    *("random", "cma_es", "tpe", "ppo", "kl_ppo", "cim_ppo", "a2c", "ddpg", "td3", "sac"),
    *("cma_es+kl_curve", "cma_es+l1", "random+kl_curve", "ddpg+l1", "td3+l1"),
)


def trials_of(tasks: Iterable[str], agents: Iterable[str], accuracy: float = 0.7) -> pd.DataFrame:
    return pd.DataFrame(
        {"agent": agent, "task": task, "seed": 0, "n_evaluations": 1.0 + (agent not in SINGLE),
         "confirmed_30": accuracy, "confirmed_100": accuracy}
        for task in tasks
        for agent in agents
    )  # fmt: skip


def looks_in(axes: Axes) -> dict[str, tuple[Any, ...]]:
    return {
        str(line.get_label()): (
            line.get_color(),
            line.get_marker(),
            line.get_linestyle(),
            line.get_markerfacecolor(),
        )
        for line in axes.get_lines()
        if line.get_marker() != "_"  # the ends of intervals
    }


def test_no_two_agents_of_a_task_look_alike() -> None:
    agents = (*SINGLE, *SEARCHES)
    (axes,) = draw_anytime(trials_of(PRUNING[:1], agents)).axes
    looks = looks_in(axes)
    assert list(looks) == list(agents)
    assert len({(color, marker, face) for color, marker, _, face in looks.values()}) == len(agents)
    assert looks["cma_es"][0] == looks["cma_es+l1"][0]


def test_agents_of_a_stage_share_a_panel() -> None:
    agents = ("uniform", "greedy", "cma_es", "afie")
    trials = pd.concat([
        trials_of(PRUNING, agents[:3]),
        trials_of(PRUNING, agents[3:], 0.4),
        trials_of(PRUNING[:1], ["cma_es+kl_curve"]),
        trials_of([BITS], ["kl_bits", *agents[1:3]]),
    ], ignore_index=True)  # fmt: skip
    figure = draw_anytime_scores(trials, KNOWN)
    pruning, bits = figure.axes
    assert pruning.get_title() == "pruning, 2 tasks; 0 uniform, 1 best known; lower: afie"
    assert bits.get_title() == "bits, 1 task; 0 uniform, 1 best known"
    assert list(looks_in(pruning)) == ["greedy", "cma_es", "cma_es+kl_curve (1 task)"]
    assert list(looks_in(bits)) == ["kl_bits", "greedy", "cma_es"]
    for agent in ("greedy", "cma_es"):
        assert looks_in(pruning)[agent] == looks_in(bits)[agent]
    legends = [axes.get_legend() for axes in figure.axes]
    assert [len(legend.get_texts()) if legend else 0 for legend in legends] == [3, 3]


def test_tasks_of_one_stage_have_one_panel() -> None:
    figure = draw_anytime_scores(trials_of(PRUNING, ["uniform", "random"]), KNOWN)
    assert [axes.get_title() for axes in figure.axes] == ["2 tasks; 0 uniform, 1 best known"]
    assert len(figure.legends) == 1


def test_uniform_is_drawn_where_it_is_alone() -> None:
    trials = [trials_of(PRUNING, ["uniform"], 0.5), trials_of(PRUNING, ["afie"], 0.4)]
    (axes,) = draw_anytime_scores(pd.concat(trials, ignore_index=True), KNOWN).axes
    assert axes.get_title().endswith("; lower: afie")
    assert list(looks_in(axes)) == ["uniform"]


def test_tasks_without_scores_leave_panels_empty() -> None:
    figure = draw_anytime_scores(trials_of((*PRUNING, BITS), ["random"]), {})
    assert [looks_in(axes) for axes in figure.axes] == [{}, {}]
