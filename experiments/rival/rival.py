"""One way to compress a network: at one budget, from one seed, fine-tuned and measured as all are.

`python -m experiments.rival --algo kl_curve --macs 0.3 --data-root DATA` leaves a run folder whose
`table.csv` is one row: test error, multiply-accumulates, parameters, bytes on disk, latency in
onnxruntime beside that of the unpruned network, evaluations and seconds of the search. `algo` is an
agent or a rule, run as `experiments.trial` runs it, in the folder's `search/`; `tp_l2` and
`tp_taylor`, Torch-Pruning's own global pruners; `fastnas`, NVIDIA Model Optimizer's search; or
`unpruned`, nothing but the fine-tuning that follows all of them. Stopped after any episode of the
search or epoch of the fine-tuning, `--resume FOLDER` goes on.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, NamedTuple

import tyro
from rich.console import Console
from torch import nn

from compress_env.envs.pruning import PruningEnv
from compress_env.networks.training import Recipe, Training
from compress_env.quantization.packing import load, save
from compress_env.seeding import derive_generator
from compress_env.task.finetune import reestimate_batch_norm
from experiments.common.checks import check_lowest, read_object, with_asked
from experiments.common.cli.command import run_command, run_measurement
from experiments.common.cli.heartbeat import Heartbeat, format_seconds, time_left
from experiments.common.cli.say import say
from experiments.common.inputs import data_digest, network_digest
from experiments.common.run_folder import RunFolder
from experiments.common.stored import parse, read_table
from experiments.rival.libraries import LIBRARIES, Request
from experiments.rival.measures import measure_network
from experiments.search.entrants import ACCEPTED, can_act, check_agent, check_stage
from experiments.search.names import full_name, task_id
from experiments.search.playing import play_values, read_values
from experiments.train.layout import Layout, fastest
from experiments.trial import trial

__all__ = ["A_PRUNING_RULE", "OTHERS", "UNPRUNED", "Config", "main", "run"]

UNPRUNED = "unpruned"
OTHERS = (UNPRUNED, *LIBRARIES)
"""Rows that are no agents."""
N_BATCHES = 20
"""Minibatches of training images from which the final batch-norm statistics are estimated."""
A_PRUNING_RULE = "l1"
FOUND, TUNING = "found", "finetuning"
BUDGETS = {"macs": "flops_budget", "size": "size_budget"}
"""What environments call the budgets."""


@dataclass(frozen=True)
class Config:
    """Settings of a rival."""

    algo: Annotated[str, tyro.conf.arg(help=f"Row: {', '.join(OTHERS)}, or {ACCEPTED}.")] = (
        "uniform"
    )
    task: str = "compress_env/PruneResNet20CIFAR10-v1"
    """Task of compress_env, with or without its namespace: network, images and the search."""
    macs: float | None = None
    """Highest multiply-accumulates after pruning, a fraction; the task's when not given."""
    size: float | None = None
    """Highest bytes after quantization, a fraction; the task's when not given."""
    seed: int = 0
    """Seed of the search and of the fine-tuning."""
    distill: float = 0.0
    """Weight of the unpruned network's answers in the final fine-tuning, in [0, 1]."""
    epochs: int = 10
    """Passes over the training images in the final fine-tuning."""
    batch_size: int = 128
    """Images in a minibatch of it."""
    learning_rate: float = 0.05
    """Its peak step size, after a warm-up and before a fall along cosines."""
    evaluations: int = 100
    """Networks that a search may evaluate."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment in place of the task's own, a JSON object."""
    data_root: Path | None = None
    """Folder of the data set's files."""
    bf16: bool | None = None
    """Fine-tune under autocast in bfloat16; where that is faster when not given."""
    channels_last: bool | None = None
    """Fine-tune channels last; where that is faster when not given."""
    out: Path | None = None
    """Run folder; a new one under runs/ when not given."""
    resume: Path | None = None
    """Run folder of a stopped run to go on with."""

    def __post_init__(self) -> None:
        """Put the namespace before the task where it is missing."""
        object.__setattr__(self, "task", full_name(self.task))

    def check(self) -> None:
        """Check everything but the keyword arguments of the task.

        Raises:
            ValueError: If a setting is wrong.
            ImportError: If the agent's module, or a package that it needs, cannot be imported.
        """
        task_id(self.task, others=True)
        other = "size" if can_act(A_PRUNING_RULE, self.task) else "macs"
        if getattr(self, other) is not None:
            raise ValueError(f"{self.task} has no budget {other}, got {getattr(self, other)}")
        for name in BUDGETS:
            value = getattr(self, name)
            if value is not None and not 0.0 < value <= 1.0:
                raise ValueError(f"{name} must be in (0, 1], got {value}")
        if self.algo in LIBRARIES and other == "macs":
            raise ValueError(f"{self.algo} prunes, {self.task} asks for bits")
        if self.algo not in OTHERS:
            check_agent(self.algo)
            check_stage(self.algo, self.task)
        check_lowest(self, 0, "seed", "epochs")
        check_lowest(self, 1, "batch_size", "evaluations")
        if not 0.0 <= self.distill <= 1.0 or not self.learning_rate > 0.0:
            raise ValueError(
                "expected distill in [0, 1] and learning_rate above 0, got "
                f"{self.distill} and {self.learning_rate}"
            )
        _ = self.trial.env_options

    @property
    def trial(self) -> trial.Config:
        """The search of an agent; for the other rows, what names the task."""
        budgets = {BUDGETS[name]: getattr(self, name) for name in BUDGETS}
        given = with_asked(read_object(self, "env_kwargs"), budgets)
        return trial.Config(
            "uniform" if self.algo in OTHERS else self.algo,
            self.task,
            self.seed,
            evaluations=self.evaluations,
            env_kwargs=json.dumps(given),
            data_root=self.data_root,
        )


