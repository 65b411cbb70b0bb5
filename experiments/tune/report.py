"""What a search for hyper-parameters has found: tables, text, figure, and the file to copy."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.common.drawing.intervals import format_mean
from experiments.common.drawing.outputs import format_markdown
from experiments.common.intervals import mean_interval
from experiments.search.entrants import ENTRANTS
from experiments.search.hyperparameters import HYPERPARAMETERS, INFORMED
from experiments.tune.config import Config
from experiments.tune.study import Study, Tried

__all__ = [
    "chosen_rows",
    "draw_progress",
    "format_hyperparameters",
    "format_report",
    "settings_file",
    "tuning_rows",
]

HEADINGS = ("agent", "sets", "present settings", "chosen instead", "present %", "chosen %")
HEADING = (
    "# Hyper-parameters\n\n"
    "Present settings and those chosen, where these are others, with the mean of {objective} "
    "(percent, mean over tasks and fresh seeds, 95 % interval over seeds). The best of the "
    "searched sets are compared with the present one on these seeds, so the chosen one's mean is "
    "that of the best of a few.\n"
)
OBJECTIVES = {
    "anytime": "the best validation accuracy while a search goes on",
    "confirmed": "the validation accuracy of what a search stands by under orders that it has not "
    "seen",
}
ENDING = """
`{file}` beside this file holds all chosen settings; copied over
`experiments/search/{file}`, it is used by every experiment.
"""


def tuning_rows(studies: Sequence[Study]) -> pd.DataFrame:
    """Return a row for every set: agent, number, state, objective, those by task, settings."""
    rows = [
        {"agent": study.agent, "number": tried.number, "state": tried.state}
        | {"objective": tried.objective}
        | {f"objective:{task}": value for task, value in tried.by_task.items()}
        | {"settings": json.dumps(tried.settings)}
        for study in studies
        for tried in study.tried
    ]
    return pd.DataFrame(rows)


def chosen_rows(studies: Sequence[Study]) -> pd.DataFrame:
    """Return a row for every set that was played again, with its mean and 95 % interval.

    `present` marks the settings at the beginning, `chosen` those to be used.
    """
    rows = []
    for study in studies:
        for number, by_task in sorted(study.replays.items()):
            found = mean_interval(study.by_seed(number))
            settings = study.tried[number].settings
            rows.append(
                {"agent": study.agent, "number": number, "present": number == 0}
                | {"chosen": number == study.chosen().number}
                | {"mean": found.value, "low": found.low, "high": found.high}
                | {f"mean:{task}": np.mean(values) for task, values in by_task.items()}
                | {"settings": json.dumps(settings)}
            )
    return pd.DataFrame(rows)


def settings_file(config: Config) -> str:
    """Return the name of the file that holds what is found."""
    return "informed.json" if config.rule else "hyperparameters.json"


def format_report(studies: Sequence[Study], config: Config) -> str:
    """Return the report in Markdown."""
    rows = []
    for study in studies:
        present, chosen = study.tried[0], study.chosen()
        rows.append(
            (
                _name(study.agent),
                str(len(study.tried)),
                _format(present),
                "-" if chosen is present else _format(chosen),
                format_mean(100.0 * study.by_seed(0)),
                format_mean(100.0 * study.by_seed(chosen.number)),
            )
        )
    heading = HEADING.format(objective=OBJECTIVES[config.objective])
    ending = ENDING.format(file=settings_file(config))
    return f"{heading}\n{format_markdown(HEADINGS, rows)}\n{ending}"


def _name(agent: str) -> str:
    """Return an agent with those that use the same settings."""
    others = [name for name, each in ENTRANTS.items() if each.family == agent and name != agent]
    return agent + (f" ({', '.join(others)})" if others else "")


def _format(tried: Tried) -> str:
    texts = (
        f"{name} {value if isinstance(value, str) else format(value, '.3g')}"
        for name, value in tried.settings.items()
    )
    return ", ".join(texts)


def format_hyperparameters(studies: Sequence[Study], config: Config) -> str:
    """Return the content of a new `settings_file`; what was not searched stays as it is."""
    stored = INFORMED if config.rule else HYPERPARAMETERS
    found = {s.agent: stored.get(s.agent, {}) | s.chosen().settings for s in studies}
    return json.dumps(stored | found, indent=2) + "\n"


def draw_progress(studies: Sequence[Study]) -> Figure:
    """Draw the best objective so far over the sets tried, for each agent."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for study in studies:
        values = [0.0 if t.objective is None else t.objective for t in study.tried]
        axes.step(
            range(1, len(values) + 1),
            np.maximum.accumulate(values),
            "o-",
            where="post",
            markersize=3,
            label=study.agent,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="set of settings", ylabel="best objective so far")
    axes.set_title("Search for hyper-parameters")
    figure.legend(loc="outside right upper")
    return figure
