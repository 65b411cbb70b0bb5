"""What a leaderboard says: scores, accuracies by task, whether learning has won, and a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.benchmark.table import OPPONENTS, Reference
from experiments.common.drawing.intervals import format_mean, format_points
from experiments.common.intervals import Interval, iqm_name, mean_interval
from experiments.compress.outcome.report import format_markdown
from experiments.search.entrants import SINGLE, agent_of, rule_of
from experiments.search.names import short_name
from experiments.trial.trials import TOLERANCE

__all__ = [
    "compared_with",
    "difference",
    "draw_scores",
    "format_leaderboard",
    "format_tasks",
    "has_more_evaluations",
    "unknown_tasks",
    "verdicts",
]

KEYS = ["agent", "task"]
ENDS = ("", "_low", "_high")
NOT_LEARNING = {*OPPONENTS, *SINGLE, "tpe"}
AROUND = (
    "A learner around a rule is compared with random search and CMA-ES around the same rule, a "
    "blind one with the blind two: what the rule alone is worth is no merit of a learner's."
)
LOWEST = -1.0
"""Scores below are written, not drawn: they would leave no room for the others."""


def difference(
    trials: pd.DataFrame, agent: str, column: str, other: str, other_column: str | None = None
) -> Interval:
    """Compare two agents of a task, seed by seed, or with the only seed of an agent without chance.

    Args:
        trials: Of one task.
        agent: An agent.
        column: What is compared, of the first agent.
        other: The one that it is compared with, perhaps itself.
        other_column: What is compared of that one; the same when not given.

    Returns:
        Mean of the differences in points, above 0 in favour of the first, and its 95 % interval.
    """
    first, second = (
        trials[trials["agent"] == name].set_index("seed")[name_of_column]
        for name, name_of_column in ((agent, column), (other, other_column or column))
    )
    reference = second.iloc[0] if other in SINGLE else second
    return mean_interval(100.0 * (first - reference).dropna().to_numpy(float))


def verdicts(trials: pd.DataFrame, column: str = "validation_accuracy") -> list[str]:
    """Say for each task which learner beats random search and CMA-ES, or that none does.

    Learners around a rule are compared with the searches around the same rule, blind ones with the
    blind searches. Agents of other modules count as learners.

    Args:
        trials: Of any tasks.
        column: The accuracies that are compared.
    """
    return [
        f"- {short_name(str(task))}{'' if rule is None else f' around `{rule}`'}: "
        f"{_verdict(rows, rule, column)}"
        for task, rows in trials.groupby("task", sort=False)
        for rule in dict.fromkeys(map(rule_of, _learners(rows))) or (None,)
    ]


def _learners(trials: pd.DataFrame) -> list[str]:
    agents = dict.fromkeys(trials["agent"])
    return [agent for agent in agents if agent_of(agent) not in NOT_LEARNING]


def _opponents(rule: str | None) -> dict[str, str]:
    """Return what learners are to beat that are blind, or around a rule, and what it is called."""
    if rule is None:
        return OPPONENTS
    return {f"{agent}+{rule}": f"`{agent}+{rule}`" for agent in OPPONENTS}


def _fewer_evaluations(trials: pd.DataFrame, opponents: Mapping[str, str]) -> str:
    """Say which of the two opponents has not used its evaluations on a task."""
    texts = []
    for key, name in opponents.items():
        mine = trials[trials["agent"] == key]
        used, limit = mine["n_evaluations"].mean(), mine["limit"].iloc[0]
        if round(used) < limit:
            texts.append(f" {_capitalize(name)} has used {used:.0f} of {limit:.0f} evaluations.")
    return "".join(texts)


def _capitalize(text: str) -> str:
    return text[0].upper() + text[1:]


def _verdict(trials: pd.DataFrame, rule: str | None, column: str) -> str:
    opponents, agents = _opponents(rule), set(trials["agent"])
    learners = [agent for agent in _learners(trials) if rule_of(agent) == rule]
    missing = [name for key, name in opponents.items() if key not in agents]
    if missing:
        return f"no verdict without {' and '.join(missing)}."
    if not learners:
        return "no learner was run."
    found = {
        agent: {opponent: difference(trials, agent, column, opponent) for opponent in opponents}
        for agent in learners
    }
    better = {
        opponent: [agent for agent in learners if found[agent][opponent].side == "above"]
        for opponent in opponents
    }
    fewer = _fewer_evaluations(trials, opponents)
    winners = [agent for agent in learners if all(agent in names for names in better.values())]
    if winners:
        texts = (
            f"`{agent}` beats both: {_format_differences(found[agent], opponents)}"
            for agent in winners
        )
        return "; ".join(texts) + "." + fewer
    *_, search = opponents
    top = max(learners, key=lambda agent: np.nan_to_num(found[agent][search].value, nan=-np.inf))
    beaten = (
        f"{opponents[name]} is beaten by {_format_names(mine)}" for name, mine in better.items()
    )
    return (
        f"no learner beats both; {', '.join(beaten)}. The best, `{top}`: "
        f"{_format_differences(found[top], opponents)}.{fewer}"
    )


def _format_names(agents: Sequence[str]) -> str:
    return ", ".join(f"`{agent}`" for agent in agents) or "none"


def _format_differences(differences: Mapping[str, Interval], opponents: Mapping[str, str]) -> str:
    return ", ".join(
        f"{format_points(difference)} over {opponents[opponent]}"
        for opponent, difference in differences.items()
    )


def format_leaderboard(
    table: pd.DataFrame, trials: pd.DataFrame, known: Mapping[str, Reference]
) -> str:
    """Format a leaderboard as Markdown.

    Args:
        table: From `make_leaderboard`.
        trials: What it was made from.
        known: The best known accuracies.
    """
    limit = trials["limit"].iloc[0]
    agents = table["agent"].tolist()
    parts = [
        "# Leaderboard",
        f"{limit:.0f} network evaluations a trial, the last episode played to its end; seeds "
        f"{', '.join(str(seed) for seed in sorted(trials['seed'].unique()))}. Score: validation "
        "accuracy of the best network found, by reward, 0 for `uniform` and 1 for the best known, "
        f"{iqm_name(table['trials'].max())} over tasks and seeds; in brackets 95 % intervals, over "
        "the seeds within tasks. Better than: probability that it finds a better network than that "
        "search does, mean over tasks (Agarwal et al. 2021, arXiv 2108.13264), above 0.5 in its "
        "favour. Test accuracy, in percent, is that of the same networks, which no search has "
        "seen. Cost: what they come to, percent of the unpruned network's multiply-accumulates or "
        "bytes, mean over trials.",
        _format_scores(table, trials),
        *_remarks(table, trials, known),
        "## Does learning win?",
        "Validation accuracy of the best networks, points, paired by seed, with 95 % intervals. A "
        "learner wins where both differences are above 0 by more than their interval. These are "
        "not widened for the number of comparisons; ± 0.00 is the same difference from each of few "
        "seeds, often a single image, and no certainty.",
        *compared_with(trials),
        "\n".join(verdicts(trials)),
        "## Tasks",
        "Validation accuracy of the best networks, percent, mean over seeds and 95 % interval:",
        format_tasks(trials, agents, known, "validation_accuracy"),
        "Test accuracy, percent:",
        format_tasks(trials, agents, {}, "test_accuracy"),
        "Network evaluations, mean over seeds. A trial also ends after three times the episodes "
        "that would use them all, as agents repeat networks:",
        format_tasks(trials, agents, {}, "n_evaluations", lambda values: f"{values.mean():.0f}"),
    ]
    return "\n\n".join(parts) + "\n"


def compared_with(trials: pd.DataFrame) -> list[str]:
    """Say what learners around a rule are compared with, where there are any."""
    is_there = any(rule_of(agent) is not None for agent in _learners(trials))
    return [AROUND] if is_there else []


def _format_scores(table: pd.DataFrame, trials: pd.DataFrame) -> str:
    known = trials if "cost_fraction" in trials else trials.assign(cost_fraction=np.nan)
    costs = 100.0 * known.groupby("agent")["cost_fraction"].mean()
    lines = []
    for row in table.to_dict("records"):
        over = (Interval(*(row[f"over_{name}{end}"] for end in ENDS)) for name in OPPONENTS)
        lines.append(
            (
                f"`{row['agent']}`",
                _format_interval(Interval(row["score"], row["low"], row["high"]), 3),
                *(_format_interval(interval, 2) for interval in over),
                f"{row['tasks']}",
                f"{row['trials']}",
                f"{100.0 * row['test_accuracy']:.2f}",
                f"{row['n_evaluations']:.0f}",
                f"{costs[row['agent']]:.2f}",
            )
        )
    better = (f"better than {text}" for text in OPPONENTS.values())
    headings = (
        "agent",
        "score",
        *better,
        "tasks",
        "trials",
        "test accuracy",
        "evaluations",
        "cost",
    )
    return format_markdown(headings, lines)


def _format_interval(interval: Interval, n_digits: int) -> str:
    value, low, high = (f"{end:.{n_digits}f}" for end in interval)
    if np.isnan(interval.value):
        return "-"
    return value if np.isnan(interval.low) else f"{value} ({low} to {high})"


def _remarks(
    table: pd.DataFrame, trials: pd.DataFrame, known: Mapping[str, Reference]
) -> list[str]:
    """Say what does not count or compare, what is not the best, what exceeds the best known."""
    tasks = list(dict.fromkeys(trials["task"]))
    fewer = table.loc[table["trials"] < table["trials"].max(), "agent"]
    remarks = [*has_more_evaluations(trials), *unknown_tasks(trials, known)]
    if not fewer.empty:
        remarks.append(f"With fewer trials, their scores do not compare: {', '.join(fewer)}.")
    remarks += _not_the_best(trials)
    for task in (task for task in tasks if task in known):
        top = trials.loc[trials.loc[trials["task"] == task, "validation_accuracy"].idxmax()]
        if top["validation_accuracy"] > known[task].best:
            remarks.append(
                f"`{top['agent']}`, seed {top['seed']}, exceeds the best known of "
                f"{short_name(task)}: {100.0 * top['validation_accuracy']:.2f} against "
                f"{100.0 * known[task].best:.2f} % ({known[task].found_by})."
            )
    return remarks


def has_more_evaluations(trials: pd.DataFrame) -> list[str]:
    """Say which agents that always choose the same take more evaluations than allowed for that."""
    over = trials[trials["agent"].isin(SINGLE) & (trials["n_evaluations"] > trials["limit"])]
    agents = ", ".join(dict.fromkeys(over["agent"]))
    text = f"With more evaluations than allowed, their scores do not compare: {agents}."
    return [] if over.empty else [text]


def unknown_tasks(trials: pd.DataFrame, known: Mapping[str, Reference]) -> list[str]:
    """Say which tasks have no score, and why."""
    tasks = list(dict.fromkeys(trials["task"]))
    unknown = [short_name(task) for task in tasks if task not in known]
    flat = [short_name(task) for task in tasks if task in known and not known[task].has_room]
    remarks = []
    if unknown:
        remarks.append(f"Not in the table of the best known, without score: {', '.join(unknown)}.")
    if flat:
        remarks.append(f"Nothing better than uniform is known, no score: {', '.join(flat)}.")
    return remarks


def _not_the_best(trials: pd.DataFrame) -> list[str]:
    """Say which trials tell of another network than the one with the best reward."""
    others = trials[trials["best_reward"] - trials["reward"] > TOLERANCE]
    if others.empty:
        return []
    n_trials = int(trials["task"].isin(others["task"]).sum())
    names = ", ".join(dict.fromkeys(map(short_name, others["task"])))
    return [
        f"In {len(others)} of {n_trials} trials of {names} what is told of is the most accurate "
        "network, which is not the one with the best reward."
    ]


def _format_percent(values: NDArray[np.float64]) -> str:
    return format_mean(100.0 * values)


def format_tasks(
    trials: pd.DataFrame,
    agents: Sequence[str],
    known: Mapping[str, Reference],
    column: str,
    format_cell: Callable[[NDArray[np.float64]], str] = _format_percent,
) -> str:
    """Format a table with a line for each agent and a column for each task, then the references.

    Args:
        trials: What was measured.
        agents: In the order of the lines.
        known: The references, or none.
        column: The numbers.
        format_cell: Formats (n,) numbers of n seeds; as percent when not given.
    """
    tasks = list(dict.fromkeys(trials["task"]))
    measured = trials.dropna(subset=[column]).groupby(KEYS)[column]
    by_pair = {pair: rows.to_numpy() for pair, rows in measured}
    lines = [
        (
            f"`{agent}`",
            *(format_cell(by_pair[agent, t]) if (agent, t) in by_pair else "-" for t in tasks),
        )
        for agent in agents
    ]
    if known:
        stored = [known.get(task, Reference(np.nan, np.nan, "")) for task in tasks]
        for name, values in (
            ("score 0", [reference.uniform for reference in stored]),
            ("score 1", [reference.best for reference in stored]),
        ):
            lines.append((name, *("-" if np.isnan(x) else f"{100.0 * x:.2f}" for x in values)))
    return format_markdown(("agent", *map(short_name, tasks)), lines)


def draw_scores(table: pd.DataFrame) -> Figure:
    """Draw each agent's score with its interval, the best on top.

    Args:
        table: From `experiments.benchmark.table.make_leaderboard`; agents without a score are left
            out.
    """
    rows = table.dropna(subset=["score"]).iloc[::-1]
    errors = [rows["score"] - rows["low"], rows["high"] - rows["score"]]
    figure = Figure(figsize=(6.4, 1.4 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(rows["score"], range(len(rows)), xerr=errors, fmt="o", color="C0", capsize=3)
    axes.set_yticks(range(len(rows)), rows["agent"])
    for number, score in enumerate(rows["score"]):
        if score < LOWEST:
            axes.annotate(f"\u2190 {score:.1f}", (LOWEST, number), va="center", fontsize=9)
    ends = pd.concat([rows["low"], rows["score"], rows["high"]]).clip(lower=LOWEST)
    left, right = min(0.0, ends.min()), max(1.0, ends.max())
    axes.set(xlim=(left - 0.05, right + 0.05), ylim=(-0.6, len(rows) - 0.4))
    for value, text in ((0.0, "uniform"), (1.0, "best known")):
        axes.axvline(value, color="grey", linestyle=":")
        axes.annotate(
            text,
            (value, 1.0),
            (0, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
        )
    center = iqm_name(int(table["trials"].max()))
    axes.set_xlabel(f"score: {center} over tasks and seeds, 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    return figure
