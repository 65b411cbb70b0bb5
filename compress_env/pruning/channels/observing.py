"""Runs a network up to the layers of interest, and takes what they read and answer."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compress_env.pruning.channels.patches import PrunableLayer

__all__ = ["observe", "run_until_input"]


class _AllSeenError(Exception):
    """Ends a forward pass once every layer of interest has run."""


def observe(
    model: nn.Module,
    layers: dict[str, PrunableLayer],
    batch: Tensor,
    take: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return what `take` makes of each layer's first output, ending the pass after the last one.

    The output is taken as soon as it is there, since a later in-place activation would change it.
    """
    taken: dict[str, Tensor] = {}

    def record(name: str, output: Tensor) -> None:
        if name not in taken:
            taken[name] = take(name, output)
        if len(taken) == len(layers):
            raise _AllSeenError

    handles = [
        layer.register_forward_hook(lambda _, args, output, name=name: record(name, output))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad(), _evaluation_mode(model):
            model(batch)
    except _AllSeenError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    _check_reached(layers, taken)
    return taken


def run_until_input(model: nn.Module, layer: PrunableLayer, name: str, batch: Tensor) -> Tensor:
    """Return the first input of a layer, ending the pass before the layer computes."""
    seen: dict[str, Tensor] = {}

    def record(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        [seen[name]] = *args, *kwargs.values()
        raise _AllSeenError

    handle = layer.register_forward_pre_hook(record, with_kwargs=True)
    try:
        with torch.no_grad(), _evaluation_mode(model):
            model(batch)
    except _AllSeenError:
        pass
    finally:
        handle.remove()
    _check_reached([name], seen)
    return seen[name]


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode and each back into the mode that it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check_reached(names: Iterable[str], seen: Container[str]) -> None:
    missing = [name for name in names if name not in seen]
    if missing:
        raise ValueError(f"the forward pass did not reach {missing}")
