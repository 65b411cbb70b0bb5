"""What reward curves say about the claim: measures by learner, and a verdict on each sentence.

Rows: one for each search (what is searched for, agent, seed). Curves: rewards of all episodes by
(what is searched for, agent), (S, T).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.common.drawing.intervals import format_ends, format_mean
from experiments.common.drawing.outputs import format_markdown
from experiments.common.intervals import Interval, mean_interval, paired_interval
from experiments.volatility.improvements import format_improvements, judge_improvements
from experiments.volatility.measures import (
    dispersion_across,
    episodes_to_reach,
    unpaired_interval,
)
from experiments.volatility.permutation import Comparison, compare_across, compare_means

__all__ = ["Curves", "compare_volatility", "format_report", "judge_dispersions", "summarize"]

Curves: TypeAlias = Mapping[tuple[str, str], NDArray[np.float64]]

PPO_FAMILY = ("ppo", "q_critic_ppo", "q_critic_ppo_q", "q_critic_ppo_paper")
PER_SEED = {"dispersion_within": "within runs", "drawdown_cvar": "drawdown"}
MEANS = {
    "dispersion_within": "within runs",
    "drawdown_cvar": "drawdown",
    "best_reward": "best reward",
    "final_reward": "final reward",
    "final_accuracy": "final accuracy %",
    "q_overestimation": "Q minus return",
    "q_settled": "settled",
}
"""Columns whose means over seeds are shown, by name and heading."""


def summarize(rows: pd.DataFrame, curves: Curves, agents: Sequence[str]) -> pd.DataFrame:
    """Return one row for each thing searched for and agent: dispersion across seeds, and means."""
    found = []
    for search in _searches(curves):
        for agent in agents:
            mine = _of(rows, search, agent)
            row = {"search": search, "agent": agent, "seeds": len(mine)}
            row["dispersion_across"] = float(dispersion_across(curves[search, agent]))
            found.append(row | {name: mine[name].mean() for name in MEANS})
    return pd.DataFrame(found)


def _searches(curves: Curves) -> list[str]:
    return list(dict.fromkeys(search for search, _ in curves))


def _of(rows: pd.DataFrame, search: str, agent: str) -> pd.DataFrame:
    """Return the rows of one agent, by seed."""
    return rows[(rows["search"] == search) & (rows["agent"] == agent)].sort_values("seed")


def _pair(
    rows: pd.DataFrame, search: str, first: str, second: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of two agents for the seeds that both have, by seed."""
    mine, other = (_of(rows, search, agent) for agent in (first, second))
    return mine[mine["seed"].isin(other["seed"])], other[other["seed"].isin(mine["seed"])]


def compare_volatility(
    rows: pd.DataFrame, curves: Curves, search: str, first: str, second: str
) -> dict[str, Interval]:
    """Compare two agents in the three measures; negative means that the first is steadier.

    Across seeds the interval is a bootstrap of the seeds, within runs and in drawdown that of the
    mean difference seed by seed, of the seeds that both have. What counts is `judge_dispersions`.
    """
    mine, other = _pair(rows, search, first, second)
    across = unpaired_interval(dispersion_across, curves[search, first], curves[search, second])
    return {"across seeds": across} | {
        text: paired_interval(mine[name], other[name]) for name, text in PER_SEED.items()
    }


def judge_dispersions(
    rows: pd.DataFrame, curves: Curves, search: str, first: str, second: str
) -> dict[str, Comparison]:
    """Test whether one of two agents is steadier, in the three measures."""
    mine, other = (_of(rows, search, agent) for agent in (first, second))
    across = compare_across(curves[search, first], curves[search, second])
    return {"across seeds": across} | {
        text: compare_means(mine[name], other[name]) for name, text in PER_SEED.items()
    }