class Found(NamedTuple):
    """A compressed network before its fine-tuning, and what it took to find it."""

    model: nn.Module
    n_evaluations: int
    """Networks evaluated on validation images."""
    seconds: float
    """Wall-clock time."""


class Rival:
    """A network and its images, one way to compress it, and the fine-tuning that follows."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        """Make the environment and load the network.

        Raises:
            ValueError: If a setting is wrong.
            FileNotFoundError: If images are not there.
        """
        config.check()
        self.config, self.folder = config, folder
        self.env = trial.make_task(config.trial)
        self.task = self.env.task
        if not (self.env.transition_noise or config.algo in OTHERS):
            raise ValueError(
                f"{config.task} has one order of the minibatches: a search is asked what it stands "
                "by on a task that draws orders (transition_noise)"
            )
        digests = {"network": network_digest(self.task.model), "data": data_digest(self.task.data)}
        folder.hold_to(digests)

    def find(self, console: Console) -> Found:
        """Compress the network, or read what a stopped run has found."""
        if self.config.algo == UNPRUNED:
            return Found(self.task.copy_model(), 0, 0.0)
        if self.config.algo in LIBRARIES:
            return self._ask_library(console)
        return self._search(console)

    def _ask_library(self, console: Console) -> Found:
        config, path = self.config, self.folder.path / "pruned.cenv"
        state = self.folder.read_state(FOUND)
        if state is None:
            assert isinstance(self.env, PruningEnv)
            say(console, f"{config.algo}: pruning to {self.env.budget:,.0f} multiply-accumulates")
            start = perf_counter()
            request = Request(self.task, self.env.budget, config.seed, config.evaluations)
            pruned = LIBRARIES[config.algo](request)
            state = {"n_evaluations": pruned.n_evaluations, "seconds": perf_counter() - start}
            save(path, pruned.model)
            self.folder.write_state(FOUND, state)
        with self.folder.using(FOUND):
            numbers = int(state["n_evaluations"]), float(state["seconds"])
        return Found(load(path, self.task.copy_model()), *numbers)

    def _search(self, console: Console) -> Found:
        """Run the trial, or what is left of it, and take its nominee."""
        path = self.folder.path / "search"
        if not (path / "table.csv").exists():
            config, has_begun = self.config.trial, (path / "config.json").exists()
            trial.run(
                replace(config, resume=path) if has_begun else replace(config, out=path), console
            )
        row = self._read_trial(path / "table.csv")
        values = read_values(row[self._nominee])
        episode = play_values(self.env, values, noise_seed=self.config.seed)
        if episode.error is not None:
            raise RuntimeError(f"what {self.config.algo} stands by cannot be made: {episode.error}")
        return Found(self.env.compressed_model(), row["n_evaluations"], row["seconds"])

    @property
    def _nominee(self) -> str:
        """The column of a trial's table that says what it stands by."""
        return f"confirmed_values_{self.config.evaluations}"

    def _read_trial(self, path: Path) -> dict[Hashable, Any]:
        """Return the row of a trial's table.

        Raises:
            ValueError: If the table holds something else.
        """
        kinds = {self._nominee: str, "n_evaluations": int, "seconds": float}
        rows = parse(path, read_table(path, kinds), kinds).to_dict("records")
        if len(rows) != 1:
            raise ValueError(f"{str(path)!r}: expected the row of a trial, got {len(rows)}")
        return rows[0]

    def finetune(self, model: nn.Module, console: Console) -> tuple[Layout, float]:
        """Fine-tune in place; after each epoch the folder holds all that is needed to go on.

        Returns:
            How minibatches were computed, and the seconds that it took.
        """
        config, data = self.config, self.task.data
        if config.epochs == 0:
            return Layout(bf16=False, channels_last=False), 0.0
        state = self.folder.read_state(TUNING)
        with self.folder.using(TUNING):
            layout = (
                fastest(model, data, config.batch_size, config.bf16, config.channels_last)
                if state is None
                else Layout(**{name: bool(value) for name, value in state["layout"].items()})
            )
            training = Training(
                model,
                data.train,
                Recipe(config.epochs, config.batch_size, config.learning_rate, seed=config.seed),
                **layout._asdict(),
                teacher=self.task.model,
                distill=config.distill,
            )
            seconds = 0.0 if state is None else float(state["seconds"])
            if state is not None:
                training.restore(state["training"])
        seconds = self._run_epochs(training, layout, seconds, console)
        model.eval()
        batches = self.task.train_batches(N_BATCHES, derive_generator(config.seed, 2**31, 1))
        reestimate_batch_norm(model, batches)
        return layout, seconds

    def _run_epochs(
        self, training: Training, layout: Layout, seconds: float, console: Console
    ) -> float:
        total, before = self.config.epochs, training.n_done
        heartbeat = Heartbeat(console, lambda: f"epoch {training.n_done + 1} of {total}: under way")
        with heartbeat.beating():
            while training.n_done < total:
                start = perf_counter()
                loss = training.run_epoch()
                seconds += perf_counter() - start
                self.folder.write_state(
                    TUNING,
                    {
                        "training": training.state(),
                        "layout": layout._asdict(),
                        "seconds": seconds,
                    },
                )
                left = time_left(heartbeat.seconds, training.n_done - before, total - before)
                took = format_seconds(perf_counter() - start)
                say(console, f"epoch {training.n_done} of {total}: loss {loss:.3f}, {took}, {left}")
        return seconds


def run(config: Config, console: Console) -> dict[str, Any]:
    """Compress, fine-tune and measure, or go on with that.

    Returns:
        The row of `table.csv`.

    Raises:
        ValueError: If a setting is wrong.
        FileNotFoundError: If images are not there.
        ImportError: If a library is missing.
        RuntimeError: If no episode has come to its end, or the fine-tuning diverges.
    """
    return run_measurement("rival", config, console, Rival, _measure)


def _measure(rival: Rival, console: Console) -> dict[str, Any]:
    found = rival.find(console)
    layout, seconds = rival.finetune(found.model, console)
    row = {
        **measure_network(found.model, rival.task, rival.folder.path),
        "n_evaluations": found.n_evaluations,
        "search_seconds": found.seconds,
        "finetune_seconds": seconds,
        **layout._asdict(),
    }
    rival.folder.finish([row])
    say(console, f"test error {row['test_error']:.4f} at {row['macs']:.4f} of the MACs")
    return row


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
