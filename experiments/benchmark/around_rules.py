"""What searching around a rule is worth: informed agents beside their rule and blind agents.

The best of several is picked by its nominees' accuracy on validation images, under orders that no
search has seen; what is told of it is measured on test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
N_DEEP, N_FEW, N_LEARNERS = 8, 6, 2
"""Deep tasks of the suite, and aims: on how many of them the best informed agent is to be ahead
after few evaluations, and a learner to be ahead after all of them."""
CHOSEN_ON = ("PruneVGG8Digits-v1", "QuantizeResNet20Digits-v1", "QuantizeMobileNetV2Digits-v1")
"""Tasks that settings of informed agents were chosen on (docs/agents.md)."""


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
    starred = ", ".join(task for task, _ in tasks if task in CHOSEN_ON)
    star = (
        f" Settings of informed agents were chosen on {starred}, which have a star; in brackets "
        "without these."
    )
    return [
        "## Around a rule",
        "`AGENT+RULE` searches around what the rule gives. Confirmed test accuracy, percent, mean "
        f"over seeds and 95 % interval; over the rule, and over the same agent from scratch: at "
        f"{budgets[-1]} evaluations, points, paired by seed; final policy: by how many points of "
        f"validation accuracy it is above the nominee of {budgets[-1]} evaluations, both under "
        "the orders that no search has seen; random search has none.",
        _format_agents(tasks, budgets),
        "What was aimed at, and whether it was reached. The best of several is the one whose "
        f"nominees are best on validation images.{star if starred else ''}",
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


class Apart(NamedTuple):
    """By how much an agent is apart from one or several others on a task, and how that is told."""

    task: str
    differences: list[Interval]
    text: str = ""

    @property
    def is_ahead(self) -> bool:
        """Whether all means are above 0."""
        return all(each.value > 0.0 for each in self.differences)

    @property
    def is_clearly_ahead(self) -> bool:
        """Whether all are above 0 by more than the interval."""
        return all(each.side == "above" for each in self.differences)


def _few_against_many(tasks: Tasks, few: int, many: int) -> str:
    found = []
    for task, trials in tasks:
        blind = set(trials["agent"]) - NOT_BLIND - set(_informed(trials))
        first, second = (
            best_of(trials, _informed(trials), few),
            best_of(trials, sorted(blind), many),
        )
        if first is not None and second is not None:
            columns = f"confirmed_{few}", f"confirmed_{many}"
            apart = difference(trials, first, columns[0], second, columns[1])
            text = f"`{first}` {format_points(apart)} over `{second}`"
            found.append(Apart(task, [apart], text))
    return _ahead(
        f"The best informed agent after {few} evaluations is above the best blind one after {many}",
        found,
        N_FEW,
    )


def _learners(tasks: Tasks, budget: int) -> str:
    column, found = f"confirmed_{budget}", []
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
        over = " and ".join(f"{format_points(each)} over `{name}`" for name, each in apart.items())
        found.append(Apart(task, list(apart.values()), f"`{best}` {over}"))
    return _ahead(
        "A learner around a rule is above both CMA-ES around one and the portfolio after "
        f"{budget} evaluations",
        found,
        N_LEARNERS,
    )


def _ahead(head: str, found: Sequence[Apart], aim: int) -> str:
    """Say on how many tasks agents are ahead, whether that was aimed at, and where."""
    ahead = [each for each in found if each.is_ahead]
    clearly = [each for each in found if each.is_clearly_ahead]
    if len(clearly) >= aim:
        outcome = "reached"
    elif len(ahead) >= aim:
        outcome = "reached by the means, not by more than the intervals"
    else:
        outcome = "not reached"
    return _nested(
        f"{head} on {_of_all(ahead, found)} tasks, by more than the intervals on "
        f"{_of_all(clearly, found)}. Aim: at least {aim} of {N_DEEP}; {outcome}",
        [f"{_starred(each)} {each.text}" for each in found],
    )


def _of_all(some: Sequence[Apart], found: Sequence[Apart]) -> str:
    """Say how many of all are some, also without the tasks that settings were chosen on."""
    few, others = ([each for each in part if each.task not in CHOSEN_ON] for part in (some, found))
    left = f" ({len(few)} of {len(others)})" if len(others) < len(found) else ""
    return f"{len(some)} of {len(found)}{left}"


def _starred(found: Apart) -> str:
    return found.task + ("\\*" if found.task in CHOSEN_ON else "")


def _is_in(trials: pd.DataFrame, agent: str) -> bool:
    return bool((trials["agent"] == agent).any())


def _below_rules(tasks: Tasks, budget: int) -> str:
    found = []
    for task, trials in tasks:
        for agent in _informed(trials):
            rule = str(rule_of(agent))
            if _is_in(trials, rule):
                apart = difference(trials, agent, f"confirmed_{budget}", rule)
                found.append(Apart(task, [apart], f"`{agent}` {format_points(apart)}"))
    below = [each for each in found if each.differences[0].side == "below"]
    return _nested(
        f"Below its rule by more than the interval after {budget} evaluations: "
        f"{_of_all(below, found)}. Aim: none on any task; {'not ' if below else ''}reached",
        [f"{_starred(each)} {each.text}" for each in below],
    )


def _nested(head: str, texts: Sequence[str]) -> str:
    """Format an entry of a list with entries of its own."""
    return "\n".join((f"- {head}{':' if texts else '.'}", *(f"  - {text}" for text in texts)))


def _policies(tasks: Tasks, budget: int) -> str:
    by_agent: dict[str, list[Apart]] = {}
    for task, trials in tasks:
        for agent in _informed(trials):
            found = _policy(trials, agent, budget)
            if found is not None:
                by_agent.setdefault(agent_of(agent), []).append(Apart(task, [found]))
    texts = []
    for agent, policies in by_agent.items():
        near = [each for each in policies if each.differences[0].value >= -NEAR]
        values = [each.differences[0].value for each in policies]
        texts.append(
            f"`{agent}` on {_of_all(near, policies)} tasks (mean {np.mean(values):+.2f} points, "
            f"lowest {min(values):+.2f}): {'not ' if len(near) < len(policies) else ''}reached"
        )
    head = f"The final policy is at most {NEAR:.0f} points below the nominee. Aim: on all tasks"
    return _nested(head, texts)