def format_report(rows: pd.DataFrame, curves: Curves, summary: pd.DataFrame, title: str) -> str:
    """Format the report as Markdown.

    Args:
        rows: One for each search.
        curves: Rewards of all episodes.
        summary: From `summarize`.
        title: Network and data set.
    """
    n_episodes = next(iter(curves.values())).shape[1]
    parts = [
        f"# Volatility of the reward: {title}",
        f"{_format_seeds(curves)}, {n_episodes} episodes each. In units of the reward, lower is "
        "steadier: interquartile range across seeds of the running mean over 10 episodes; "
        "interquartile range within runs of the differences between episodes, in windows of 20; "
        "mean of the worst 5 % of the drawdowns (Chan et al. 2020, arXiv 1912.05663). `final` is "
        "the policy at the end, without exploration. Q minus return: what the critic promises (V "
        "for PPO) minus what was earned, over the second half of the episodes; settled: over the "
        "last quarter, of the critics alone that had stopped to learn by then and whose target "
        "network had caught up. Intervals are 95 %. What counts is a two-sided permutation test "
        "of the log ratio of two agents' measures, at 5 %; a comparison that could not have come "
        "out otherwise does not.",
        "## Verdict",
        "\n".join(_verdicts(rows, curves)),
    ]
    for search in _searches(curves):
        parts += [f"## {search}", _format_table(rows, summary, search)]
    improvements = format_improvements(rows, _searches(curves), list(summary["agent"]))
    parts += [improvements] if improvements else []
    names = ("curves", "measures", "overestimation")
    parts += [f"![{name}]({name}.png)" for name in names]
    return "\n\n".join(parts) + "\n"


def _format_seeds(curves: Curves) -> str:
    """Tell how many seeds there are, and of which agents there are fewer."""
    counts = {agent: len(rewards) for (_, agent), rewards in curves.items()}
    fewer = [f"`{agent}` {n}" for agent, n in counts.items() if n < max(counts.values())]
    return f"{max(counts.values())} seeds" + (f" ({', '.join(fewer)})" if fewer else "")


def _format_table(rows: pd.DataFrame, summary: pd.DataFrame, search: str) -> str:
    lines = []
    for row in summary[summary["search"] == search].to_dict("records"):
        mine = _of(rows, search, row["agent"])
        cells = [_format_means(name, mine[name]) for name in MEANS]
        lines.append((f"`{row['agent']}`", f"{row['dispersion_across']:.3f}", *cells))
    return format_markdown(("agent", "across seeds", *MEANS.values()), lines)


def _format_means(name: str, values: pd.Series) -> str:
    if name == "q_settled":
        values = values.dropna()
        return format_mean(values, 3) if len(values) else "-"
    if values.isna().any():  # an agent without a critic
        return "-"
    return format_mean(100.0 * values, 1) if name == "final_accuracy" else format_mean(values, 3)


def _verdicts(rows: pd.DataFrame, curves: Curves) -> list[str]:
    agents = set(rows["agent"])
    lines: list[str] = []
    family = [agent for agent in PPO_FAMILY if agent in agents]
    if "ddpg" in agents:
        lines += _steadier(rows, curves, family) if family else []
        lines += _overestimates(rows, curves)
    if {"ppo", "q_critic_ppo", "q_critic_ppo_q"} <= agents:
        lines += _critics(rows, curves)
    lines += judge_improvements(rows, _searches(curves), list(agents))
    return lines or ["Nothing to compare: DDPG was not run."]


def _steadier(rows: pd.DataFrame, curves: Curves, family: Sequence[str]) -> list[str]:
    """Judge: the reward of the PPO family is less volatile than DDPG's."""
    lines, outcomes = [], []
    for search in _searches(curves):
        for agent in family:
            found = compare_volatility(rows, curves, search, agent, "ddpg")
            tested = judge_dispersions(rows, curves, search, agent, "ddpg")
            outcomes += [comparison.side for comparison in tested.values()]
            texts = [
                f"{name} {_format(difference)} ({_format_test(tested[name])})"
                for name, difference in found.items()
            ]
            lines.append(f"  - {search}, `{agent}` minus `ddpg`: {'; '.join(texts)}.")
    head = "- The reward of the PPO family is less volatile than DDPG's: "
    return [head + _judge(outcomes, "below", "above"), *lines]


