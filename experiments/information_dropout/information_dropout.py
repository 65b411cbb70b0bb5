"""What information dropout passes on, and how its noise is distributed (arXiv 1912.02254, Fig. 5).

The paper's claims: the noise follows a log-normal, which its two moments determine; and the network
passes the digit on, not the background. A network is trained for each seed with information dropout
behind every convolution: one with softplus, whose prior is log-normal and learnt, as in the paper's
figure, beside one with ReLU, whose prior is log-uniform. Its noise is sampled, a log-normal is
fitted to one half of the samples by the two moment equations, and compared with the true parameters
and with the other half. Of every test image, the information that the first convolution keeps at
each pixel is compared between strokes and background.

Strokes differ from the background for any network, and so may the information. Two controls tell
what is due to the digits: a network that is trained on shuffled labels, and one whose weights are
random and stay so, of which only information dropout is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from compress_env.data.bundle import ImageSource
from compress_env.pruning.elements import dropout_behind, softplus_behind
from compress_env.pruning.variational import AlphaForm, InformationDropout, normal_from_moments
from compress_env.seeding import derive_generator
from compress_env.task.finetune import Penalty
from compress_env.task.layers import compute_layers
from compress_env.task.task import CompressionTask
from experiments.common.checks import check_lowest
from experiments.common.cli.command import run_command
from experiments.common.run_folder import RunFolder
from experiments.common.studies import Rows, Study, StudyConfig, run_study
from experiments.common.training import train_epochs
from experiments.information_dropout.controls import Kind, with_shuffled_labels
from experiments.information_dropout.figures import (
    Noise,
    draw_information,
    draw_noise,
    draw_weights,
)
from experiments.information_dropout.measures import (
    NoiseFit,
    find_regions,
    fit_noise,
    ks_distance,
    masked_mean,
    pixel_information,
    sample_noise,
)
from experiments.information_dropout.report import format_report

__all__ = ["Config", "Experiment", "main", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(StudyConfig):
    """Settings of the experiment."""

    model: str | tuple[str, ...] = ("lenet5", "lenet5_softplus")
    """Named network, or several, its first layer a convolution that keeps the size of the image."""
    data: str = "mnist"
    """Named data set of light strokes on a dark background."""
    epochs: int = 1
    """Epochs of training with information dropout."""
    kl_weight: float = 1e-5
    """Weight of an image's KL divergence, summed over all units, against the cross-entropy."""
    alpha: AlphaForm = "channel"
    """What the width of a unit's noise follows from: channel or layer."""
    alpha_learning_rate: float = 0.02
    """Step size of Adam for the parameters of that."""
    noise_samples: int = 20_000
    """Samples of the noise of each unit, half of them for the fit."""

    def check(self) -> None:
        """Check what nothing else checks.

        Raises:
            ValueError: If a setting is out of range.
        """
        super().check()
        check_lowest(self, 0, "epochs", "kl_weight")
        check_lowest(self, 100, "noise_samples")


class FirstLayer(NamedTuple):
    """What sees the image, and the information dropout behind it."""

    layer: nn.Module
    """The convolution, with its softplus if it has one."""
    dropout: InformationDropout


class UnitNoise(NamedTuple):
    """Noise of one channel of the first layer at one position."""

    place: str
    """`most` or `least`: where in the image."""
    channel: int
    """Which channel."""
    samples: NDArray[np.float64]
    """(n,) what the channel is multiplied by."""
    fit: NoiseFit
    """A log-normal fitted to them."""

    def row(self) -> dict[str, Any]:
        """Return all but the samples."""
        return {"place": self.place, "channel": self.channel} | self.fit._asdict()


