"""What searching around a rule is worth: informed agents beside their rule and blind agents.

The best of several is picked by its nominees' accuracy on validation images, under orders that no
search has seen; what is told of it is measured on test images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from experiments.benchmark.report import NOT_LEARNING, difference
from experiments.common.drawing.intervals import format_mean, format_points
from experiments.common.intervals import Interval
from experiments.compress.outcome.report import format_markdown
from experiments.search.entrants import SINGLE, agent_of, rule_of
from experiments.search.names import short_name
from experiments.trial.confirmation import budgets_in

__all__ = ["best_of", "format_around_rules"]

SEARCH, PORTFOLIO = "cma_es", "portfolio"
"""What a learner around a rule is to beat: CMA-ES around one, and the best of the rules."""
NOT_BLIND = {*SINGLE, PORTFOLIO, "greedy", "afie", "sbpf"}
"""Agents that need no search, or look at the network."""
POLICY = "final_confirmed_validation"
"""Validation accuracy of a final policy under the orders that confirm nominees."""
NEAR = 2.0
"""Points of validation accuracy by which a final policy may be behind the nominee."""


def best_of(trials: pd.DataFrame, agents: Sequence[str], budget: int) -> str | None:
    """Return the agent whose nominees are the most accurate on validation images.

    Args:
        trials: Of one task.
        agents: Those to choose from.
        budget: Evaluations after which they nominate.

    Returns:
        Its name, or None where none of them stands by anything at that budget.
    """
    mine = trials[trials["agent"].isin(agents)]
    means = mine.groupby("agent", sort=False)[f"confirmed_validation_{budget}"].mean().dropna()
    return None if means.empty else str(means.idxmax())


def format_around_rules(trials: pd.DataFrame) -> list[str]:
    """Format the section on informed agents as paragraphs of Markdown; none without such agents.

    Args:
        trials: From `experiments.benchmark.table.read_runs`, confirmed ones.
    """
    is_informed = trials["agent"].map(rule_of).notna()
    rows = trials[trials["task"].isin(trials.loc[is_informed, "task"])]
    if rows.empty:
        return []
    budgets = budgets_in(trials)
    tasks = [(short_name(str(task)), mine) for task, mine in rows.groupby("task", sort=False)]
    return [
        "## Around a rule",
        "`AGENT+RULE` searches around what the rule gives. Confirmed test accuracy, percent, mean "
        f"over seeds and 95 % interval; over the rule, and over the same agent from scratch: at "
        f"{budgets[-1]} evaluations, points, paired by seed; final policy: by how many points of "
        f"validation accuracy it is above the nominee of {budgets[-1]} evaluations, both under "
        "the orders that no search has seen; random search has none.",
        _format_agents(tasks, budgets),
        "What was aimed at. The best of several is the one whose nominees are best on validation "
        "images.",
        "\n".join(_aims(tasks, budgets)),
    ]


Tasks = Sequence[tuple[str, pd.DataFrame]]


def _informed(trials: pd.DataFrame) -> list[str]:
    return [name for name in dict.fromkeys(trials["agent"]) if rule_of(name) is not None]


def _format_agents(tasks: Tasks, budgets: Sequence[int]) -> str:
    last = f"confirmed_{budgets[-1]}"
    headings = (
        *("task", "agent", "seeds"),
        *(f"at {budget}" for budget in budgets),
        *("over the rule", "over the blind one", "final policy"),
    )
    lines = []
    for task, trials in tasks:
        for agent in _informed(trials):
            mine = trials[trials["agent"] == agent]
            others = (rule_of(agent), agent_of(agent))
            lines.append(
                (
                    *(task, f"`{agent}`", f"{len(mine)}"),
                    *(format_mean(100.0 * mine[f"confirmed_{budget}"]) for budget in budgets),
                    *(
                        format_points(difference(trials, agent, last, str(other)))
                        if (trials["agent"] == other).any()
                        else "-"
                        for other in others
                    ),
                    _format_policy(trials, agent, budgets[-1]),
                )
            )
    return format_markdown(headings, lines)


def _policy(trials: pd.DataFrame, agent: str, budget: int) -> Interval | None:
    """Return by how many points a final policy is above the nominee; None without a policy."""
    if agent_of(agent) == "random" or POLICY not in trials:
        return None
    found = difference(trials, agent, POLICY, agent, f"confirmed_validation_{budget}")
    return None if np.isnan(found.value) else found


def _format_policy(trials: pd.DataFrame, agent: str, budget: int) -> str:
    found = _policy(trials, agent, budget)
    return "-" if found is None else format_points(found)


def _aims(tasks: Tasks, budgets: Sequence[int]) -> list[str]:
    return [
        _few_against_many(tasks, budgets[0], budgets[-1]),
        _learners(tasks, budgets[-1]),
        _below_rules(tasks, budgets[-1]),
        _policies(tasks, budgets[-1]),
    ]


def _few_against_many(tasks: Tasks, few: int, many: int) -> str:
    found = {}
    for task, trials in tasks:
        blind = set(trials["agent"]) - NOT_BLIND - set(_informed(trials))
        first, second = (
            best_of(trials, _informed(trials), few),
            best_of(trials, sorted(blind), many),
        )
        if first is not None and second is not None:
            columns = f"confirmed_{few}", f"confirmed_{many}"
            apart = difference(trials, first, columns[0], second, columns[1])
            found[task] = apart, f"{task} `{first}` {format_points(apart)} over `{second}`"
    ahead = [each.value > 0.0 for each, _ in found.values()]
    clearly = [each.side == "above" for each, _ in found.values()]
    return _nested(
        f"The best informed agent after {few} evaluations is above the best blind one after "
        f"{many} on {sum(ahead)} of {len(found)} tasks, by more than the interval on "
        f"{sum(clearly)}",
        [text for _, text in found.values()],
    )


def _learners(tasks: Tasks, budget: int) -> str:
    column, texts, n_ahead, n_clearly = f"confirmed_{budget}", [], 0, 0
    for task, trials in tasks:
        learners = [name for name in _informed(trials) if agent_of(name) not in NOT_LEARNING]
        best = best_of(trials, learners, budget)
        if best is None:
            continue
        searches = [name for name in _informed(trials) if agent_of(name) == SEARCH]
        around = best_of(trials, searches, budget)
        if around is None or not _is_in(trials, PORTFOLIO):
            continue
        apart = {name: difference(trials, best, column, name) for name in (around, PORTFOLIO)}
        n_ahead += all(each.value > 0.0 for each in apart.values())
        n_clearly += all(each.side == "above" for each in apart.values())
        over = " and ".join(f"{format_points(each)} over `{name}`" for name, each in apart.items())
        texts.append(f"{task} `{best}` {over}")
    return _nested(
        "A learner around a rule is above both CMA-ES around one and the portfolio after "
        f"{budget} evaluations on {n_ahead} of {len(texts)} tasks, by more than the intervals on "
        f"{n_clearly}",
        texts,
    )


def _is_in(trials: pd.DataFrame, agent: str) -> bool:
    return bool((trials["agent"] == agent).any())


def _below_rules(tasks: Tasks, budget: int) -> str:
    below, n_pairs = [], 0
    for task, trials in tasks:
        for agent in _informed(trials):
            rule = str(rule_of(agent))
            if not _is_in(trials, rule):
                continue
            n_pairs += 1
            apart = difference(trials, agent, f"confirmed_{budget}", rule)
            if apart.side == "below":
                below.append(f"{task} `{agent}` {format_points(apart)}")
    return _nested(
        f"Below its rule by more than the interval after {budget} evaluations: {len(below)} of "
        f"{n_pairs}",
        below,
    )


def _nested(head: str, texts: Sequence[str]) -> str:
    """Format an entry of a list with entries of its own."""
    return "\n".join((f"- {head}{':' if texts else '.'}", *(f"  - {text}" for text in texts)))


def _policies(tasks: Tasks, budget: int) -> str:
    by_agent: dict[str, list[float]] = {}
    for _, trials in tasks:
        for agent in _informed(trials):
            found = _policy(trials, agent, budget)
            if found is not None:
                by_agent.setdefault(agent_of(agent), []).append(found.value)
    texts = [
        f"`{agent}` on {sum(value >= -NEAR for value in values)} of {len(values)} tasks (mean "
        f"{np.mean(values):+.2f} points, lowest {min(values):+.2f})"
        for agent, values in by_agent.items()
    ]
    return _nested(f"The final policy is at most {NEAR:.0f} points below the nominee", texts)
