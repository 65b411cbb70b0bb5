"""Whether importance scores rank layers early in training as they do at its end.

The claim of AFIE (arXiv 2208.06660) and SBPF (arXiv 2208.04588): after one epoch the layers of a
network rank as after full training. Networks are trained from several seeds; after 0 (random
weights), 1, 2, 5 ... epochs every layer whose filters can be removed is scored, and the ranking
compared with the final one. A score can also be stable because it does not depend on the weights
at all. Three controls tell: random weights; the width-only score ln(p) / c beside AFIE = K / c; and
the ratio K / ln(p), which is what AFIE takes from the weights. SBPF, which draws noise, is measured
a second time at the end: rankings cannot agree better than two measurements of one network.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
from rich.console import Console
from torch import nn

from compress_env.allocation import afie, allocate, sensitivity
from compress_env.data.bundle import load_data
from compress_env.envs.pruning import PruningEnv
from compress_env.networks.models import check_model_name
from compress_env.pruning.plan import PruningPlan
from compress_env.task.task import CompressionTask
from experiments.common.checks import check_choices, check_lowest
from experiments.common.command import run_command, run_measurement
from experiments.common.inputs import data_digest
from experiments.common.run_folder import RunFolder
from experiments.common.training import limit_images, seeded_task, train_with_marks
from experiments.importance_stability.figures import draw_agreement, draw_scores
from experiments.importance_stability.report import format_report

__all__ = ["Config", "main", "run"]

Rows = list[dict[str, Any]]
NOISE_SEEDS = 1000
"""Seeds of SBPF's noise for each seed of a network: another one for each measurement."""


@dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    models: tuple[str, ...] = ("cnn4", "alexnet_small")
    """Named networks."""
    dataset: str = "mnist"
    """Named data set."""
    label: str | None = None
    """What tables and figures call the data set; its name when not given."""
    data_root: Path | None = None
    """Folder of the data set's files."""
    download: bool = False
    """Download the data set when it is missing."""
    validation_images: int | None = 1000
    """Images that SBPF's accuracies are measured on; all validation images when not given."""
    train_images: int | None = None
    """Images that the networks are trained on; all training images when not given."""
    epochs: tuple[int, ...] = (0, 1, 2, 5, 10)
    """Epochs after which layers are scored; the last one ends the training."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initial weights, minibatches and noise."""
    learning_rate: float = 0.02
    """Highest step size of the training."""
    bf16: bool = False
    """Train and evaluate in bfloat16, weights kept in float32."""
    damage: float = 1.0
    """Standard deviation of SBPF's noise in those of a layer's weights."""
    n_trials: int = 5
    """Trials of SBPF for each layer."""
    target: float = 0.5
    """Fraction of the filters that the resulting rates remove."""
    device: str = "auto"
    """auto, cpu, cuda and so on."""
    out: Path | None = None
    """Run folder; a new one under runs/ when not given."""
    resume: Path | None = None
    """Run folder of a stopped comparison to go on with."""

    def check(self) -> None:
        """Check what nothing else checks.

        Raises:
            ValueError: If a setting is out of range.
        """
        check_choices(self, "models", "seeds", "epochs")
        check_lowest(self, 0, "seeds")
        check_lowest(self, 1, "validation_images", "train_images")
        for model in self.models:
            check_model_name(model)
        rising = list(self.epochs) == sorted(self.epochs) and self.epochs[0] >= 0
        if not rising or sum(epoch > 0 for epoch in self.epochs) < 2:
            raise ValueError(
                f"epochs must rise, from 0 or more, and two of them be above 0, got {self.epochs}"
            )

    @property
    def data_label(self) -> str:
        """What tables and figures call the data set."""
        return self.label or self.dataset