def _overestimates(rows: pd.DataFrame, curves: Curves) -> list[str]:
    """Judge: DDPG overestimates Q, by what critics say that have settled; and what others do.

    A critic whose target network lags is as wrong as it has not learnt yet, whatever its method.
    """
    lines, outcomes, n_settled = [], [], 0
    for search in _searches(curves):
        texts = []
        for agent in (agent for s, agent in curves if s == search):
            mine = _of(rows, search, agent)
            if mine["q_overestimation"].isna().all():
                continue  # no critic
            values = mine["q_settled"].dropna().to_numpy()
            texts.append(f"`{agent}` {_format_settled(values)}")
            if agent == "ddpg":
                n_settled += len(values)
                outcomes += [mean_interval(values).side] if len(values) > 1 else []
        if texts:
            lines.append(f"  - {search}: {', '.join(texts)}.")
    if not outcomes:
        reason = "no critic of its is known to have settled"
        if n_settled:
            reason = "in no search have two of its critics settled, as an interval takes"
        return [f"- DDPG overestimates Q: **not measurable**; {reason}.", *lines]
    return ["- DDPG overestimates Q: " + _judge(outcomes, "above", "below"), *lines]


def _format_settled(values: NDArray[np.float64]) -> str:
    """Format the error of those critics that have settled, and how many have."""
    if not len(values):
        return "not measurable"
    return f"{_format(mean_interval(values))} ({len(values)} settled)"


def _critics(rows: pd.DataFrame, curves: Curves) -> list[str]:
    """Judge what was seen in a trial: raw Q is worse than PPO, Q minus a baseline needs less."""
    lines, outcomes, fewer = [], [], []
    for search in _searches(curves):
        ppo, raw = _pair(rows, search, "ppo", "q_critic_ppo_q")
        texts = []
        for name in ("best_reward", "final_reward"):
            difference = paired_interval(raw[name], ppo[name])
            outcomes.append(difference.side)
            texts.append(f"{name.replace('_', ' ')} {_format(difference)}")
        lines.append(f"  - {search}, `q_critic_ppo_q` minus `ppo`: {'; '.join(texts)}.")
        fewer.append(f"  - {search}: {_format_needs(rows, curves, search)}.")
    return [
        "- With raw Q as advantage PPO is worse than with its own: "
        + _judge(outcomes, "below", "above"),
        *lines,
        "- Episodes until `q_critic_ppo` first has PPO's best reward, median over seeds:",
        *fewer,
    ]


def _format_needs(rows: pd.DataFrame, curves: Curves, search: str) -> str:
    agents = ("ppo", "q_critic_ppo")
    in_both = _pair(rows, search, *agents)[0]["seed"]
    ppo, other = (
        curves[search, agent][_of(rows, search, agent)["seed"].isin(in_both)] for agent in agents
    )
    own = [episodes_to_reach(curve, curve.max()) for curve in ppo]
    needed = [episodes_to_reach(b, a.max()) for a, b in zip(ppo, other, strict=True)]
    never = sum(np.isinf(needed))
    median = np.median(needed)
    text = f"{'never' if np.isinf(median) else f'{median:.0f}'} against {np.median(own):.0f}"
    return text + (f" (not reached from {never} of {len(needed)} seeds)" if never else "")


def _judge(outcomes: Sequence[str], wanted: str, opposite: str) -> str:
    """Sum up comparisons: holds if all are as wanted, in part if more are so than the opposite.

    Those that could not have come out otherwise are told of, and not counted.
    """
    n_idle = outcomes.count("not counted")
    outcomes = [side for side in outcomes if side != "not counted"]
    if n_idle and not outcomes:
        return f"**not measurable**; none of {n_idle} comparisons could have come out otherwise."
    n_wanted, n_opposite = outcomes.count(wanted), outcomes.count(opposite)
    counts = f"{n_wanted} of {len(outcomes)} comparisons say so, {n_opposite} the opposite"
    counts += f", {n_idle} not counted" if n_idle else ""
    if n_wanted == len(outcomes):
        return f"**holds**; {counts}."
    if n_wanted > n_opposite:
        return f"**holds in part**; {counts}."
    return f"**{'fails' if n_opposite > n_wanted else 'undecided'}**; {counts}."


def _format_test(comparison: Comparison) -> str:
    """Format what a permutation test says, or why it says nothing."""
    if comparison.why_not:
        return f"not counted: {comparison.why_not}"
    return f"ratio {comparison.ratio:.2f}, p {max(comparison.p, 0.001):.3f}"


def _format(difference: Interval) -> str:
    return format_ends(difference, 3, "+")
