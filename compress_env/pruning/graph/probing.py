"""A copy of a network whose parameters make every path through it matter."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from compress_env.pruning.graph.live import copy_structure
from compress_env.task.finetune import reestimate_batch_norm

__all__ = ["probe_network", "with_audible_paths"]

_PERIOD = 65_537  # prime, so that rows of a weight do not repeat each other


def probe_network(model: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy whose answers to images tell all that becomes of them.

    Where other parameters lead to answers that are not finite, the copy keeps those that it has,
    and its batch-norm statistics fit the images: with statistics far from its inputs a deep network
    answers the same to anything.
    """
    probe = with_audible_paths(model)
    if not _is_finite(probe, images):
        probe = copy.deepcopy(model)
        reestimate_batch_norm(probe, [(images, torch.zeros(len(images)))])
    return probe


@torch.no_grad()
def _is_finite(model: nn.Module, images: Tensor) -> bool:
    try:
        return bool(torch.isfinite(model(images)).all())
    except RuntimeError:
        return False


def with_audible_paths(model: nn.Module) -> nn.Module:
    """Return a copy with other parameters: none is near zero, and signals keep their size.

    A head or a residual branch that begins at zero, or a bias that silences a channel, would hide
    what becomes of the signals before it. Weights of two dimensions or more have either sign and a
    size that goes with their inputs, biases are small and positive, so that activations let
    something pass, and everything else, such as scales of norm layers, is around 1. Norm layers
    subtract and divide by nothing.

    Args:
        model: The network, on the CPU; not changed. Other buffers than norm layers' are shared.
    """
    size = torch.rand(_PERIOD, generator=torch.Generator().manual_seed(0)) + 0.5
    others = {
        parameter: nn.Parameter(_audible(name, parameter, size.roll(-997 * number)), False)
        for number, (name, parameter) in enumerate(model.named_parameters())
        if parameter.is_floating_point() and parameter.numel()
    }
    probe = copy_structure(model, others)
    for module in probe.modules():
        if isinstance(module, _NormBase) and module.running_var is not None:
            module.running_mean = torch.zeros_like(module.running_var)
            module.running_var = torch.ones_like(module.running_var)
    return probe


def _audible(name: str, parameter: Tensor, size: Tensor) -> Tensor:
    """Return values for a parameter, of sizes from 0.5 to 1.5 that are repeated as needed."""
    if parameter.dim() > 1:
        sign = torch.where(size.roll(1) < 1.0, -1.0, 1.0)
        size = size * sign / math.sqrt(parameter[0].numel())
    elif name.rpartition(".")[2] == "bias":
        size = 0.4 * (size - 0.5)
    times = -(-parameter.numel() // len(size))
    # (n,) -> (times * n,) -> the parameter's shape
    return size.repeat(times)[: parameter.numel()].view(parameter.shape).to(parameter.dtype)