class Measurement:
    """Trains each network from each seed, and scores its layers on the way."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        """Load the data.

        Raises:
            ValueError: If a setting is wrong.
            FileNotFoundError: If data are not there.
        """
        config.check()
        self.config = config
        self.folder = folder
        data = load_data(config.dataset, data_root=config.data_root, download=config.download)
        self._data = limit_images(data, config.validation_images, config.train_images)
        folder.hold_to({"data": data_digest(self._data)})

    def rows(self, model: str, seed: int) -> Rows:
        """Return the scores of one network, measured now or before the comparison was stopped."""
        name = f"{model.replace('/', '-')}-seed{seed}"
        kept = self.folder.read_state(name)
        if kept is None:
            kept = {"rows": self._measure(model, seed)}
            self.folder.write_state(name, kept)
        with self.folder.using(name):
            return [{"model": model, "seed": seed} | row for row in kept["rows"]]

    def _measure(self, model: str, seed: int) -> Rows:
        config = self.config
        task = seeded_task(
            model,
            self._data,
            seed=seed,
            learning_rate=config.learning_rate,
            device=config.device,
            bf16=config.bf16,
        )
        plan = self._plan(task)
        networks = train_with_marks(task, copy.deepcopy(task.model), config.epochs, seed)
        rows: Rows = []
        for number, epoch in enumerate(config.epochs):
            rows += self._score(task, plan, networks[epoch], epoch, NOISE_SEEDS * seed + number)
        again = self._sensitivity(task, plan, networks[config.epochs[-1]], NOISE_SEEDS * seed + 999)
        return rows + _rows(again.assign(epoch=config.epochs[-1], score="sbpf_again"))

    def _plan(self, task: CompressionTask) -> PruningPlan:
        """Return the plan of the network's pruning environment: who produces what."""
        env = PruningEnv(task.model, self._data, method="magnitude", device=self.config.device)
        return env.plan

    def _score(
        self, task: CompressionTask, plan: PruningPlan, network: nn.Module, epoch: int, seed: int
    ) -> Rows:
        """Score the layers of one network by everything but the second measurement."""
        start = perf_counter()
        by_entropy = afie(network).loc[_layers(plan)]
        seconds = perf_counter() - start
        tables = [
            self._with_rates(plan, by_entropy[column]).assign(score=name, seconds=seconds)
            for name, column in (("afie", "afie"), ("width_only", "width_only"))
        ]
        ratio = by_entropy["entropy_ratio"].rename("value").reset_index()
        tables += [ratio.assign(score="entropy_ratio", seconds=seconds)]
        tables += [self._sensitivity(task, plan, network, seed).assign(score="sbpf")]
        accuracy = task.score(network)
        return _rows(pd.concat(tables).assign(epoch=epoch, accuracy=accuracy))

    def _sensitivity(
        self, task: CompressionTask, plan: PruningPlan, network: nn.Module, seed: int
    ) -> pd.DataFrame:
        start = perf_counter()
        table = sensitivity(
            network,
            task.score,
            damage=self.config.damage,
            n_trials=self.config.n_trials,
            layers=_layers(plan),
            seed=seed,
        )
        seconds = perf_counter() - start
        return self._with_rates(plan, table["sensitivity"]).assign(seconds=seconds)

    def _with_rates(self, plan: PruningPlan, scores: pd.Series) -> pd.DataFrame:
        """Return a row per layer: its score, and the rate of the decision that removes filters."""
        table = allocate(scores, self.config.target, plan=plan)
        rates = {
            name: float(rate)
            for producers, rate in zip(plan.producers, table["pruning_rate"], strict=True)
            for name in producers
        }
        found = scores.rename("value").reset_index()
        return found.assign(rate=found["layer"].map(rates))


def _rows(table: pd.DataFrame) -> Rows:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _layers(plan: PruningPlan) -> list[str]:
    """Return the layers whose filters can be removed."""
    return list(dict.fromkeys(name for each in plan.producers for name in each))


def run(config: Config, console: Console) -> pd.DataFrame:
    """Measure, write the run folder and print the report.

    Returns:
        One row for each network, seed, epoch, score and layer.

    Raises:
        ValueError: If a setting is wrong.
        FileNotFoundError: If data are not there.
    """
    return run_measurement("importance_stability", config, console, Measurement, _measure)


def _measure(measurement: Measurement, console: Console) -> pd.DataFrame:
    config, folder = measurement.config, measurement.folder
    rows: Rows = []
    for model in config.models:
        for seed in config.seeds:
            rows += measurement.rows(model, seed)
            console.print(f"{model}, seed {seed}: done")
    table = pd.DataFrame(rows)
    report = format_report(table, config.data_label, config.target)
    console.print(report, soft_wrap=True, markup=False, highlight=False)
    folder.write_text("importance_stability.md", report)
    folder.write_figure("scores.png", draw_scores(table, config.data_label))
    folder.write_figure("agreement.png", draw_agreement(table, config.data_label))
    folder.finish(rows)
    return table


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
