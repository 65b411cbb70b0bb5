"""What quantization leaves as float32, by name and with the reason."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

__all__ = ["find_skipped"]

_CHAIN = "parametrizations"  # torch's name for what computes a parameter


def find_skipped(model: nn.Module, walk: Collection[str]) -> dict[str, str]:
    """Return the weights that are not quantized, and why.

    Biases, norms and other vectors are left out: they are never quantized, and small.

    Args:
        model: The network.
        walk: Dotted names of the layers that are decided.

    Returns:
        Reasons by the name of the layer, or by that of the parameter where it is not the `weight`
        of a layer.
    """
    return dict(_skipped(model, set(walk)))


def _skipped(model: nn.Module, walk: set[str]) -> Iterator[tuple[str, str]]:
    for full_name, parameter in model.named_parameters():
        path = full_name.split(".")
        owner, key = ".".join(path[:-1]), path[-1]
        if _CHAIN in path:
            place = path.index(_CHAIN)
            owner, key = ".".join(path[:place]), path[place + 1]
        if parameter.dim() > 1 and not (owner in walk and key == "weight"):
            name = owner if key == "weight" and owner else f"{owner}.{key}".lstrip(".")
            yield name, f"{_reason(model.get_submodule(owner))}; it stays float32"


def _reason(module: nn.Module) -> str:
    """Return why a module's parameters are not quantized."""
    kind = type(module).__name__
    if isinstance(module, nn.Conv2d | nn.Linear):
        return f"the forward pass does not call this {kind} itself"
    if isinstance(module, _ConvTransposeNd):
        return f"{kind} is a transposed convolution, and only Conv2d and Linear are quantized"
    if isinstance(module, _ConvNd):
        return f"{kind} is not two-dimensional, and only Conv2d and Linear are quantized"
    if isinstance(module, nn.MultiheadAttention):
        return "projections of attention are no Linear layers, which alone are quantized"
    return f"a parameter of {kind}, and only Conv2d and Linear are quantized"
