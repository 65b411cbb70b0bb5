"""`compress_env.compress`: the main job as one call, for a network and images at hand."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from torch import Tensor, nn

from compress_env.data.augment import Augment
from compress_env.data.bundle import DataBundle
from compress_env.data.intake import Images, as_bundle
from compress_env.names import nearest
from compress_env.networks.intake import unwrapped
from compress_env.quantization.export import export_onnx
from compress_env.quantization.fake_quant import bake
from compress_env.quantization.packing import load, save
from compress_env.task.task import Finetuner
from experiments.common.cli.given import HANDED_OVER, giving
from experiments.common.run_folder import RunFolder
from experiments.common.stored import read_object
from experiments.compress.compress import run
from experiments.compress.config import Config, Effort
from experiments.compress.inputs import Given, code_digests, input_digests
from experiments.compress.outcome.report import best_row, read_rows, to_rows

__all__ = ["CompressionResult", "compress"]

OWN = {
    "model",
    "data",
    "weights",
    "train_epochs",
    "data_root",
    "download",
    "preparation",
    "policy",
    "resume",
}
"""Settings of the command line alone: here, objects say what they would."""


@dataclasses.dataclass(frozen=True)
class CompressionResult:
    """What a call of `compress` has come to."""

    model: nn.Module
    """The chosen network, an ordinary module in evaluation mode on the CPU: of the same class, with
    fewer channels, its quantized weights as float32 values."""
    table: pd.DataFrame
    """A row for the baseline and for each contender: `network`, `is_chosen`, validation and test
    accuracy, fractions of MACs, parameters and bytes, `size_bytes`, latencies in ms (see
    `experiments.compress.outcome.report.Row`)."""
    policy: dict[str, Any]
    """What the chosen contender decided, by stage: layers, and pruning rates or bits."""
    episodes: pd.DataFrame
    """Every episode of every contender."""
    folder: Path
    """The run folder, with all networks, figures and reports."""
    quantized: nn.Module = dataclasses.field(repr=False)
    """The chosen network with its quantizers attached, for further training."""
    example: Tensor = dataclasses.field(repr=False)
    """An image, (1, C, H, W)."""

    @property
    def report(self) -> Path:
        """The page to show, `report.html`."""
        return self.folder / "report.html"

    def save(self, path: str | Path) -> int:
        """Write the chosen network as a packed file (`.cenv`) and return its bytes.

        `compress_env.load(path, model=...)` reads it.
        """
        return save(path, self.quantized)

    def to_onnx(self, path: str | Path) -> int:
        """Write the chosen network as ONNX and return its bytes."""
        return export_onnx(path, self.quantized, self.example)


@torch.inference_mode(False)
@torch.enable_grad()
def compress(
    model: nn.Module,
    train: DataBundle | Images,
    test: Images | None = None,
    *,
    macs: float | None = None,
    params: float | None = None,
    size: float | None = None,
    effort: Effort = "quick",
    evaluations: int | None = None,
    algo: str | None = None,
    score: Callable[[nn.Module], float] | None = None,
    finetune: Finetuner | None = None,
    finetune_episodes: bool = False,
    num_classes: int | None = None,
    augment: Augment | None = None,
    out: str | Path | None = None,
    verbose: bool = True,
    **settings: Any,
) -> CompressionResult:
    """Compress a trained network to a budget: prune it, quantize it, or both.

    Search-free rules and, unless `effort` is `"quick"`, a search that starts from the best of them
    choose what each layer gives up; the network is fine-tuned after each stage. Of all that is
    within the budgets, the network with the highest validation accuracy is handed back. The test
    images are looked at once, at the end. Called again with the same `out`, a stopped run goes on,
    and a finished one is read.

    Args:
        model: A trained network from images (b, C, H, W) to logits (b, classes); not changed.
        train: Training images: a map-style data set of (image tensor, label), a `DataLoader` over
            one, a pair of tensors, the folder of a tree `CLASS/IMAGE`, or a `DataBundle`.
        test: Images for validation and test, half of them each, in any of these forms; left out
            where `train` is a bundle, a name, or a folder that holds both.
        macs: Highest multiply-accumulates after pruning, a fraction of the network's, in (0, 1].
        params: Highest parameters after pruning, likewise.
        size: Highest bytes after quantization, a fraction of the float32 network's.
        effort: `"quick"` (the best of a few rules), `"normal"` (a search of 100 network evaluations
            in each stage) or `"thorough"` (of 300); one decision is searched at random.
        evaluations: Network evaluations of a search in each stage, in place of `effort`'s.
        algo: Who searches, see `compress-env compress --help`.
        score: Maps a network in evaluation mode to a score in [0, 1], used in place of validation
            accuracy.
        finetune: Called with a network and a number of minibatches in place of the built-in final
            fine-tuning (SGD, distilling from the unpruned network): trains it in place, or returns
            a trained copy. Zeros stay zero.
        finetune_episodes: Whether it also takes the place of the short fine-tuning in episodes.
        num_classes: Number of classes; by default one more than the largest label.
        augment: Augmentation of training minibatches, where the data set has none of its own.
        out: The run folder; a new one under `runs/` when None.
        verbose: Whether to print the plan, progress and the table.
        settings: Any other setting of `experiments.compress.config.Config`, such as
            `learning_rate`, `batch_size`, `final_finetune_steps`, `method`, `seed` or `device`.

    Raises:
        TypeError: If a setting is unknown, or the images are in none of these forms.
        ValueError: If a setting is out of range, a budget out of reach (the message says the
            reachable minimum), or network and images do not fit.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a trained torch.nn.Module, got {type(model).__name__}")
    _check_settings(settings)
    network = unwrapped(model)
    image_size = settings.get("image_size")
    data = as_bundle(train, test, num_classes=num_classes, augment=augment, image_size=image_size)
    config = Config(
        model=f"{HANDED_OVER}{type(network).__name__}",
        data=f"{HANDED_OVER}{data.name}",
        macs=macs,
        params=params,
        size=size,
        effort=effort,
        evaluations=evaluations,
        algo=algo,
        **settings,
    )
    config.check()
    given = Given(network, data, score, finetune, finetune_episodes)
    folder = _run(config, out, given, Console(quiet=not verbose))
    return _read(folder, network, data)


