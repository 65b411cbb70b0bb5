"""What removing a part of one layer costs, method by method (arXiv 1912.02254, Fig. 6).

The paper's claim: variational pruning beats channel pruning by LASSO, and that beats magnitude, on
each layer of a network of four. Of a network trained for each seed, one layer at a time is pruned
at several rates while the others keep everything; the error is measured before and after the same
short fine-tuning. A method that removes elements takes as many weights of the layer as one that
removes channels, but saves no dense multiply-accumulates: both costs are in the tables. The
networks of methods without information dropout train for as many minibatches without it first, and
so does the unpruned network that errors are compared with.

Three controls tell what the choice of elements contributes: elements at random; those with the
smallest weight times root mean square of its input, which needs no information dropout; and
information dropout whose information is shuffled among the outputs, which differs from
`variational` in nothing but what the information says.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import pandas as pd
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from agents import Uniform
from compress_env.data.bundle import DataBundle
from compress_env.envs.pruning import PruningEnv, PruningMethod
from compress_env.pruning.elements import VariationalConfig
from compress_env.pruning.variational import AlphaForm, remove_elements, saliency
from compress_env.seeding import derive_generator
from compress_env.task.layers import Layer, compute_layers, nonzero_weights
from compress_env.task.task import CompressionTask
from experiments.common.checks import check_choices, check_lowest
from experiments.common.cli.command import run_command
from experiments.common.studies import Rows, Study, StudyConfig, run_study
from experiments.common.training import train_epochs
from experiments.single_layer.figures import draw_costs, draw_errors
from experiments.single_layer.report import format_report

__all__ = ["Config", "Measurement", "Method", "main", "prune_one_layer", "run"]

Method = Literal[
    "magnitude",
    "channel",
    "channel+variational",
    "variational",
    "shuffled_information",
    "elements_by_weight",
    "elements_at_random",
]
MAX_RATE = 0.95
COSTS = ("dense_macs", "sparse_macs", "dense_params", "sparse_params")
RANDOM_TEMPERATURE = 1e9
"""So large that all elements are as likely."""


@dataclass(frozen=True, kw_only=True)
class Config(StudyConfig):
    """Settings of the comparison."""

    model: str = "cnn4"
    """Named network."""
    calibration_images: int = 512
    """Images that channels are selected and weights are fitted on. A linear layer takes one row of
    statistics from each: with fewer rows than inputs that stay, a fit is far from the weights."""
    method: tuple[Method, ...] = get_args(Method)
    """What is removed, and how it is selected; the last three of the default are controls."""
    rates: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Pruning rates of the layer."""
    epochs: int = 1
    """Epochs of training of each network before pruning."""
    finetune_steps: int = 20
    """Minibatches of fine-tuning after pruning, the same ones for every method."""
    variational_steps: int = 100
    """Minibatches of training with information dropout, before elements go; without it for the
    methods that have none, before they prune. Always so many, for the sake of the comparison."""
    kl_weight: float = VariationalConfig.kl_weight
    """Weight of an image's KL divergence in it, summed over the layer's units."""
    alpha: AlphaForm = VariationalConfig.alpha
    """What the width of a unit's noise follows from: channel or layer."""
    alpha_learning_rate: float = VariationalConfig.alpha_learning_rate
    """Step size of Adam for the parameters of that."""
    temperature: float = VariationalConfig.temperature
    """Randomness with which elements go, by information or by weight; the paper's is 1."""

    def check(self) -> None:
        """Check what nothing else checks.

        Raises:
            ValueError: If a setting is out of range.
        """
        super().check()
        check_choices(self, "method", "rates")
        if not all(0.0 < rate <= MAX_RATE for rate in self.rates):
            raise ValueError(f"rates must be in (0, {MAX_RATE}], got {self.rates}")
        check_lowest(self, 0, "epochs", "finetune_steps", "temperature")

    def load(self, **options: Any) -> DataBundle:
        """Load the data set with as many images as are wanted, see `StudyConfig.load`."""
        return super().load(n_calibration=self.calibration_images, **options)


