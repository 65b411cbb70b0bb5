"""What the runs of a comparison of agents say: final returns, the claims, and the asymmetry.

Runs: one row for each task, agent and seed. Intervals over seeds are 95 % ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from experiments.common.drawing.intervals import format_ends, format_mean
from experiments.common.drawing.outputs import format_markdown
from experiments.common.intervals import iqm_interval, iqm_name, mean_interval
from experiments.control.agents import PENALTIES, TASKS

__all__ = ["ASYMMETRIES", "Results", "correlations", "differences", "format_report"]

CLAIMS = (
    ("cim_ppo", "kl_ppo"),
    ("cim_ppo", "ppo"),
    ("cim_ppo_metric", "kl_ppo"),
    ("cim_ppo_metric", "ppo"),
    ("cim_ppo_metric", "cim_ppo"),
    ("kl_ppo", "ppo"),
)
ASYMMETRIES = {"gap": "|difference|", "share": "|difference| / sum"}
IMPROVEMENTS = {"return_change": "return change", "surrogate_improvement": "surrogate"}
PAIRS = tuple((asymmetry, improvement) for improvement in IMPROVEMENTS for asymmetry in ASYMMETRIES)
FEWEST_UPDATES = 5


class Results(NamedTuple):
    """Tables of all runs, each with the columns `task`, `agent` and `seed`."""

    runs: pd.DataFrame
    """`timesteps`, `final_return`, `mean_return`, `steps_to_threshold`, `seconds`."""
    curves: pd.DataFrame
    """`timesteps` and `mean_return` of each evaluation."""
    updates: pd.DataFrame
    """What `experiments.control.records.UpdateRecorder` notes; empty if no agent is PPO."""


def differences(runs: pd.DataFrame, first: str, second: str) -> dict[str, NDArray[np.float64]]:
    """Return the final returns of one agent minus those of another, seed by seed, by task."""
    table = runs.pivot(index=["task", "seed"], columns="agent", values="final_return")
    difference = table[first] - table[second]
    return {str(task): difference.loc[task].to_numpy() for task in dict.fromkeys(runs["task"])}


def with_asymmetry(updates: pd.DataFrame) -> pd.DataFrame:
    """Add `gap`, |KL(old || new) - KL(new || old)| in nats, and `share`, the same by their sum."""
    forward, backward = updates["kl_old_new"], updates["kl_new_old"]
    gap = (forward - backward).abs()
    return updates.assign(gap=gap, share=gap / (forward + backward))


def correlations(updates: pd.DataFrame, asymmetry: str, improvement: str) -> NDArray[np.float64]:
    """Return Spearman's correlation over the updates of each run, (n seeds or fewer,).

    Args:
        updates: Of one task and agent, with asymmetries.
        asymmetry: Key of `ASYMMETRIES`.
        improvement: `return_change` or `surrogate_improvement`.

    Returns:
        One number for each seed with enough updates whose improvement is known.
    """
    found = []
    for _, mine in updates.groupby("seed"):
        pairs = mine[[asymmetry, improvement]].dropna()
        if len(pairs) >= FEWEST_UPDATES and (pairs.nunique() > 1).all():
            found.append(stats.spearmanr(pairs[asymmetry], pairs[improvement]).statistic)
    return np.array(found, np.float64)


def format_report(results: Results) -> str:
    """Format the report as Markdown."""
    runs = results.runs
    n_seeds = runs["seed"].nunique()
    parts = [
        f"# Agents on Gymnasium's tasks: {', '.join(dict.fromkeys(runs['agent']))}",
        f"{n_seeds} seed(s); on a task every agent has the same steps. Returns are those of the "
        "deterministic policy, 10 episodes. Final: after the last step. Whole curve: mean of all "
        "evaluations after the first. "
        f"{iqm_name(n_seeds).capitalize()} over seeds and its 95 % interval. Threshold: the "
        "mean return from which on a task counts as learned; steps to it: median and most over the "
        "seeds that reach it.",
        _format_returns(runs),
        "![learning curves](curves.png)",
    ]
    claims = [pair for pair in CLAIMS if set(pair) <= set(runs["agent"])]
    if claims:
        parts += ["## Claims", _format_claims(runs, claims)]
    if len(results.updates):
        parts += ["## Asymmetry of the KL divergence", _format_asymmetry(results.updates)]
    return "\n\n".join(parts) + "\n"


def _groups(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    for (task, agent), mine in table.groupby(["task", "agent"], sort=False):
        yield str(task), str(agent), mine


def _format_returns(runs: pd.DataFrame) -> str:
    lines = []
    for task, agent, mine in _groups(runs):
        reached = mine["steps_to_threshold"].dropna()
        threshold = TASKS[task].threshold
        steps = f"{reached.median():,.0f}, {reached.max():,.0f}" if len(reached) else "-"
        lines.append(
            (
                f"{task}, `{agent}`",
                f"{mine['timesteps'].mean():,.0f}",
                format_ends(iqm_interval(mine["final_return"]), 1),
                format_ends(iqm_interval(mine["mean_return"]), 1),
                "-" if threshold is None else f"{threshold:.0f}",
                steps,
                f"{len(reached)} of {len(mine)}" if threshold is not None else "-",
                f"{mine['seconds'].mean():.0f}",
            )
        )
    headings = ("task, agent", "steps", "final return", "whole curve")
    reaching = ("threshold", "steps to it", "seeds that reach it")
    return format_markdown((*headings, *reaching, "s per run"), lines)


def _format_claims(runs: pd.DataFrame, claims: list[tuple[str, str]]) -> str:
    tasks = list(dict.fromkeys(runs["task"]))
    verdicts, lines = [], []
    for first, second in claims:
        found = differences(runs, first, second)
        outcomes = [mean_interval(values).side for values in found.values()]
        name = f"{PENALTIES[first]} minus {PENALTIES[second]}"
        verdicts.append(
            f"- {PENALTIES[first]} beats {PENALTIES[second]}: on {outcomes.count('above')} of "
            f"{len(tasks)} tasks; is beaten on {outcomes.count('below')}; undecided on "
            f"{outcomes.count('undecided')}."
        )
        lines.append((name, *(format_mean(values, 1) for values in found.values())))
    text = (
        "Final returns minus each other, seed by seed: mean and 95 % interval. A claim "
        "holds on a task if the interval is above 0. All settings but the penalty are published "
        "ones for the clip."
    )
    return "\n\n".join([text, format_markdown(("", *tasks), lines), "\n".join(verdicts)])


def _format_asymmetry(updates: pd.DataFrame) -> str:
    lines: list[tuple[str, ...]] = []
    outcomes: list[list[str]] = [[] for _ in PAIRS]
    for task, agent, mine in _groups(with_asymmetry(updates)):
        cells = []
        for (asymmetry, improvement), found in zip(PAIRS, outcomes, strict=True):
            values = correlations(mine, asymmetry, improvement)
            cells.append(format_mean(values) if len(values) else "-")
            found.append(mean_interval(values).side if len(values) else "undecided")
        means = mine[["kl_old_new", "kl_new_old"]].mean()
        kls = (f"{value:.4f}" for value in means)
        lines.append((f"{task}, `{agent}`", *kls, f"{mine['share'].median():.3f}", *cells))
    text = (
        "Asymmetry of an update: the difference between KL(old || new) and KL(new || old) of the "
        "policy before and after it, as logged; and the same divided by their "
        "sum, which does not grow with the step alone. Improvement of an update **(ours)**: the "
        "mean return of the training episodes that end in the next rollout minus that of the "
        "rollout before, updates without such episodes left out; and the surrogate, mean((rho - 1) "
        "A) over the rollout before. Spearman's correlation over the updates of a run; mean over "
        "seeds and 95 % interval. A penalty that loses improvement through the asymmetry "
        "would have correlations below 0."
    )
    headings = [f"{ASYMMETRIES[gap]} and {IMPROVEMENTS[change]}" for gap, change in PAIRS]
    heads = ("task, agent", "KL(old, new)", "KL(new, old)", "median share", *headings)
    counts = "\n".join(
        f"- {heading}: below 0 in {found.count('below')} of {len(found)} lines, above in "
        f"{found.count('above')}, undecided in {found.count('undecided')}"
        for heading, found in zip(headings, outcomes, strict=True)
    )
    counted = f"A larger asymmetry goes with less improvement?\n\n{counts}"
    table = format_markdown(tuple(head.replace("|", "\\|") for head in heads), lines)
    return "\n\n".join([text, table, counted, "![asymmetry](asymmetry.png)"])