def _check_settings(settings: dict[str, Any]) -> None:
    valid = {field.name for field in dataclasses.fields(Config)} - OWN
    for name in settings:
        if name not in valid:
            raise TypeError(
                f"compress has no setting {name!r}{nearest(name, valid) or ';'} valid: "
                f"{', '.join(sorted(valid))}"
            )


def _run(config: Config, out: str | Path | None, given: Given, console: Console) -> Path:
    """Run the job, or what is left of it, and return its folder."""
    folder = config.default_folder if out is None else Path(out).expanduser()
    fields = {field.name for field in dataclasses.fields(Config)}
    if not (folder / "config.json").is_file():
        run(dataclasses.replace(config, out=folder), console, given)
        return folder
    assert given.model is not None and given.data is not None
    with giving(fields - {"out", "resume"}):  # all must be what they were
        run(dataclasses.replace(config, resume=folder), console, given)
    kept = RunFolder(folder)
    try:
        kept.hold_to(input_digests(given.model, given.data) | code_digests(given))
    finally:
        kept.close()
    return folder


def _read(folder: Path, network: nn.Module, data: DataBundle) -> CompressionResult:
    """Read what a finished run has come to."""
    rows = read_rows(folder / "table.csv")
    name = best_row(rows).network
    table = pd.DataFrame(to_rows(rows))
    table.insert(1, "is_chosen", table["network"] == name)
    table.insert(3, "test_accuracy", 1.0 - table["test_error"])
    quantized = load(folder / f"network-{name}.cenv", copy.deepcopy(network).cpu())
    model = copy.deepcopy(quantized)
    bake(model)
    example = next(iter(data.calibration.batches([torch.tensor([0])])))[0]
    policy = read_object(folder / "policy.json")[name]
    episodes = pd.read_csv(folder / "episodes.csv")
    return CompressionResult(model, table, policy, episodes, folder, quantized, example.cpu())
