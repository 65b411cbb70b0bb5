"""NVIDIA Model Optimizer's FastNAS: the least of the channels that harm no layer much by itself.

It measures the validation accuracy of the network with one layer at a time at each of its widths,
and finds by bisection the highest loss of a layer at which the budget is met.
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from compress_env.seeding import derive_generator
from compress_env.task.counting import total_macs
from compress_env.task.task import CompressionTask

__all__ = ["search"]

DIVISOR = 8
"""Widths are multiples of it; its own 32 leaves networks of CIFAR-10 as they are."""
RATIOS = tuple(number / 20 for number in range(1, 21))
"""Widths that it tries, as shares, before they are rounded."""
N_TRIES = 10
STRICTER = 0.97
"""What the budget is multiplied by where its way to count ends above ours."""


def search(task: CompressionTask, max_macs: float) -> tuple[nn.Module, int]:
    """Search widths for a budget of multiply-accumulates.

    Batch norms are estimated anew before every evaluation, as in the environments.

    Args:
        task: The network and its images.
        max_macs: Most multiply-accumulates of one image.

    Returns:
        The pruned network, and the number of networks that were evaluated.

    Raises:
        ImportError: If `nvidia-modelopt` is not installed.
        ValueError: If it finds no network within the budget.
    """
    pruning, image = _import_pruning(), task.example_image()
    n_evaluated = 0

    def score(model: nn.Module) -> float:
        nonlocal n_evaluated
        n_evaluated += 1
        task.reestimate_batch_norm(model, derive_generator(0, 0))
        return task.accuracy(model, "validation")

    share = max_macs / total_macs(task.model, image)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        # It would estimate batch norms itself, from images that it is not given.
        warnings.filterwarnings("ignore", "modelopt data queue not filled")
        settings = {
            "score_func": score,
            "checkpoint": str(Path(folder) / "search.pth"),
            "verbose": False,
        }
        for _ in range(N_TRIES):
            model = task.copy_model()
            limits = {"flops": f"{100 * share}%"}
            model, _ = pruning.prune(model, [("fastnas", _rules())], limits, image, settings)
            if total_macs(model, image) <= max_macs:
                return model, n_evaluated
            share *= STRICTER
    raise ValueError(f"FastNAS finds no network of at most {max_macs:,.0f} multiply-accumulates")


def _import_pruning() -> Any:
    try:
        return importlib.import_module("modelopt.torch.prune")
    except ImportError as error:
        raise ImportError(
            f"fastnas needs nvidia-modelopt: pip install 'compress-env[fastnas]' ({error})"
        ) from None


def _rules() -> dict[str, Any]:
    channels = {"channels_ratio": RATIOS, "kernel_size": (), "channel_divisor": DIVISOR}
    features = {"features_ratio": RATIOS, "feature_divisor": DIVISOR}
    by_kind = {"nn.Conv2d": channels, "nn.Linear": features, "nn.BatchNorm2d": features}
    return {kind: {"*": rule} for kind, rule in by_kind.items()}
