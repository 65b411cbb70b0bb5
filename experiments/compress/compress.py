"""The main job: prune a network, quantize it, and compare the agent with the baselines.

`python -m experiments.compress` searches pruning rates, applies the best ones and fine-tunes,
searches bits for the pruned network, applies and fine-tunes again, and measures test accuracy
once. Uniform compression and random search with as many network evaluations go the same way.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path

from rich.console import Console

from experiments.common.command import resume_hint, run_command
from experiments.common.run_folder import RunFolder, resume_run
from experiments.compress.config import Config
from experiments.compress.outcome import (
    draw_searches,
    score_networks,
    write_pareto,
    write_reports,
    write_searches,
)
from experiments.compress.report import Row, print_rows, read_rows
from experiments.compress.stages import Contender, Job
from experiments.search.algorithms import UNIFORM_BITS

__all__ = ["Config", "main", "run"]


def run(config: Config, console: Console) -> list[Row]:
    """Run the main job and write its folder, or go on with one that was stopped.

    Args:
        config: The settings.
        console: Where progress and the final table go.

    Returns:
        The rows of the final table: baseline, uniform, random, uniform bits and agent.

    Raises:
        ValueError: If a setting is wrong; nothing has been written then.
        FileNotFoundError: If data or checkpoint are not there; likewise.
    """
    if config.resume is not None:
        config, folder = resume_run(config, config.resume)
        if folder.is_finished:
            folder.close()
            rows = read_rows(folder.finished_path)
            print_rows(console, rows)
            return rows
    else:
        folder = RunFolder(config.out or _default_folder(config), config)
    try:
        job = Job(config, console, folder)
    except Exception:
        folder.discard()
        raise
    return _run_job(job, folder, console)


def _run_job(job: Job, folder: RunFolder, console: Console) -> list[Row]:
    """Run a job to its end, or leave a folder with which to go on."""
    try:
        contenders = _contend(job)
        write_searches(folder, job, _names(job.config))
        rows = score_networks(job, folder, contenders)
        draw_searches(folder, job, contenders)
        write_pareto(folder, job)
        write_reports(folder, job, contenders, rows)
        folder.finish([row._asdict() for row in rows])
    except BaseException as stop:
        with suppress(OSError):  # the disk may be full
            write_searches(folder, job, _names(job.config))
        stop.add_note(resume_hint("experiments.compress", folder.path, job.config))
        raise
    finally:
        folder.close()
    print_rows(console, rows)
    console.print(f"run folder: {folder.path}", soft_wrap=True, markup=False)
    return rows


def _default_folder(config: Config) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"compress-{config.model}-{config.dataset}-{config.algo}-seed{config.seed}-{stamp}"
    return Path("runs") / name


def _names(config: Config) -> list[str]:
    """Return the contenders in the order of the table."""
    if config.policy is not None:
        return ["policy"]
    if not config.baselines:
        return [config.algo]
    others = [name for name in ("uniform", "random") if name != config.algo]
    return [*others, *_uniform_bits(config), config.algo]


def _uniform_bits(config: Config) -> dict[str, bool]:
    """Return the usual baselines of stage 2, and whether they are free of the size budget.

    They give all layers of the agent's pruned network 8 bits, or the most that meet the budget.
    """
    baselines = {f"{config.algo}-8bit": True, f"{config.algo}-uniform": False}
    if config.algo in UNIFORM_BITS:
        del baselines[f"{config.algo}-uniform"]
    return baselines


def _contend(job: Job) -> list[Contender]:
    """Run the agent, which goes first, and all that it is compared with; or a policy."""
    config, names = job.config, _names(job.config)
    if config.policy is not None:
        return [job.compress("policy", config.algo, None)]
    agent = job.compress(config.algo, config.algo, None)
    write_searches(job.folder, job, names)
    spent = (
        agent.pruning.episodes[-1].n_evaluations,
        agent.quantization.episodes[-1].n_evaluations,
    )
    uniform_bits, baselines = _uniform_bits(config), []
    for name in names[:-1]:
        if name in uniform_bits:
            is_free = uniform_bits[name]
            baselines.append(job.quantize_uniformly(name, agent.pruning, is_free=is_free))
        else:
            baselines.append(job.compress(name, name, spent))
        write_searches(job.folder, job, names)
    return [*baselines, agent]


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
