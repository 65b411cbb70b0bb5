"""Studies: a network is trained for each seed and measured, and rows, report and figures follow.

What has been measured is kept in the run folder, so that a stopped study goes on where it was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

from compress_env.data.bundle import DataBundle, load_data
from compress_env.networks.models import check_model_name
from compress_env.task.task import CompressionTask
from experiments.common.checks import check_choices, check_lowest
from experiments.common.cli.command import run_measurement
from experiments.common.drawing.outputs import write_outputs
from experiments.common.inputs import data_digest
from experiments.common.run_folder import RunFolder
from experiments.common.training import limit_images, seeded_task

__all__ = ["Rows", "Study", "StudyConfig", "run_study"]

Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Settings that all studies have."""

    model: str | tuple[str, ...] = "lenet5"
    """Named network, or several."""
    data: str = "mnist"
    """Named data set."""
    label: str | None = None
    """What tables and figures call the data set; its name when not given."""
    data_root: Path | None = None
    """Folder of the data set's files."""
    download: bool = False
    """Download the data set when it is missing."""
    train_images: int | None = None
    """Images that networks are trained on; all training images when not given."""
    validation_images: int | None = None
    """Images that networks are scored on; all validation images when not given."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of initial weights, minibatches and noise."""
    learning_rate: float = 0.02
    """Highest step size of the training."""
    device: str = "auto"
    """auto, cpu, cuda and so on."""
    out: Path | None = None
    """Run folder; a new one under runs/ when not given."""
    resume: Path | None = None
    """Run folder of a stopped study to go on with."""

    def check(self) -> None:
        """Check what nothing else checks.

        Raises:
            ValueError: If a setting is out of range.
        """
        check_choices(self, "seeds")
        for model in self.models:
            check_model_name(model)
        check_lowest(self, 0, "seeds")
        check_lowest(self, 1, "train_images", "validation_images")

    def load(self, **options: Any) -> DataBundle:
        """Load the data set with as many images as are wanted.

        Args:
            options: Others of `compress_env.data.bundle.load_data`.

        Raises:
            ValueError: If there is no such data set.
            FileNotFoundError: If its files are not there.
        """
        root, download = self.data_root, self.download
        data = load_data(self.data, data_root=root, download=download, **options)
        return limit_images(data, self.validation_images, self.train_images)

    @property
    def models(self) -> tuple[str, ...]:
        """All networks."""
        return (self.model,) if isinstance(self.model, str) else self.model

    @property
    def data_label(self) -> str:
        """What tables and figures call the data set."""
        return self.label or self.data

    @property
    def title(self) -> str:
        """What tables and figures call the study."""
        return f"{', '.join(self.models)} on {self.data_label}"


C = TypeVar("C", bound=StudyConfig)


class Study(ABC, Generic[C]):
    """Trains and measures the networks of a study; a subclass says how."""

    name: ClassVar[str]
    """Name of the experiment, and of its report."""

    def __init__(self, config: C, folder: RunFolder) -> None:
        """Check the settings and load the data.

        Raises:
            ValueError: If a setting is wrong.
            FileNotFoundError: If data are not there.
        """
        config.check()
        self.config, self.folder, self.data = config, folder, config.load()
        folder.hold_to({"data": data_digest(self.data)})

    @abstractmethod
    def measure(self, model: str, seed: int) -> Rows:
        """Measure everything of a network and seed, but for what a stopped study has kept."""

    @abstractmethod
    def report(self, table: pd.DataFrame) -> str:
        """Format the report of all rows as Markdown."""

    @abstractmethod
    def figures(self, table: pd.DataFrame) -> dict[str, Figure]:
        """Draw all rows; figures by the name of their file."""

    def task(self, model: str, seed: int, **options: Any) -> CompressionTask:
        """Return a task whose network has the random weights of a seed, see `seeded_task`."""
        rate, device = self.config.learning_rate, self.config.device
        return seeded_task(
            model, self.data, seed=seed, learning_rate=rate, device=device, **options
        )

    def once(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure and keep what was found, or return what a stopped study has kept.

        Args:
            name: Name of the state.
            measure: Returns tensors and plain values.
        """
        kept = self.folder.read_state(name)
        if kept is None:
            kept = measure()
            self.folder.write_state(name, kept)
        return kept

    def rows_once(self, name: str, measure: Callable[[], Rows]) -> Rows:
        """Measure and keep rows, or return those that a stopped study has kept."""
        kept = self.once(name, lambda: {"rows": measure()})
        with self.folder.using(name):
            return list(kept["rows"])

    def train_once(self, name: str, network: nn.Module, train: Callable[[], None]) -> None:
        """Train a network in place and keep its weights, or give it those that were kept.

        Args:
            name: Name of the state.
            network: The network.
            train: Trains it in place.
        """

        def weights() -> dict[str, Any]:
            train()
            return {"weights": network.state_dict()}

        kept = self.once(name, weights)
        with self.folder.using(name):
            network.load_state_dict(kept["weights"])


def run_study(study: type[Study[C]], config: C, console: Console) -> pd.DataFrame:
    """Measure, print the report, and write the run folder.

    Args:
        study: What is measured.
        config: Its settings.
        console: Where progress and report go.

    Returns:
        All rows.

    Raises:
        ValueError: If a setting is wrong.
        FileNotFoundError: If data are not there.
    """
    return run_measurement(study.name, config, console, study, _measure)


def _measure(study: Study[Any], console: Console) -> pd.DataFrame:
    rows: Rows = []
    for model, seed in product(study.config.models, study.config.seeds):
        rows += study.measure(model, seed)
        console.print(f"{model}, seed {seed}: done", markup=False, highlight=False)
    table = pd.DataFrame(rows)
    path, report, figures = study.folder.path, study.report(table), study.figures(table)
    write_outputs(path, study.name, report, console, figures=figures)
    study.folder.finish(rows)
    return table
