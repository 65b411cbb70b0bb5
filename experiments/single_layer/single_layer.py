"""What removing a part of one layer costs, method by method (arXiv 1912.02254, Fig. 6).

The paper's claim: variational pruning beats channel pruning by LASSO, and that beats magnitude, on
each layer of a network of four. Of a network trained for each seed, one layer at a time is pruned
at several rates while the others keep everything; the error is measured before and after the same
short fine-tuning. A method that removes elements takes as many weights of the layer as one that
removes channels, but saves no dense multiply-accumulates: both costs are in the tables. The
networks of methods without information dropout train for as many minibatches without it first, and
so does the unpruned network that errors are compared with.

Two controls tell what the choice of elements contributes: elements at random, and those with the
smallest weight times root mean square of its input, which needs no information dropout.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich.console import Console
from torch import nn

from agents import Uniform
from compress_env.data.bundle import DataBundle, load_data
from compress_env.envs.pruning import PruningEnv, PruningMethod
from compress_env.pruning.elements import VariationalConfig
from compress_env.seeding import derive_generator
from compress_env.task.layers import Layer, nonzero_weights
from compress_env.task.task import CompressionTask
from experiments.common.checks import check_choices, check_lowest
from experiments.common.command import run_command, run_measurement
from experiments.common.inputs import data_digest
from experiments.common.run_folder import RunFolder
from experiments.common.training import limit_images, seeded_task, train_epochs
from experiments.single_layer.figures import draw_costs, draw_errors
from experiments.single_layer.report import format_report

__all__ = ["Config", "Method", "main", "prune_one_layer", "run"]

Method = Literal[
    "magnitude",
    "channel",
    "variational",
    "channel+variational",
    "elements_by_weight",
    "elements_at_random",
]
Rows = list[dict[str, Any]]
MAX_RATE = 0.95
ALL_METHODS: tuple[Method, ...] = (
    "magnitude",
    "channel",
    "channel+variational",
    "variational",
    "elements_by_weight",
    "elements_at_random",
)
COSTS = ("dense_macs", "sparse_macs", "dense_params", "sparse_params")
RANDOM_TEMPERATURE = 1e9
"""So large that all elements are as likely."""


@dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    model: str = "cnn4"
    """Named network."""
    dataset: str = "mnist"
    """Named data set."""
    label: str | None = None
    """What tables and figures call the data set; its name when not given."""
    data_root: Path | None = None
    """Folder of the data set's files."""
    download: bool = False
    """Download the data set when it is missing."""
    validation_images: int | None = None
    """Images that errors are measured on; all validation images when not given."""
    calibration_images: int = 512
    """Images that channels are selected and weights are fitted on. A linear layer takes one row of
    statistics from each: with fewer rows than inputs that stay, a fit is far from the weights."""
    methods: tuple[Method, ...] = ALL_METHODS
    """What is removed, and how it is selected; the last two of the default are controls."""
    rates: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Pruning rates of the layer."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of initial weights, minibatches, noise and calibration positions."""
    epochs: int = 1
    """Epochs of training of each network before pruning."""
    learning_rate: float = 0.02
    """Highest step size of this training."""
    finetune_steps: int = 20
    """Minibatches of fine-tuning after pruning, the same ones for every method."""
    variational_steps: int = VariationalConfig.n_steps
    """Minibatches of training with information dropout, before elements go; without it for the
    methods that have none, before they prune."""
    kl_weight: float = VariationalConfig.kl_weight
    """Weight of the KL divergence in it."""
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
        check_choices(self, "methods", "rates", "seeds")
        if not all(0.0 < rate <= MAX_RATE for rate in self.rates):
            raise ValueError(f"rates must be in (0, {MAX_RATE}], got {self.rates}")
        check_lowest(self, 0, "seeds", "epochs", "finetune_steps")
        check_lowest(self, 1, "validation_images")

    @property
    def title(self) -> str:
        """What tables and figures call the comparison."""
        return f"{self.model} on {self.label or self.dataset}"


