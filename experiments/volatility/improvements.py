"""What each of the four improvements of the paper's agent does: without it minus with all."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from experiments.common.drawing.intervals import format_interval
from experiments.common.drawing.outputs import format_markdown
from experiments.common.intervals import Interval, paired_interval
from experiments.search.entrants import IMPROVEMENTS

__all__ = ["WHOLE", "compare_improvements", "format_improvements", "judge_improvements"]

WHOLE, *WITHOUT = IMPROVEMENTS
OFF = dict(
    zip(
        WITHOUT,
        ("V critic instead of Q", "no clip", "no smoothed updates", "no target regularisation"),
        strict=True,
    )
)
"""What is switched off, by agent."""
COLUMNS = {
    "best_reward": "best reward",
    "final_reward": "final reward",
    "dispersion_within": "within runs",
    "drawdown_cvar": "drawdown",
}
"""What is compared seed by seed, by name and heading; of the last two less is steadier."""
HIGHER = {"above": "higher", "below": "lower"}
"""What a difference is without an improvement, by the side of its interval."""


def compare_improvements(
    rows: pd.DataFrame, search: str, agents: Sequence[str]
) -> dict[str, dict[str, Interval]]:
    """Compare the agent without an improvement with the whole one, in each of `COLUMNS`.

    Args:
        rows: One for each search.
        search: What is searched for.
        agents: Those that were run.

    Returns:
        Differences seed by seed, without minus whole, of the seeds that both have, by agent and
        column; none where the whole agent was not run.
    """
    mine = rows[rows["search"] == search].set_index("seed")
    whole = mine[mine["agent"] == WHOLE]
    others = [agent for agent in OFF if agent in agents] if len(whole) else []
    found = {}
    for agent in others:
        other = mine[mine["agent"] == agent]
        seeds = whole.index.intersection(other.index)
        found[agent] = {
            name: paired_interval(other.loc[seeds, name], whole.loc[seeds, name])
            for name in COLUMNS
        }
    return found


def judge_improvements(
    rows: pd.DataFrame, searches: Sequence[str], agents: Sequence[str]
) -> list[str]:
    """Say what can be told of each improvement, as a list in Markdown; nothing where none was."""
    lines = []
    for search in searches:
        for agent, differences in compare_improvements(rows, search, agents).items():
            told = {name: each.side for name, each in differences.items() if _is_told(each)}
            texts = [f"{COLUMNS[name]} {HIGHER[side]}" for name, side in told.items()]
            text = ", ".join(texts) or "nothing that can be told"
            lines.append(f"  - {search}, {OFF[agent]}: {text}.")
    head = (
        "- What changes with each of the four improvements of the paper's agent switched off "
        "(differences whose interval leaves 0 out):"
    )
    return [head, *lines] if lines else []


def format_improvements(rows: pd.DataFrame, searches: Sequence[str], agents: Sequence[str]) -> str:
    """Format the comparisons as Markdown tables; nothing where there is none."""
    parts = []
    for search in searches:
        found = compare_improvements(rows, search, agents)
        if found:
            lines = [
                (OFF[agent], *(_format(difference) for difference in differences.values()))
                for agent, differences in found.items()
            ]
            table = format_markdown(("switched off", *COLUMNS.values()), lines)
            parts += [f"### {search}: `{WHOLE}` without one improvement minus with all", table]
    return "\n\n".join(parts)


def _is_told(difference: Interval) -> bool:
    return difference.side != "undecided"


def _format(difference: Interval) -> str:
    text = format_interval(difference, 3, "+")
    return f"**{text}**" if _is_told(difference) else text
