"""What a step of the environment costs beyond the training and scoring that it must do.

In one process and in alternation, `env.step` is timed against a bare loop that runs the same
minibatches and the same validation images on the same network. The rest is broken down by phase.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
import tyro
from rich.console import Console
from torch import nn
from torch.nn.functional import cross_entropy

from compress_env.envs.pruning import PruningEnv, PruningMethod
from compress_env.seeding import derive_generator
from compress_env.task import CompressionTask
from experiments.report import format_markdown
from experiments.run_folder import RunFolder

__all__ = ["Config", "main", "run"]

PHASES = (
    "statistics",
    "selection",
    "surgery",
    "reconstruction",
    "finetune",
    "batch_norm",
    "evaluation",
)


@dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    model: str = "lenet5"
    """Named network."""
    dataset: str = "mnist"
    """Named data set."""
    data_root: Path | None = None
    """Folder of the data set's files."""
    download: bool = False
    """Download the data set when it is missing."""
    checkpoint: Path | None = None
    """Weights of the network; trained by recipe when there is one."""
    methods: tuple[PruningMethod, ...] = ("magnitude", "channel")
    """Pruning methods to time."""
    steps: int = 60
    """Environment steps to time per method, at least 30 for a ratio worth quoting."""
    finetune_steps: int = 20
    """Minibatches of fine-tuning in each step."""
    seed: int = 0
    """Seed of the task and of the random actions."""
    device: str = "auto"
    """auto, cpu, cuda and so on."""
    out: Path | None = None
    """Run folder; a new one under runs/ when not given."""


def bare_loop(
    model: nn.Module, task: CompressionTask, finetune_steps: int, generator: torch.Generator
) -> float:
    """Train on the given number of minibatches, count correct validation images; return seconds."""
    start = perf_counter()
    optimizer = torch.optim.SGD(
        model.parameters(),
        task.config.learning_rate,
        momentum=task.config.momentum,
        weight_decay=task.config.weight_decay,
    )
    model.train()
    for images, labels in task.train_batches(finetune_steps, generator):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=task.device)
    everything = torch.arange(len(task.data.validation))
    order = torch.split(everything, task.config.evaluation_batch_size)
    with torch.inference_mode():
        for images, labels in task.data.validation.batches(order):
            correct += (model(images).argmax(1) == labels).sum()
    correct.item()
    return perf_counter() - start


def make_env(config: Config, method: PruningMethod) -> PruningEnv:
    """Make the environment to time."""
    return PruningEnv(
        config.model,
        config.dataset,
        data_root=config.data_root,
        download=config.download,
        checkpoint=config.checkpoint,
        device=config.device,
        method=method,
        finetune_steps=config.finetune_steps,
        seed=config.seed,
    )


def time_method(config: Config, method: PruningMethod) -> list[dict[str, Any]]:
    """Time steps and bare loops in alternation; one row per step.

    A twin takes each step first, untimed. It hands the bare loop its network, and it makes both
    meet the network's new shapes warm, whose kernels are slower the first time they run. Which of
    the two goes first changes from step to step.
    """
    env, twin = make_env(config, method), make_env(config, method)
    env.action_space.seed(config.seed)
    rows: list[dict[str, Any]] = []
    done = True
    for number in range(-len(env.walk), config.steps):  # the first episode warms up
        if done:
            env.reset()
            twin.reset()
        action = env.action_space.sample()
        twin.step(action)
        model = twin.compressed_model()
        # The minibatches of that very step.
        generator = derive_generator(config.seed, number % len(env.walk), 0)
        bare_s = 0.0
        if number % 2:
            bare_s = bare_loop(model, env.task, config.finetune_steps, generator)
        start = perf_counter()
        _, _, done, _, info = env.step(action)
        _synchronize(env.task.device)
        step_s = perf_counter() - start
        if not number % 2:
            bare_s = bare_loop(model, env.task, config.finetune_steps, generator)
        if number >= 0:
            rows.append(
                {"method": method, "layer": info["layer"], "step_s": step_s, "bare_s": bare_s}
                | {f"{name}_s": env.step_seconds.get(name, 0.0) for name in PHASES}
                | {"bookkeeping_s": step_s - sum(env.step_seconds.values())}
            )
    return rows


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summarize(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return medians in milliseconds by method, and the ratio of step to bare loop."""
    table = pd.DataFrame(rows)
    medians = table.drop(columns="layer").groupby("method", sort=False).median() * 1e3
    medians.insert(2, "ratio", medians["step_s"] / medians["bare_s"])
    return medians.rename(columns=lambda name: name.removesuffix("_s"))


def run(config: Config, console: Console) -> pd.DataFrame:
    """Time every method, write the run folder and print the table.

    Raises:
        ValueError: If a setting is wrong.
        FileNotFoundError: If data or checkpoint are not there.
    """
    if config.steps < 1:
        raise ValueError(f"steps must be at least 1, got {config.steps}")
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = RunFolder(config.out or Path("runs") / f"throughput-{stamp}", config)
    rows = [row for method in config.methods for row in time_method(config, method)]
    medians = summarize(rows)
    folder.write_rows("steps.csv", rows)
    lines = [
        (str(phase), *(f"{value:.2f}" for value in values))
        for phase, values in zip(medians.columns, np.asarray(medians).T, strict=True)
    ]
    text = format_markdown(("phase", *config.methods), lines)
    folder.write_text("throughput.md", f"Medians in milliseconds; ratio = step / bare.\n\n{text}\n")
    console.print(f"Medians over {config.steps} steps, in milliseconds:")
    console.print(medians.round(2).T.to_string())
    console.print(f"run folder: {folder.path}", soft_wrap=True)
    return medians


def main() -> None:
    """Run from the command line; a wrong setting ends it with one line."""
    try:
        run(tyro.cli(Config, description=__doc__), Console())
    except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