class Experiment(Study[Config]):
    """Trains the network of each seed with information dropout, and measures it."""

    name = "information_dropout"

    def __init__(self, config: Config, folder: RunFolder) -> None:
        """Load the data.

        Raises:
            ValueError: If a setting is wrong.
            FileNotFoundError: If data are not there.
        """
        super().__init__(config, folder)
        self._units: Rows = []
        for model in config.models:
            with self._network(model, config.seeds[0], None) as (task, _, first):
                pixel_information(*first, task.example_image())  # says if the network does not do

    def measure(self, model: str, seed: int) -> Rows:
        """Return a row for each kind of network, and note one for each unit of its noise."""
        return [self._measure_kind(model, seed, kind) for kind in get_args(Kind)]

    def _measure_kind(self, model: str, seed: int, kind: Kind) -> dict[str, Any]:
        row: dict[str, Any] = {"model": model, "kind": kind, "seed": seed}
        with self._network(model, seed, kind) as (task, network, first):
            row |= {"test_accuracy": task.accuracy(network, "test")}
            row |= self._measure_pixels(task, first)
            if kind != "trained":
                return row
            units = [unit.row() for unit in self._sample_units(task, first, seed)]
            row |= _describe_pooled(self._pooled(task, first, seed))
        self._units += [{"model": model, "seed": seed} | unit for unit in units]
        self.folder.write_rows("noise.csv", self._units)
        return row

    def report(self, table: pd.DataFrame) -> str:
        """Format the report of all rows as Markdown."""
        return format_report(table, pd.DataFrame(self._units), self.config.title)

    def figures(self, table: pd.DataFrame) -> dict[str, Figure]:
        """Draw the networks of the first seed."""
        found: dict[str, Figure] = {}
        for model in self.config.models:
            figures = self._figures_of(model, self.config.seeds[0])
            found |= {f"{name}-{model}.png": figure for name, figure in figures.items()}
        return found

    def _figures_of(self, model: str, seed: int) -> dict[str, Figure]:
        title = f"{model} on {self.config.data_label}, seed {seed}"
        kept: dict[str, Tensor] = {}
        for kind in reversed(get_args(Kind)):
            with self._network(model, seed, kind) as (task, network, first):
                images = _first_of_each_class(task.data.test)
                kept = {kind: pixel_information(*first, images)} | kept
                if kind != "trained":
                    continue
                noise = self._noise(task, first, seed)
                with torch.no_grad():
                    first.layer(next(_test_images(task)))
                weights = (_first_convolution(network).weight, first.dropout.information)
                heading = f"{title}: filters of the first layer"
                return {
                    "information": draw_information(images, kept, title),
                    "weights": draw_weights(*weights, heading),
                    "noise": draw_noise(noise, f"{title}: noise of the first layer"),
                }
        raise AssertionError("the trained network comes last")

    @contextmanager
    def _network(
        self, model: str, seed: int, kind: Kind | None
    ) -> Iterator[tuple[CompressionTask, nn.Module, FirstLayer]]:
        """Give the network of a seed, with information dropout behind its convolutions.

        Args:
            model: Named network.
            seed: Of weights, minibatches and noise.
            kind: How it is trained; not at all when None.
        """
        task = self.task(model, seed)
        network = copy.deepcopy(task.model)
        if kind == "untrained":
            network.requires_grad_(False)
        convolutions = _convolutions(network)
        name, layer = next(iter(convolutions.items()))
        image, form = task.example_image(), self.config.alpha
        softplus = softplus_behind(network, name, image)
        with ExitStack() as stack:
            dropouts = [
                stack.enter_context(dropout_behind(network, each, image, form))
                for each in convolutions
            ]
            if kind is not None:
                train = partial(self._train, task, network, dropouts, seed, kind)
                self.train_once(f"{model}-seed{seed}-{kind}", network, train)
            seen = layer if softplus is None else nn.Sequential(layer, softplus)
            yield task, network.eval(), FirstLayer(seen, dropouts[0])

    def _train(
        self,
        task: CompressionTask,
        network: nn.Module,
        dropouts: Sequence[InformationDropout],
        seed: int,
        kind: Kind,
    ) -> None:
        def value() -> Tensor:
            divergences = [dropout.divergence for dropout in dropouts]
            return self.config.kl_weight * torch.stack(divergences).sum()

        parameters = [p for dropout in dropouts for p in dropout.parameters()]
        adam = torch.optim.Adam(parameters, self.config.alpha_learning_rate)
        if kind == "shuffled_labels":
            train = with_shuffled_labels(task.data.train, derive_generator(seed, 7))
            data = replace(task.data, train=train)
            task = CompressionTask(task.model, data, device=task.device, config=task.config)
        train_epochs(task, network, self.config.epochs, seed, Penalty(value, adam))

    def _measure_pixels(self, task: CompressionTask, first: FirstLayer) -> dict[str, float]:
        """Return the information at strokes and elsewhere, mean over the test images."""
        means: dict[str, list[Tensor]] = {"strokes": [], "background": [], "far": []}
        reach = _first_convolution(first.layer).kernel_size[0] // 2
        for images in _test_images(task):
            information = pixel_information(*first, images)
            regions = find_regions(images, reach)
            for name, mask in regions._asdict().items():
                means[name].append(masked_mean(information, mask))
        strokes, background, far = (torch.cat(values).double() for values in means.values())
        return {
            "information_strokes": float(strokes.nanmean()),
            "information_background": float(background.nanmean()),
            "information_far": float(far.nanmean()),
            "ratio": float((strokes / background).nanmean()),
            "ratio_far": float((strokes / far).nanmean()),
            "images_higher": float((strokes > background).double().mean()),
        }

    def _sample_units(
        self, task: CompressionTask, first: FirstLayer, seed: int
    ) -> Iterator[UnitNoise]:
        """Sample the noise of every channel, where one image keeps most and least information."""
        for number, (place, features) in enumerate(_extreme_features(task, first).items()):
            alpha = first.dropout.alpha(features).flatten().tolist()
            noise_seed = derive_generator(seed, 5, number).initial_seed()
            noise = sample_noise(first.dropout, features, self.config.noise_samples, noise_seed)
            samples = noise.flatten(1).double().numpy()  # (n, N, 1, 1) -> (n, N)
            for channel, width in enumerate(alpha):
                mine = samples[:, channel]
                yield UnitNoise(place, channel, mine, fit_noise(mine, width))

    def _pooled(self, task: CompressionTask, first: FirstLayer, seed: int) -> NDArray[np.float64]:
        """Return noise of all units of the layer for one image, (n,)."""
        with torch.no_grad():
            features = first.layer(task.example_image())
        n_repeats = max(1, 20 * self.config.noise_samples // features.numel())
        noise = sample_noise(
            first.dropout, features, n_repeats, derive_generator(seed, 6).initial_seed()
        )
        return noise.flatten().double().numpy()

    def _noise(self, task: CompressionTask, first: FirstLayer, seed: int) -> list[Noise]:
        """Return the noise of the narrowest and the widest unit, and of the whole layer."""
        units = sorted(self._sample_units(task, first, seed), key=lambda unit: unit.fit.alpha)
        found = []
        for heading, unit in (("narrowest", units[0]), ("widest", units[-1])):
            fit = unit.fit
            heading = f"{heading} unit, alpha {fit.alpha:.3f}"
            fitted, true = (fit.fitted_mu, fit.fitted_sigma), (fit.true_mu, fit.alpha)
            found.append(Noise(heading, unit.samples, fitted, true))
        pooled = self._pooled(task, first, seed)
        fitted = normal_from_moments(float(pooled.mean()), float(pooled.var()))
        return [*found, Noise("all units of the layer, one image", pooled, fitted)]


def _first_of_each_class(source: ImageSource) -> Tensor:
    """Return the first image of each class, up to eight."""
    _, firsts = np.unique(source.labels.numpy(), return_index=True)
    images, _ = next(source.batches([torch.from_numpy(firsts[:8])]))
    return images


def _convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions of a network, whose first layer must be one.

    Raises:
        ValueError: If it is not.
    """
    layers = compute_layers(network)
    found = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Conv2d)}
    if not found or next(iter(layers)) not in found:
        raise ValueError("the network's first layer must be a convolution")
    return found


def _first_convolution(module: nn.Module) -> nn.Conv2d:
    return next(each for each in module.modules() if isinstance(each, nn.Conv2d))


def _test_images(task: CompressionTask) -> Iterator[Tensor]:
    """Yield all test images in batches."""
    source = task.data.test
    order = torch.split(torch.arange(len(source)), task.config.evaluation_batch_size)
    return (images for images, _ in source.batches(order))


def _extreme_features(task: CompressionTask, first: FirstLayer) -> dict[str, Tensor]:
    """Return one image's features where most and least information is kept, (1, N, 1, 1) each."""
    image = task.example_image()
    information = pixel_information(*first, image)[0]
    width = information.shape[1]
    with torch.no_grad():
        features = first.layer(image)
    places = {"most": int(information.argmax()), "least": int(information.argmin())}
    return {
        name: features[:, :, at // width, at % width][:, :, None, None]
        for name, at in places.items()
    }


def _describe_pooled(samples: NDArray[np.float64]) -> dict[str, float]:
    """Return a log-normal fitted to the noise of many units, and how far it is from it."""
    mu, sigma = normal_from_moments(float(samples.mean()), float(samples.var()))
    return {
        "pooled_mean": float(samples.mean()),
        "pooled_mu": mu,
        "pooled_sigma": sigma,
        "pooled_ks": ks_distance(samples, mu, sigma),
    }


def run(config: Config, console: Console) -> pd.DataFrame:
    """Measure, see `run_study`; one row for each seed."""
    return run_study(Experiment, config, console)


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
