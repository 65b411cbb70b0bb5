"""The main job: compress a network to a budget, and compare the search with what needs none.

`compress-env compress` searches pruning rates, applies the best ones and fine-tunes, searches bits
for the pruned network, applies and fine-tunes again, and measures test accuracy once. Uniform
compression and the search-free rules go the same way. Either stage can be left out.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from rich.console import Console

from experiments.common.cli.command import preparing, resume_hint, run_command
from experiments.common.cli.heartbeat import showing
from experiments.common.cli.say import say
from experiments.common.run_folder import RunFolder, resume_run
from experiments.compress.config import Config
from experiments.compress.inputs import Given
from experiments.compress.outcome.networks import score_networks, write_pareto, write_searches
from experiments.compress.outcome.presentation import write_reports
from experiments.compress.outcome.report import Row, best_row, print_rows, read_rows, to_rows
from experiments.compress.plan import describe_inputs, describe_stage, describe_work
from experiments.compress.stages import Contender, Job

__all__ = ["Config", "main", "run"]


def run(config: Config, console: Console, given: Given | None = None) -> list[Row]:
    """Run the main job and write its folder, or go on with one that was stopped.

    Args:
        config: The settings.
        console: Where progress and the final table go.
        given: Network, images and functions in place of what the settings name.

    Returns:
        The rows of the final table: baseline, what the search is compared with, and the search.

    Raises:
        ValueError: If a setting is wrong; nothing has been written then.
        FileNotFoundError: If images or weights are not there; likewise.
    """
    if config.resume is not None:
        config, folder = resume_run(config, config.resume)
        if folder.is_finished:
            folder.close()
            rows = read_rows(folder.finished_path)
            _tell_outcome(console, rows, folder.path)
            return rows
    else:
        config = config.resolved()
        folder = RunFolder(config.out or config.default_folder, config)
    hint = _hint(config, folder.path, has_objects=given not in (None, Given()))
    with preparing(folder, hint):
        job = Job(config, console, folder, given)
    return _run_job(job, folder, console, hint)


def _run_job(job: Job, folder: RunFolder, console: Console, hint: str) -> list[Row]:
    """Run a job to its end, or leave a folder with which to go on."""
    names = job.config.contenders
    try:
        _tell_plan(job)
        contenders = _contend(job)
        write_searches(folder, job, names)
        with showing(console, "measuring the networks and writing the report"):
            rows = score_networks(job, folder, contenders)
            write_pareto(folder, job)
            write_reports(folder, job, contenders, rows)
        folder.finish(to_rows(rows))
    except BaseException as stop:
        with suppress(OSError):  # the disk may be full
            write_searches(folder, job, names)
        stop.add_note(hint)
        raise
    finally:
        folder.close()
    _tell_outcome(console, rows, folder.path)
    return rows


def _tell_outcome(console: Console, rows: list[Row], path: Path) -> None:
    """Print the table, and which network to take."""
    print_rows(console, rows)
    name = best_row(rows).network
    lines = [f"best on validation images within the budgets: {name} ({path}/network-{name}.*)"]
    page = path / "report.html"
    lines += [f"page to show: {page}"] if page.is_file() else []
    for line in lines:
        say(console, line)


def _hint(config: Config, path: Path, *, has_objects: bool) -> str:
    """Say how to go on with a job that was stopped.

    Args:
        config: Its settings.
        path: Its folder.
        has_objects: Whether a caller has handed over what settings cannot name.
    """
    if has_objects:
        return f"go on with: compress_env.compress(..., out={str(path)!r}) and the same arguments"
    return resume_hint("experiments.compress", path, config)


def _tell_plan(job: Job) -> None:
    """Say what will be done, and about how long it takes, before anything long begins."""
    config, full = job.config, job.first_env.unpruned
    inputs = job.task, job.baseline_score, full.params, full.macs
    lines = [describe_inputs(config.title, *inputs)]
    if job.pruning_env is not None:
        budgets = {what: limit for what, limit in job.budgets.items() if what != "bytes"}
        n_decisions = len(job.pruning_env.walk)
        lines.append(describe_stage("prune", budgets, n_decisions, job.unpruned))
    if config.size is not None:
        n_layers = job.n_quantized
        lines.append(describe_stage("quantize", {"bytes": config.size}, n_layers, job.unquantized))
    for line in lines:
        say(job.console, line)
    work = describe_work(config, job.timed(), job.n_final_steps)
    say(job.console, work)


def _contend(job: Job) -> list[Contender]:
    """Run all that the search is compared with, and the search; or a policy."""
    config, names = job.config, job.config.contenders
    if config.policy is not None:
        return [job.compress("policy", config.searcher)]
    contenders = {}
    for name in [name for name in names if name not in config.given_bits]:
        contenders[name] = job.compress(name, name)
        write_searches(job.folder, job, names)
    for name, bits in config.given_bits.items():
        pruning = contenders[config.searcher].stages["pruning"]
        contenders[name] = job.give_bits(name, pruning, bits)
        write_searches(job.folder, job, names)
    return [contenders[name] for name in names]


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
