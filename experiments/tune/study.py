"""The search for the hyper-parameters of one agent: an Optuna study that can be stopped.

A set of settings is as good as the searches that it leads to: see `score`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from numpy.typing import ArrayLike
from rich.console import Console

from experiments.common.cli.renamed import current_names
from experiments.common.cli.say import say
from experiments.search.names import short_name
from experiments.trial import trial
from experiments.trial.nomination import budgets_of
from experiments.tune.config import Config, import_optuna
from experiments.tune.spaces import Choice, Space

__all__ = [
    "FOLDER",
    "Job",
    "Replays",
    "Study",
    "Tried",
    "anytime_accuracy",
    "read_study",
    "score",
    "study_path",
    "tune_agent",
]

FOLDER = "studies"
"""Where studies lie in the folder of a search."""
N_STARTUP = 5
"""Sets of settings that are played on all tasks before any is given up after the first."""
N_BEST = 3
"""Sets that are played again, beside the present one."""
WORST = 0.0
"""Accuracy of settings with which a search fails."""
FAILURES = (ValueError, ArithmeticError, RuntimeError)

Replays = dict[int, dict[str, list[float]]]
"""By number of the set and by task: one number for each seed."""


class Job(NamedTuple):
    """What is searched for."""

    algo: str
    """One of `SPACES`, or of `INFORMED_SPACES` where there are rules."""
    folder: Path
    """Where the study is kept."""
    config: Config

    @property
    def space(self) -> Space:
        """What is searched."""
        return self.config.space(self.algo)

    @property
    def present(self) -> dict[str, Any]:
        """All settings that are stored, those among them that are not searched."""
        return self.config.present(self.algo)


class Tried(NamedTuple):
    """A set of settings and what has come of it."""

    number: int
    """From 0, which is the present set."""
    settings: dict[str, Any]
    """Those of its space."""
    by_task: dict[str, float]
    """Means over seeds; tasks that it was not played on are missing."""
    state: str
    """complete, pruned or failed."""
    objective: float | None
    """Mean over tasks; None if not all were played."""


class Study(NamedTuple):
    """All that is known of an agent."""

    agent: str
    tried: list[Tried]
    replays: Replays
    is_finished: bool
    """Whether all that must be played again has been."""

    def mean(self, number: int) -> float:
        """Return the mean over tasks and seeds of a set that was played again."""
        return float(self.by_seed(number).mean())

    def by_seed(self, number: int) -> Any:
        """Return means over tasks, (n_seeds,)."""
        return np.mean(list(self.replays[number].values()), axis=0)

    def chosen(self) -> Tried:
        """Return the best of the sets that were played again; the present one when in doubt."""
        best = max(sorted(self.replays), key=self.mean)  # of equal ones the first
        return self.tried[best]


def study_path(folder: Path, agent: str) -> Path:
    """Return the file of an agent's study, lines of JSON."""
    return folder / FOLDER / f"{agent}.log"


def anytime_accuracy(
    accuracies: ArrayLike, rewards: ArrayLike, n_evaluations: ArrayLike, limit: int
) -> float:
    """Return how good the best network is on average while a search goes on **(ours)**.

    The mean over k = 1 .. limit of the validation accuracy of the best episode by reward that the
    search had seen when it had evaluated k networks, 0 before the first. Episodes that repeat a
    network count for nothing; a search that ends early stays at its best. It tells more of a search
    than its last best alone, which depends on one lucky episode.

    Args:
        accuracies: (n,) of each episode, fractions, NaN for a failed one.
        rewards: (n,) of each episode; of equal ones the more accurate counts.
        n_evaluations: (n,) networks evaluated by the end of each, non-decreasing, 1 or more.
        limit: Networks that the search might evaluate.
    """
    found = zip(np.asarray(rewards, np.float64), np.asarray(accuracies, np.float64), strict=True)
    finished = ((-np.inf, 0.0) if np.isnan(accuracy) else (r, accuracy) for r, accuracy in found)
    best = [accuracy for _, accuracy in accumulate(finished, max)]
    ends = np.asarray(n_evaluations, np.int64)
    # Episodes that had ended after k evaluations, (limit,)
    n_ended = np.searchsorted(ends, np.arange(1, limit + 1), side="right")
    return float(np.concatenate([[0.0], best])[n_ended].mean())


