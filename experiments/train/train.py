"""Train a named network by its recipe, or by settings of your own.

`python -m experiments.train --model resnet20 --data cifar10 --data-root DATA` leaves a run folder:
`model.safetensors`, weights for `--weights` of other commands; `epochs.csv` with the loss, the
validation accuracy and the seconds of every epoch; `training.png`; and `table.csv`, written last,
with the accuracy on test images, of more than ten classes top-1 and top-5. Stopped after any
epoch, `--resume FOLDER` goes on. Where nothing is said, a minibatch is timed in float32 and under
autocast in bfloat16, and with images channels last and channels first: what is fastest is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console

from compress_env.data.bundle import DATASETS, DataBundle, load_data
from compress_env.names import check_name
from compress_env.networks.libraries import AUTO, choose_preparation
from compress_env.networks.models import RECIPES, build_model, check_model_name, save_checkpoint
from compress_env.networks.training import Recipe, Training
from compress_env.seeding import global_seed
from compress_env.task.devices import select_device
from compress_env.task.scoring import halving, largest_batch, top_accuracies, tops_for
from experiments.common.checks import check_lowest
from experiments.common.cli.command import run_command, run_measurement
from experiments.common.cli.heartbeat import Heartbeat, format_seconds, time_left
from experiments.common.cli.say import say
from experiments.common.drawing.figures import make_panels
from experiments.common.inputs import data_digest
from experiments.common.run_folder import RunFolder
from experiments.common.stored import typed
from experiments.train.layout import Layout, fastest

__all__ = ["Config", "draw", "main", "run"]

STATE = "training"
OF_RECIPE = ("epochs", "batch_size", "learning_rate", "weight_decay", "label_smoothing")
"""Settings that are the recipe's where they are not given."""
EVALUATION_BATCH = 500
"""Images that are scored at once, if they are small."""
COLUMNS = {
    "epoch": int,
    "loss": float,
    "learning_rate": float,
    "validation_accuracy": float,
    "seconds": float,
}
"""Columns of `epochs.csv`, and what they hold."""


@dataclass(frozen=True)
class Config:
    """Settings of a training."""

    model: str = "lenet5"
    """Network: a name of compress_env, `torchvision/NAME` or `timm/NAME`."""
    data: str = "digits"
    """Images: the name of a data set, or `folder` for a tree of your own."""
    data_root: Path | None = None
    """Folder of the data set's files."""
    download: bool = False
    """Download the data set when it is missing."""
    image_size: int | None = None
    """Side in pixels to which images are scaled, where the data set allows it."""
    preparation: str = AUTO
    """How images of imagenet or a folder are normalised: auto, as the network's published weights
    expect; imagenet, with its mean and standard deviation; timm/NAME, as timm's weights expect."""
    epochs: int | None = None
    """Passes over the training images; the recipe's when not given."""
    batch_size: int | None = None
    """Images in a minibatch; the recipe's when not given."""
    learning_rate: float | None = None
    """Peak of the one-cycle schedule; the recipe's when not given."""
    weight_decay: float | None = None
    """L2 penalty; the recipe's when not given."""
    label_smoothing: float | None = None
    """Share of the target spread over all classes; the recipe's when not given."""
    seed: int = 0
    """Seed of the initial weights, the order of the images, their augmentation and dropout."""
    device: str = "auto"
    """auto, cpu, cuda and so on."""
    bf16: bool | None = None
    """Forward passes under autocast in bfloat16; where that is faster when not given."""
    channels_last: bool | None = None
    """Network and images channels last; where that is faster when not given."""
    out: Path | None = None
    """Run folder; a new one under runs/ when not given."""
    resume: Path | None = None
    """Run folder of a stopped training to go on with."""

    def recipe(self) -> Recipe:
        """Return the recipe of the network and the images with what is given in its place.

        Raises:
            ValueError: If there is no recipe and no number of epochs, or a setting is wrong.
        """
        check_model_name(self.model)
        check_name("data set", self.data, DATASETS)
        known = RECIPES.get((self.model, self.data))
        if known is None and self.epochs is None:
            names = ", ".join(f"{model} on {data}" for model, data in RECIPES)
            raise ValueError(
                f"no recipe for {self.model} on {self.data}: give --epochs, or choose one of: "
                f"{names}"
            )
        given = {name: getattr(self, name) for name in OF_RECIPE}
        given = {name: value for name, value in given.items() if value is not None}
        recipe = replace(known or Recipe(epochs=1), seed=self.seed, **given)
        check_lowest(recipe, 1, "epochs", "batch_size")
        check_lowest(recipe, 0, "seed", "weight_decay")
        if not 0 < recipe.learning_rate < math.inf or not 0 <= recipe.label_smoothing <= 1:
            raise ValueError(
                "expected a finite learning_rate above 0 and label_smoothing in [0, 1], got "
                f"{recipe.learning_rate} and {recipe.label_smoothing}"
            )
        return recipe


