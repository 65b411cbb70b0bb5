"""Finding a network's weights in what a checkpoint holds.

Training scripts put weights beside other entries and under names of their own, and what wraps a
network while it is trained puts its name before those of the weights, or into them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

__all__ = ["Weights", "find_weights", "load_weights", "shared_names"]

_HOLDERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "model_state",
    "state",
    "weights",
    "params",
)
"""Under which names checkpoints hold state dicts, those first that are read first."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""What is put before the names of all weights."""
_PARTS = ("module", "_orig_mod")
"""What wraps parts of a network and gets into names."""
_COUNTER = "num_batches_tracked"
_MAX_RENAMINGS = 64


class Weights(NamedTuple):
    """A state dict, with what PyTorch keeps beside it."""

    tensors: dict[str, Tensor]
    """Parameters and buffers by name."""
    versions: dict[str, int]
    """Versions of modules that say how their tensors are to be read, by the modules' names."""


def find_weights(content: object, model: nn.Module) -> Weights | None:
    """Return the weights in a checkpoint that fit a network by their names, or the nearest.

    Args:
        content: What the file holds, not to be trusted.
        model: The network, not wrapped.

    Returns:
        Weights under the network's own names; None if there are no weights at all.
    """
    expected = set(model.state_dict())
    best, most = None, -1
    for candidate in _state_dicts(content):
        for weights in _renamings(candidate):
            names = set(weights.tensors)
            if _fits(names, expected):
                return weights
            n_common = len(names & expected)
            if n_common > most:
                best, most = weights, n_common
    return best


def load_weights(model: nn.Module, weights: Weights, *, assign: bool = False) -> None:
    """Load a state dict that fits; versions that it does not have are the network's.

    Args:
        model: The network.
        weights: All of its tensors; counters of the batches that a norm has seen may be missing.
        assign: Whether the network takes the tensors themselves instead of their values.
    """
    own: Any = model.state_dict()
    state: Any = OrderedDict(weights.tensors)
    for name, tensor in own.items():
        if _is_counter(name):
            state.setdefault(name, tensor)
    state._metadata = OrderedDict(own._metadata)
    for name, version in weights.versions.items():
        if name in own._metadata:
            state._metadata[name] = {**own._metadata[name], "version": version}
    model.load_state_dict(state, assign=assign)


def shared_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return for each name of a tensor that has had one before the first of its names."""
    first: dict[object, str] = {}
    shared: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            place = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
            kept = first.setdefault(place, name)
            if kept != name:
                shared[name] = kept
    return shared


def _fits(names: set[str], expected: set[str]) -> bool:
    return names <= expected and all(map(_is_counter, expected - names))


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == _COUNTER


def _state_dicts(content: object) -> Iterator[Weights]:
    """Yield the state dicts in a checkpoint, those under the usual names first."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        holder = waiting.pop(0)
        if not isinstance(holder, Mapping) or id(holder) in seen:
            continue
        seen.add(id(holder))
        waiting += [holder[name] for name in _HOLDERS if name in holder]
        tensors = {k: t for k, t in holder.items() if isinstance(k, str) and isinstance(t, Tensor)}
        if tensors or not holder:
            yield Weights(tensors, _versions(getattr(holder, "_metadata", None)))


def _versions(metadata: object) -> dict[str, int]:
    """Return the versions in a state dict's metadata, of which nothing else is used."""
    if not isinstance(metadata, Mapping):
        return {}
    found = {k: v.get("version") for k, v in metadata.items() if isinstance(v, Mapping)}
    return {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, int)}


def _renamings(weights: Weights) -> Iterator[Weights]:
    """Yield weights as they are, then without what a wrapper has put into or before names."""
    seen: set[frozenset[str]] = set()
    waiting = [weights]
    while waiting and len(seen) < _MAX_RENAMINGS:
        current = waiting.pop(0)
        names = frozenset(current.tensors)
        if names in seen:
            continue
        seen.add(names)
        yield current
        for part in _PARTS:
            waiting.append(_renamed(current, partial(_without, part)))
        for prefix in _PREFIXES:
            below = {k: t for k, t in current.tensors.items() if k.startswith(prefix)}
            if below:
                cut = Weights(below, current.versions)
                waiting.append(_renamed(cut, partial(_below, prefix)))


def _renamed(weights: Weights, rename: Callable[[str], str]) -> Weights:
    """Return weights under other names; versions are those of modules, whose names end in a dot."""
    versions = {rename(f"{k}.").rstrip("."): v for k, v in weights.versions.items() if k}
    return Weights({rename(k): t for k, t in weights.tensors.items()}, versions)


def _below(prefix: str, name: str) -> str:
    return name.removeprefix(prefix)


def _without(part: str, name: str) -> str:
    return ".".join(piece for piece in name.split(".") if piece != part)
