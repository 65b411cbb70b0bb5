"""NVIDIA Model Optimizer's FastNAS: the least of the channels that harm no layer much by itself.

It measures the validation accuracy of the network with one layer at a time at each of its widths,
and finds by bisection the highest loss of a layer at which the budget is met. So the widths decide
how many networks it evaluates; they are as fine as the evaluations allow.
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
N_WIDTHS = 20
"""Widths of a layer that it tries at most, before they are rounded: 5 %, 10 %, ... of it."""
N_TRIES = 10
STRICTER = 0.97
"""What the budget is multiplied by where its way to count ends above ours."""


def search(
    task: CompressionTask, max_macs: float, evaluations: int, seed: int
) -> tuple[nn.Module, int]:
    """Search widths for a budget of multiply-accumulates.

    Batch norms are estimated anew before every evaluation, as in the environments.

    Args:
        task: The network and its images.
        max_macs: Most multiply-accumulates of one image.
        evaluations: Most networks that it may evaluate.
        seed: Of the images that batch norms are estimated from.

    Returns:
        The pruned network, and the number of networks that were evaluated.

    Raises:
        ImportError: If `nvidia-modelopt` is not installed.
        ValueError: If it needs more evaluations, or finds no network within the budget.
    """
    pruning, image = _import_pruning(), task.example_image()
    rules = _rules_within(task, evaluations)
    n_evaluated = 0

    def score(model: nn.Module) -> float:
        nonlocal n_evaluated
        n_evaluated += 1
        task.reestimate_batch_norm(model, derive_generator(seed, 0))
        return task.accuracy(model, "validation")

    share = max_macs / total_macs(task.model, image)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        # It would estimate batch norms itself, from images that it is not given.
        warnings.filterwarnings("ignore", "modelopt data queue not filled")
        # Without a checkpoint it starts anew, as the first try here should.
        warnings.filterwarnings("ignore", ".*heckpoint .*search.pth")
        settings = {
            "score_func": score,
            "checkpoint": str(Path(folder) / "search.pth"),
            "verbose": False,
        }
        for _ in range(N_TRIES):
            model = task.copy_model()
            limits = {"flops": f"{100 * share}%"}
            model, _ = pruning.prune(model, [("fastnas", rules)], limits, image, settings)
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


def _rules_within(task: CompressionTask, evaluations: int) -> dict[str, Any]:
    """Return the finest widths that it can try with so many evaluations.

    Raises:
        ValueError: If there are none.
    """
    nas = importlib.import_module("modelopt.torch.nas")
    tools = importlib.import_module("modelopt.torch.opt.utils")
    for n_widths in range(N_WIDTHS, 1, -1):
        rules = _rules(n_widths)
        space = nas.convert(task.copy_model(), [("fastnas", rules)])
        choices = [len(each.choices) for _, each in tools.named_hparams(space, configurable=True)]
        n_needed = 1 + sum(choices) - len(choices)  # the whole network once, not in each layer
        if n_needed <= evaluations:
            return rules
    raise ValueError(f"FastNAS needs at least {n_needed} evaluations here, got {evaluations}")


def _rules(n_widths: int) -> dict[str, Any]:
    ratios = tuple(number / n_widths for number in range(1, n_widths + 1))
    channels = {"channels_ratio": ratios, "kernel_size": (), "channel_divisor": DIVISOR}
    features = {"features_ratio": ratios, "feature_divisor": DIVISOR}
    by_kind = {"nn.Conv2d": channels, "nn.Linear": features, "nn.BatchNorm2d": features}
    return {kind: {"*": rule} for kind, rule in by_kind.items()}