def score(job: Job, settings: Mapping[str, Any], task: str, seed: int) -> float:
    """Run a trial with some settings; return its `anytime_accuracy`, or what was confirmed.

    Raises:
        ValueError: If a setting is wrong, or the agent's weights are no numbers any more.
        RuntimeError: If no episode has come to its end.
    """
    limit = job.config.evaluations
    with TemporaryDirectory() as folder:
        config = trial.Config(
            job.config.name_on(job.algo, task),
            task,
            seed,
            evaluations=limit,
            episodes=job.config.episodes,
            settings=json.dumps(dict(settings)),
            out=Path(folder) / "run",
        )
        row = trial.run(config, Console(file=StringIO()))
        if job.config.objective == "confirmed":
            columns = [f"confirmed_validation_{budget}" for budget in budgets_of(limit)]
            return float(np.mean([row.get(column, WORST) for column in columns]))
        episodes = pd.read_csv(Path(folder) / "run" / "episodes.csv")
    accuracies, rewards = episodes["accuracy"], episodes["reward"]
    return anytime_accuracy(accuracies, rewards, episodes["n_evaluations"], limit)


def tune_agent(job: Job, console: Console) -> None:
    """Search, and play the best again; what has been done before is not repeated.

    Raises:
        ValueError: If the study was made with other settings, cannot be read or another process
            works on it, or the present hyper-parameters fail.
        ImportError: If Optuna is missing.
    """
    path = study_path(job.folder, job.algo)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_suffix(".lock"), timeout=0):
            torch.set_num_threads(1)
            _cut_unfinished(path)
            with _reading(path):
                study = _open(path, job)
            _search(study, job, console)
            _replay(study, job, console)
    except Timeout:
        raise ValueError(f"study {str(path)!r} is in use by another process") from None


def read_study(folder: Path, agent: str) -> Study:
    """Read what an agent's study holds.

    Raises:
        ValueError: If it cannot be read.
    """
    path = study_path(folder, agent)
    with _reading(path):
        return _read(agent, import_optuna().load_study(study_name=agent, storage=_storage(path)))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tell in one line if what is read inside the block is no study.

    Raises:
        ValueError: If it is none.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, json.JSONDecodeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"study {str(path)!r} cannot be read: {reason:.200}") from None


def _cut_unfinished(path: Path) -> None:
    """Remove the line that a process was killed at; the next one would be joined to it."""
    if not path.is_file():
        return
    content = path.read_bytes()
    n_whole = content.rfind(b"\n") + 1
    if n_whole < len(content):
        with path.open("r+b") as file:
            file.truncate(n_whole)


def _read(agent: str, study: Any) -> Study:
    tried = _tried(study)
    stored = study.user_attrs
    replays = {
        each.number: stored[_key(each.number)] for each in tried if _key(each.number) in stored
    }
    return Study(agent, tried, replays, set(_to_replay(tried)) <= replays.keys())


def _storage(path: Path) -> Any:
    storages = import_optuna().storages
    return storages.JournalStorage(storages.journal.JournalFileBackend(str(path)))


def _open(path: Path, job: Job) -> Any:
    optuna = import_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=_storage(path),
        study_name=job.algo,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=N_STARTUP),
        load_if_exists=True,
    )
    fixed = job.config.fixed()
    stored = current_names(study.user_attrs, fixed)
    for name, now in fixed.items():
        then = stored.get(name, now)
        if then != now:
            raise ValueError(f"study {str(path)!r} was made with {name}={then}, got {now}")
        study.set_user_attr(name, now)
    states = optuna.trial.TrialState
    for unfinished in study.get_trials(deepcopy=False, states=[states.RUNNING]):
        study.tell(unfinished.number, state=states.FAIL)
    return study


