"""Search the hyper-parameters of agents with Optuna, on a task of digits.

`python -m experiments.tune --algo ppo --n-trials 12 --out runs/tune` tries sets of settings,
beginning with those that `hyperparameters.json` holds, each by searches of compression tasks
(`experiments.trial`), and prefers those whose best network is better on average while a search goes
on, or with `--objective confirmed` those whose networks hold under orders that no search has seen.
`--rule kl_curve relative_error` searches for agents around a rule, on each task the first of its
stage. The best sets and the present one are then played again with fresh seeds, and the present one
is given up only if another is better there too. The same command goes on where it was stopped;
with more sets, or other agents, it adds to the folder.

It leaves `tuning.csv` (all sets), `chosen.csv` (those played again), `tune.md`, `tune.png` and
`hyperparameters.json` (`informed.json` for agents around a rule), which takes the place of the
package's only when somebody copies it there. Blind black-box searches keep their published
defaults.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console

from compress_env.files import replacing
from experiments.common.cli.command import Interrupted, run_command
from experiments.common.drawing.outputs import write_outputs
from experiments.common.provenance import describe_run
from experiments.common.run_folder import run_path
from experiments.common.stored import check_tree
from experiments.tune import study as tune_study
from experiments.tune.config import Config
from experiments.tune.report import (
    chosen_rows,
    draw_progress,
    format_hyperparameters,
    format_report,
    settings_file,
    tuning_rows,
)
from experiments.tune.spaces import INFORMED_SPACES, SPACES
from experiments.tune.study import FOLDER, Job, Study, read_study, study_path

__all__ = ["Config", "main", "run"]

SPAWN = multiprocessing.get_context("spawn")


def run(config: Config, console: Console) -> list[Study]:
    """Search, or go on, and write tables, report and figure.

    Args:
        config: The settings.
        console: Where progress and report go.

    Returns:
        What is known of each agent in the folder that has been searched to its end.

    Raises:
        ValueError: If a setting is wrong, or other than those the folder was made with, or the
            folder is of something else.
        ImportError: If a package is missing.
        Interrupted: If somebody stops it.
    """
    config.check()
    out = run_path("tune", config.out).absolute()
    _check_folder(out)
    try:
        jobs = [Job(algo, out, config) for algo in config.algo]
        _work(jobs, config.jobs or os.cpu_count() or 1, console)
    except (Interrupted, KeyboardInterrupt) as stop:
        stop.__notes__ = [f"go on with the same command and --out {out}"]  # not those of a trial
        raise
    known = INFORMED_SPACES if config.rule else SPACES
    there = [algo for algo in known if _has_begun(study_path(out, algo))]
    studies = [study for algo in there if (study := read_study(out, algo)).is_finished]
    _write(out, config, studies, console)
    return studies


def _check_folder(out: Path) -> None:
    """Check that a folder is one of studies, or is to be made.

    Raises:
        ValueError: If it holds something else, or a link leads out of it.
    """
    check_tree(out)
    if out.exists() and any(out.iterdir()) and not (out / FOLDER).is_dir():
        raise ValueError(f"output folder {str(out)!r} is not empty, and holds no {FOLDER}")


def _has_begun(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _work(jobs: list[Job], n_processes: int, console: Console) -> None:
    """Work on studies, each in one process."""
    if min(n_processes, len(jobs)) == 1:
        for job in jobs:
            tune_study.tune_agent(job, console)
        return
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(min(n_processes, len(jobs)), SPAWN, _begin)
    try:
        for done in as_completed([executor.submit(_work_in_child, job) for job in jobs]):
            done.result()
    finally:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        executor.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children


def _work_in_child(job: Job) -> None:
    tune_study.tune_agent(job, Console())


def _write(out: Path, config: Config, studies: list[Study], console: Console) -> None:
    settings = dataclasses.asdict(config) | describe_run()
    texts = {
        settings_file(config): format_hyperparameters(studies, config),
        "config.json": json.dumps(settings, indent=2, default=str) + "\n",
    }
    for name, text in texts.items():
        with replacing(out / name) as path:
            path.write_text(text, encoding="utf-8")
    write_outputs(
        out,
        "tune",
        format_report(studies, config),
        console,
        tables={"tuning.csv": tuning_rows(studies), "chosen.csv": chosen_rows(studies)},
        figures={"tune.png": draw_progress(studies)},
    )


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