class Measurement(Study[Config]):
    """Trains the network of each seed, and prunes each of its layers by each method."""

    name = "single_layer"

    def measure(self, model: str, seed: int) -> Rows:
        """Measure the unpruned network, and each layer pruned by each method at each rate."""
        task = self.task(model, seed)
        network = copy.deepcopy(task.model)
        n_epochs = self.config.epochs
        self.train_once(
            f"seed{seed}-network", network, lambda: train_epochs(task, network, n_epochs, seed)
        )
        trained = copy.deepcopy(network)
        self.train_once(f"seed{seed}-trained", trained, lambda: self._train_on(trained, seed))
        measure = partial(self._measure, network, trained, seed)
        cells = {"none": partial(self._measure_unpruned, network, trained, seed)}
        cells |= {each: partial(measure, each) for each in self.config.method}
        return [
            {"seed": seed} | row
            for name, measure in cells.items()
            for row in self.rows_once(f"seed{seed}-{name}", measure)
        ]

    def _env(self, network: nn.Module, trained: nn.Module, seed: int, method: Method) -> PruningEnv:
        name, variational = self._settings(method)
        trains = variational.n_steps > 0 and name in ("variational", "channel+variational")
        return PruningEnv(
            network if trains else trained,
            self.data,
            device=self.config.device,
            method=name,
            max_pruning_rate=MAX_RATE,
            variational=variational,
            finetune_steps=0,
            reward_at="episode",
            seed=seed,
        )

    def _train_on(self, network: nn.Module, seed: int) -> None:
        """Train a network, in place, for as long as information dropout would have."""
        task = CompressionTask(network, self.data, device=self.config.device)
        task.finetune(network, self.config.variational_steps, derive_generator(seed, 4))
        task.reestimate_batch_norm(network, derive_generator(seed, 3))

    def _settings(self, method: Method) -> tuple[PruningMethod, VariationalConfig]:
        """Return the environment's method, and how elements are selected."""
        if method == "elements_by_weight":
            return "variational", VariationalConfig(n_steps=0, temperature=self.config.temperature)
        if method == "elements_at_random":
            return "variational", VariationalConfig(n_steps=0, temperature=RANDOM_TEMPERATURE)
        config = self.config
        name: PruningMethod = "variational" if method == "shuffled_information" else method
        return name, VariationalConfig(
            config.variational_steps,
            config.kl_weight,
            config.alpha,
            config.alpha_learning_rate,
            tolerance=0.0,
            temperature=config.temperature,
            shuffle=method == "shuffled_information",
        )

    def _measure_unpruned(self, network: nn.Module, trained: nn.Module, seed: int) -> Rows:
        """Measure the unpruned network: as it is, and after the training that pruned ones get."""
        task = CompressionTask(network, self.data, device=self.config.device)
        row = {
            "method": "none",
            "layer": "",
            "rate": 0.0,
            "weights_removed": 0.0,
            **dict.fromkeys(COSTS, 1.0),
            "error_trained": 1.0 - task.score(task.model),
            "error_before": 1.0 - task.score(trained),
            "error_after": self._error_after(task, copy.deepcopy(trained), seed),
        }
        return [row]

    def _measure(self, network: nn.Module, trained: nn.Module, seed: int, method: Method) -> Rows:
        """Prune each layer at each rate; one row each."""
        env = self._env(network, trained, seed, method)
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
            "information_std": info.get("information_std", math.nan),
            "overlap": _overlap(env, compute_layers(network)[layer.name].weight),
            "error_before": 1.0 - info["accuracy"],
            "error_after": self._error_after(env.task, network, seed),
        }

    def _error_after(self, task: CompressionTask, network: nn.Module, seed: int) -> float:
        """Fine-tune a network in place and return its error."""
        task.finetune(network, self.config.finetune_steps, derive_generator(seed, 2), anneal=True)
        task.reestimate_batch_norm(network, derive_generator(seed, 3))
        return 1.0 - task.score(network)

    def report(self, table: pd.DataFrame) -> str:
        """Format the report of all rows as Markdown."""
        config = self.config
        return format_report(table, config.title, config.finetune_steps, config.variational_steps)

    def figures(self, table: pd.DataFrame) -> dict[str, Figure]:
        """Draw the errors by rate, and by cost."""
        title = self.config.title
        return {"errors.png": draw_errors(table, title), "costs.png": draw_costs(table, title)}


def prune_one_layer(env: PruningEnv, layer: str, rate: float) -> dict[str, Any]:
    """Walk through an episode that prunes one layer and leaves the others whole.

    Args:
        env: An environment without a budget.
        layer: Name of a layer of its walk.
        rate: The layer's pruning rate.

    Returns:
        The last step's info; `accuracy` and costs are those of the pruned network, and
        `information_std`, if there is any, is the layer's.

    Raises:
        RuntimeError: If a step fails.
    """
    observation, info = env.reset()
    for each in env.walk:
        wanted = Uniform(rate if each.name == layer else 0.0, env=env)
        action, _ = wanted.predict(observation)
        observation, _, _, _, info = env.step(action)
        if "error" in info:
            raise RuntimeError(f"pruning {layer!r} at rate {rate} failed: {info['error']}")
        if each.name == layer:
            spread = {name: info[name] for name in ("information_std",) if name in info}
    return info | spread


def _overlap(env: PruningEnv, weight: Tensor) -> float:
    """Return the share of the zeros of a weight that weight times input alone would choose too.

    NaN where the information has had no part in it, or not all outputs and inputs are there.
    """
    measured = env.elements.last
    if measured is None or env.method != "variational" or env.variational.n_steps == 0:
        return math.nan
    gone = weight == 0.0
    trained = measured.after[f"{measured.layer}.weight"].flatten(1)
    scores = saliency(trained, measured.rms, torch.ones_like(measured.information.values))
    n_gone, unused = int(gone.sum()), torch.Generator()
    others = remove_elements(scores, n_gone, 0.0, unused).view_as(gone)
    return float((gone & others).sum()) / n_gone


def run(config: Config, console: Console) -> pd.DataFrame:
    """Measure, see `run_study`; one row for each seed, method, layer and rate."""
    return run_study(Measurement, config, console)


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