class Measurement:
    """Trains the network of each seed, and prunes each of its layers by each method."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        """Load the data.

        Raises:
            ValueError: If a setting is wrong.
            FileNotFoundError: If data are not there.
        """
        config.check()
        self.config = config
        self.folder = folder
        data = load_data(
            config.dataset,
            data_root=config.data_root,
            download=config.download,
            n_calibration=config.calibration_images,
        )
        self._data: DataBundle = limit_images(data, config.validation_images)
        folder.hold_to({"data": data_digest(self._data)})

    def rows(self, seed: int) -> Rows:
        """Measure everything of one seed, but for what a stopped comparison has left."""
        network = self._network(seed)
        rows = self._once(f"seed{seed}-none", lambda: [self._measure_unpruned(network, seed)])
        for method in self.config.methods:
            measure = partial(self._measure, network, seed, method)
            rows = rows + self._once(f"seed{seed}-{method}", measure)
        return [{"seed": seed} | row for row in rows]

    def _once(self, name: str, measure: Callable[[], Rows]) -> Rows:
        """Measure and keep the rows, or return those that were kept."""
        kept = self.folder.read_state(name)
        if kept is None:
            kept = {"rows": measure()}
            self.folder.write_state(name, kept)
        with self.folder.using(name):
            return list(kept["rows"])

    def _network(self, seed: int) -> nn.Module:
        """Return the trained network of a seed."""
        config, name = self.config, f"seed{seed}-network"
        task = seeded_task(
            config.model,
            self._data,
            seed=seed,
            learning_rate=config.learning_rate,
            device=config.device,
        )
        network = copy.deepcopy(task.model)
        kept = self.folder.read_state(name)
        if kept is None:
            train_epochs(task, network, config.epochs, seed)
            self.folder.write_state(name, {"weights": network.state_dict()})
        else:
            with self.folder.using(name):
                network.load_state_dict(kept["weights"])
        return network

    def _env(self, network: nn.Module, seed: int, method: Method) -> PruningEnv:
        name, variational = self._settings(method)
        trains = variational.n_steps > 0 and name in ("variational", "channel+variational")
        return PruningEnv(
            network if trains else self._trained_on(network, seed),
            self._data,
            device=self.config.device,
            method=name,
            max_pruning_rate=MAX_RATE,
            variational=variational,
            finetune_steps=0,
            reward_at="episode",
            seed=seed,
        )

    def _trained_on(self, network: nn.Module, seed: int) -> nn.Module:
        """Return a copy that has trained as long as information dropout would have let it."""
        task = CompressionTask(network, self._data, device=self.config.device)
        trained = copy.deepcopy(task.model)
        task.finetune(trained, self.config.variational_steps, derive_generator(seed, 4))
        task.reestimate_batch_norm(trained, derive_generator(seed, 3))
        return trained

    def _settings(self, method: Method) -> tuple[PruningMethod, VariationalConfig]:
        """Return the environment's method, and how elements are selected."""
        if method == "elements_by_weight":
            return "variational", VariationalConfig(n_steps=0)
        if method == "elements_at_random":
            return "variational", VariationalConfig(n_steps=0, temperature=RANDOM_TEMPERATURE)
        config = self.config
        return method, VariationalConfig(config.variational_steps, config.kl_weight)

    def _measure_unpruned(self, network: nn.Module, seed: int) -> dict[str, Any]:
        """Measure the unpruned network: as it is, and after the training that pruned ones get."""
        task = CompressionTask(network, self._data, device=self.config.device)
        trained = self._trained_on(network, seed)
        return {
            "method": "none",
            "layer": "",
            "rate": 0.0,
            "weights_removed": 0.0,
            **dict.fromkeys(COSTS, 1.0),
            "error_trained": 1.0 - task.score(task.model),
            "error_before": 1.0 - task.score(trained),
            "error_after": self._error_after(task, trained, seed),
        }

    def _measure(self, network: nn.Module, seed: int, method: Method) -> Rows:
        """Prune each layer at each rate; one row each."""
        env = self._env(network, seed, method)
        return [
            {"method": method} | self._measure_layer(env, layer, rate, seed)
            for layer in env.walk
            for rate in self.config.rates
        ]

    def _measure_layer(
        self, env: PruningEnv, layer: Layer, rate: float, seed: int
    ) -> dict[str, Any]:
        _, unpruned = env.reset()
        info = prune_one_layer(env, layer.name, rate)
        network = env.compressed_model()
        n_left = nonzero_weights(network, [layer.name])[0]
        return {
            "layer": layer.name,
            "rate": rate,
            "weights_removed": 1.0 - n_left / layer.n_weights,
            **{name: info[name] / unpruned[name] for name in COSTS},
            "error_before": 1.0 - info["accuracy"],
            "error_after": self._error_after(env.task, network, seed),
        }

    def _error_after(self, task: CompressionTask, network: nn.Module, seed: int) -> float:
        """Fine-tune a network in place and return its error."""
        task.finetune(network, self.config.finetune_steps, derive_generator(seed, 2), anneal=True)
        task.reestimate_batch_norm(network, derive_generator(seed, 3))
        return 1.0 - task.score(network)


def prune_one_layer(env: PruningEnv, layer: str, rate: float) -> dict[str, Any]:
    """Walk through an episode that prunes one layer and leaves the others whole.

    Args:
        env: An environment without a budget.
        layer: Name of a layer of its walk.
        rate: The layer's pruning rate.

    Returns:
        The last step's info; `accuracy` and costs are those of the pruned network.

    Raises:
        RuntimeError: If a step fails.
    """
    observation, info = env.reset()
    for each in env.walk:
        wanted = Uniform(rate if each.name == layer else 0.0)
        action, _ = wanted.predict(observation)
        observation, _, _, _, info = env.step(action)
        if "error" in info:
            raise RuntimeError(f"pruning {layer!r} at rate {rate} failed: {info['error']}")
    return info


def run(config: Config, console: Console) -> pd.DataFrame:
    """Measure, write the run folder and print the report.

    Returns:
        One row for each seed, method, layer and rate.

    Raises:
        ValueError: If a setting is wrong.
        FileNotFoundError: If data are not there.
    """
    return run_measurement("single_layer", config, console, Measurement, _measure)


def _measure(measurement: Measurement, console: Console) -> pd.DataFrame:
    config, folder = measurement.config, measurement.folder
    rows: Rows = []
    for seed in config.seeds:
        rows += measurement.rows(seed)
        error = next(row for row in rows if row["seed"] == seed)["error_trained"]
        console.print(f"seed {seed}: error of the unpruned network {100 * error:.2f} %")
    table = pd.DataFrame(rows)
    report = format_report(table, config.title, config.finetune_steps, config.variational_steps)
    console.print(report, soft_wrap=True, markup=False, highlight=False)
    folder.write_text("single_layer.md", report)
    folder.write_figure("errors.png", draw_errors(table, config.title))
    folder.write_figure("costs.png", draw_costs(table, config.title))
    folder.finish(rows)
    return table


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