def _search(study: Any, job: Job, console: Console) -> None:
    """Try sets of settings until there are enough.

    Each is drawn by a sampler whose seed depends on how many there are, so that a study which was
    stopped goes on as it would have gone on.
    """
    optuna = import_optuna()
    waiting = [optuna.trial.TrialState.WAITING]
    while (number := len(_tried(study))) < job.config.n_trials:
        if number == 0 and not study.get_trials(states=waiting):
            study.enqueue_trial({name: job.present[name] for name in job.space})
        if number > 0:
            seed = int(np.random.SeedSequence([job.config.seed, number]).generate_state(1)[0])
            study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
        _try(study, job, number, console)
        last = _tried(study)[-1]
        shown = "" if last.objective is None else f" {last.objective:.4f}"
        say(console, f"{job.algo}: set {number + 1} of {job.config.n_trials}: {last.state}{shown}")


def _distributions(space: Space) -> dict[str, Any]:
    kinds = import_optuna().distributions
    return {
        name: kinds.CategoricalDistribution(part.values)
        if isinstance(part, Choice)
        else kinds.FloatDistribution(part.low, part.high, log=part.log)
        for name, part in space.items()
    }


def _try(study: Any, job: Job, number: int, console: Console) -> None:
    """Play a set of settings; a failure is the worst that can be, but the present ones may not."""
    asked = study.ask(_distributions(job.space))
    by_task: dict[str, float] = {}
    label = f"{job.algo}: set {number + 1} of {job.config.n_trials}"
    try:
        for task in job.config.task:
            settings = job.present | asked.params
            scores = _play(job, settings, task, job.config.seeds, label, console)
            by_task[task] = float(np.mean(scores))
            asked.report(_mean(by_task), len(by_task) - 1)
            if len(by_task) < len(job.config.task) and asked.should_prune():
                asked.set_user_attr("by_task", by_task)
                study.tell(asked, state=import_optuna().trial.TrialState.PRUNED)
                return
    except FAILURES as error:
        if number == 0:
            raise
        asked.set_user_attr("error", " ".join(str(error).split()))
        study.tell(asked, WORST)
        return
    asked.set_user_attr("by_task", by_task)
    study.tell(asked, _mean(by_task))


def _mean(by_task: Mapping[str, float]) -> float:
    return float(np.mean(list(by_task.values())))


def _play(
    job: Job,
    settings: Mapping[str, Any],
    task: str,
    seeds: Sequence[int],
    label: str,
    console: Console,
) -> list[float]:
    """Return the scores of some settings on a task, one for each seed."""
    scores = []
    for seed in seeds:
        scores.append(score(job, settings, task, seed))
        say(console, f"{label}: {short_name(task)}, seed {seed}: {scores[-1]:.4f}")
    return scores


def _tried(study: Any) -> list[Tried]:
    """Return all sets that have been played, in order."""
    states = import_optuna().trial.TrialState
    over = study.get_trials(deepcopy=False, states=[states.COMPLETE, states.PRUNED])
    tried = []
    for number, each in enumerate(over):
        is_pruned = each.state == states.PRUNED
        state = "pruned" if is_pruned else "failed" if "error" in each.user_attrs else "complete"
        by_task = each.user_attrs.get("by_task", {})
        objective = None if is_pruned else each.value
        tried.append(Tried(number, dict(each.params), by_task, state, objective))
    return tried


def _to_replay(tried: Sequence[Tried]) -> list[int]:
    """Return the numbers of the sets to play again: the present one, and the best others."""
    complete = [each for each in tried[1:] if each.state == "complete"]
    ranked = sorted(complete, key=lambda each: (-(each.objective or WORST), each.number))
    return [0, *(each.number for each in ranked[:N_BEST])]


def _replay(study: Any, job: Job, console: Console) -> None:
    """Play the best sets with fresh seeds, as the best of many is partly so by luck."""
    found = _read(job.algo, study)
    for number in _to_replay(found.tried):
        if number not in found.replays:
            settings = job.present | found.tried[number].settings
            label = f"{job.algo}: set {number + 1} with fresh seeds"
            scores = {
                task: [_replayed(job, settings, task, seed) for seed in job.config.replay_seeds]
                for task in job.config.task
            }
            study.set_user_attr(_key(number), scores)
            say(console, f"{label}: {np.mean(list(scores.values())):.4f}")


def _replayed(job: Job, settings: Mapping[str, Any], task: str, seed: int) -> float:
    try:
        return score(job, settings, task, seed)
    except FAILURES:
        return WORST


def _key(number: int) -> str:
    return f"replayed {number}"