class Run:
    """A network, its images, and the training of the one on the others."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        """Load the images, build the network and take up what a stopped run has left.

        Raises:
            ValueError: If a setting is wrong, or the images are others than before.
            FileNotFoundError: If images are not there.
        """
        self.config, self.folder, self.recipe = config, folder, config.recipe()
        self.device = select_device(config.device)
        data = load_data(
            config.data,
            data_root=config.data_root,
            download=config.download,
            size=config.image_size,
            preparation=choose_preparation(config.preparation, config.model, config.data),
        )
        self.data: DataBundle = data.to(self.device)
        folder.hold_to({"data": data_digest(data)})
        with global_seed(config.seed, self.device):
            self.model = build_model(config.model, data.num_classes, data.image_shape)
        self.model.to(self.device)
        self.rows: list[dict[str, Any]] = []
        self._scoring_size = largest_batch(data.image_shape, EVALUATION_BATCH)
        state = folder.read_state(STATE)
        with folder.using(STATE):
            self.layout = self._layout(state)
            self.training = Training(
                self.model, self.data.train, self.recipe, **self.layout._asdict()
            )
            if state is not None:
                self.training.restore(state["training"])
                self.rows = _checked_rows(state["rows"], self.training.n_done)

    def _layout(self, state: Mapping[str, Any] | None) -> Layout:
        if state is not None:
            return Layout(**{name: bool(value) for name, value in state["layout"].items()})
        bf16, channels_last = self.config.bf16, self.config.channels_last
        return fastest(self.model, self.data, self.recipe.batch_size, bf16, channels_last)

    def train(self, console: Console) -> None:
        """Train to the end; after each epoch the folder holds all that is needed to go on."""
        total, before = self.recipe.epochs, self.training.n_done
        images, layout = self.training.n_batches * self.recipe.batch_size, self.layout
        say(
            console,
            f"{self.config.model} on {self.config.data}: {total - before} of {total} epochs of "
            f"{images} images, {layout.describe()}",
        )
        heartbeat = Heartbeat(
            console, lambda: f"epoch {self.training.n_done + 1} of {total}: under way"
        )
        with heartbeat.beating():
            while self.training.n_done < total:
                row = self._run_epoch(heartbeat)
                left = time_left(heartbeat.seconds, row["epoch"] - before, total - before)
                say(
                    console,
                    f"epoch {row['epoch']} of {total}: loss {row['loss']:.3f}, validation accuracy "
                    f"{row['validation_accuracy']:.4f}, {format_seconds(row['seconds'])}, {left}",
                )

    def _run_epoch(self, heartbeat: Heartbeat) -> dict[str, Any]:
        start, rate = heartbeat.seconds, self.training.learning_rate
        loss = self.training.run_epoch()
        row = {
            "epoch": self.training.n_done,
            "loss": loss,
            "learning_rate": rate,
            "validation_accuracy": self.accuracies("validation")[0],
            "seconds": heartbeat.seconds - start,
        }
        self.rows.append(row)
        save_checkpoint(self.model, self.folder.path / "model.safetensors")
        self.folder.write_rows("epochs.csv", self.rows)
        self.folder.write_state(
            STATE,
            {
                "training": self.training.state(),
                "rows": self.rows,
                "layout": self.layout._asdict(),
            },
        )
        return row

    def accuracies(self, name: str, tops: Sequence[int] = (1,)) -> list[float]:
        """Return how often the label of a set's images is among the network's first answers.

        In float32, as its weights are stored, whatever it is trained in.

        Args:
            name: Name of the set.
            tops: For each fraction, how many answers count.
        """
        source, layout = getattr(self.data, name), self.layout

        def score(size: int) -> list[float]:
            batches = source.batches(torch.split(torch.arange(len(source)), size))
            return top_accuracies(self.model, batches, tops, channels_last=layout.channels_last)

        accuracies, self._scoring_size = halving(score, self._scoring_size)
        return accuracies


def _checked_rows(rows: Sequence[Mapping[str, Any]], n_epochs: int) -> list[dict[str, Any]]:
    """Return the rows of finished epochs that a state holds.

    Raises:
        ValueError: If there are more of them, or fewer.
        KeyError: If a column is missing.
        TypeError: If one holds something else than it should.
    """
    if len(rows) != n_epochs:
        raise ValueError(f"expected the rows of {n_epochs} finished epochs, got {len(rows)}")
    return [{name: typed(kind, row[name]) for name, kind in COLUMNS.items()} for row in rows]


def run(config: Config, console: Console) -> dict[str, Any]:
    """Train a network, or go on with one.

    Returns:
        The row of `table.csv`.

    Raises:
        ValueError: If a setting is wrong.
        FileNotFoundError: If images are not there.
        RuntimeError: If training diverges.
    """
    return run_measurement("train", config, console, Run, _measure)


def _measure(run: Run, console: Console) -> dict[str, Any]:
    run.train(console)
    seconds = sum(row["seconds"] for row in run.rows)
    n_images = run.training.n_batches * run.recipe.batch_size * len(run.rows)
    accuracies = run.accuracies("test", tops_for(run.data.num_classes))
    row = {
        "model": run.config.model,
        "data": run.config.data,
        "validation_accuracy": run.rows[-1]["validation_accuracy"],
        **dict(zip(("test_accuracy", "test_accuracy_top5"), accuracies, strict=False)),
        "seconds": seconds,
        "images_per_second": n_images / seconds,
        **run.layout._asdict(),
        **{name: getattr(run.recipe, name) for name in (*OF_RECIPE, "seed")},
    }
    run.folder.write_figure("training.png", draw(run.rows, f"{row['model']} on {row['data']}"))
    run.folder.finish([row])
    shown = ", top-5 ".join(f"{accuracy:.4f}" for accuracy in accuracies)
    say(console, f"test accuracy {shown}: {run.folder.path}/model.safetensors")
    return row


def draw(rows: list[dict[str, Any]], title: str) -> Figure:
    """Draw the loss of the training and the accuracy on validation images over the epochs."""
    figure, ((left, right),) = make_panels(1, 2, (9.0, 3.6))
    epochs = [row["epoch"] for row in rows]
    left.plot(epochs, [row["loss"] for row in rows], marker=".")
    left.set(xlabel="epochs", ylabel="cross-entropy on training images")
    right.plot(epochs, [100 * row["validation_accuracy"] for row in rows], marker=".")
    right.set(xlabel="epochs", ylabel="validation accuracy in %")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title)
    return figure


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
