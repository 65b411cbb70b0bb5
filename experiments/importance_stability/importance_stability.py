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
from time import perf_counter

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

from compress_env.allocation import afie, allocate, sensitivity
from compress_env.envs.pruning import PruningEnv
from compress_env.pruning.plan import PruningPlan
from compress_env.task.task import CompressionTask
from experiments.common.checks import check_choices
from experiments.common.cli.command import run_command
from experiments.common.studies import Rows, Study, StudyConfig, run_study
from experiments.common.training import train_with_marks
from experiments.importance_stability.figures import draw_agreement, draw_scores
from experiments.importance_stability.report import format_report

__all__ = ["Config", "Measurement", "main", "run"]

NOISE_SEEDS = 1000
"""Seeds of SBPF's noise for each seed of a network: another one for each measurement."""


@dataclass(frozen=True, kw_only=True)
class Config(StudyConfig):
    """Settings of the comparison."""

    model: tuple[str, ...] = ("cnn4", "alexnet_small")
    """Named networks."""
    validation_images: int | None = 1000
    """Images that SBPF's accuracies are measured on; all validation images when not given."""
    epochs: tuple[int, ...] = (0, 1, 2, 5, 10)
    """Epochs after which layers are scored; the last one ends the training."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initial weights, minibatches and noise."""
    bf16: bool = False
    """Train and evaluate in bfloat16, weights kept in float32."""
    damage: float = 1.0
    """Standard deviation of SBPF's noise in those of a layer's weights."""
    n_trials: int = 5
    """Trials of SBPF for each layer."""
    target: float = 0.5
    """Fraction of the filters that the resulting rates remove."""

    def check(self) -> None:
        """Check what nothing else checks.

        Raises:
            ValueError: If a setting is out of range.
        """
        super().check()
        check_choices(self, "model", "epochs")
        rising = list(self.epochs) == sorted(self.epochs) and self.epochs[0] >= 0
        if not rising or sum(epoch > 0 for epoch in self.epochs) < 2:
            raise ValueError(
                f"epochs must rise, from 0 or more, and two of them be above 0, got {self.epochs}"
            )


class Measurement(Study[Config]):
    """Trains each network from each seed, and scores its layers on the way."""

    name = "importance_stability"

    def measure(self, model: str, seed: int) -> Rows:
        """Score the layers of a network after every number of epochs."""
        name = f"{model.replace('/', '-')}-seed{seed}"
        rows = self.rows_once(name, lambda: self._scored(model, seed))
        return [{"model": model, "seed": seed} | row for row in rows]

    def _scored(self, model: str, seed: int) -> Rows:
        """Train a network and score it at every epoch."""
        config = self.config
        task = self.task(model, seed, bf16=config.bf16)
        # The plan of the network's pruning environment: who produces what.
        plan = PruningEnv(task.model, self.data, method="magnitude", device=config.device).plan
        networks = train_with_marks(task, copy.deepcopy(task.model), config.epochs, seed)
        rows: Rows = []
        for number, epoch in enumerate(config.epochs):
            rows += self._score(task, plan, networks[epoch], epoch, NOISE_SEEDS * seed + number)
        again = self._sensitivity(task, plan, networks[config.epochs[-1]], NOISE_SEEDS * seed + 999)
        return rows + _as_rows(again.assign(epoch=config.epochs[-1], score="sbpf_again"))

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
        return _as_rows(pd.concat(tables).assign(epoch=epoch, accuracy=accuracy))

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

    def report(self, table: pd.DataFrame) -> str:
        """Format the report of all rows as Markdown."""
        return format_report(table, self.config.data_label, self.config.target)

    def figures(self, table: pd.DataFrame) -> dict[str, Figure]:
        """Draw scores, and their agreement with the final ones."""
        label = self.config.data_label
        return {
            "scores.png": draw_scores(table, label),
            "agreement.png": draw_agreement(table, label),
        }


def _as_rows(table: pd.DataFrame) -> Rows:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _layers(plan: PruningPlan) -> list[str]:
    """Return the layers whose filters can be removed."""
    return list(dict.fromkeys(name for each in plan.producers for name in each))


def run(config: Config, console: Console) -> pd.DataFrame:
    """Measure, see `run_study`; one row for each network, seed, epoch, score and layer."""
    return run_study(Measurement, config, console)


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
