"""Prunes a copy of a network strongly, and compares with the same channels zeroed."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from textwrap import shorten
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress_env.errors import reason_of
from compress_env.pruning.graph.groups import ChannelGroup
from compress_env.pruning.graph.live import LiveChannels, copy_structure
from compress_env.pruning.graph.probing import probe_network
from compress_env.pruning.graph.rounds import equal_rounds, unequal_rounds
from compress_env.task.layers import compute_layers

__all__ = ["SafetyCheck"]

_N_IMAGES = 2
_N_WIDTHS = 6  # of its neighbours that a group takes on
_ROUNDS_TO_A_REFERENCE = 5
_MAX_MESSAGE = 200  # characters
_DIFFERS = "removing an input channel is not the same as zeroing it"
TOLERANCE = 1e-4  # of the largest value that a layer answers, for "pruned equals zeroed"
_SILENCE = 1e-6  # smaller values than this are taken for rounding

Counts: TypeAlias = Mapping[int, int]
"""Channels that groups keep, by the number of the group."""
Cuts: TypeAlias = list[tuple[ChannelGroup, NDArray[np.int64]]]
"""Groups, and the channels that each loses."""


class SafetyCheck:
    """Tells the groups of channels whose removal is the same as zeroing them from the others.

    The network is pruned in rounds to equal and to unequal widths (see `rounds`), on a copy whose
    parameters make every path matter (see `probing`). All groups are pruned at once; should the
    network then differ, they are halved until the culprits are alone, and what is left is checked
    again. What counts are the answers of every layer, so that nothing that comes later can hide a
    difference.
    """

    def __init__(self, model: nn.Module, image: Tensor, groups: Sequence[ChannelGroup]) -> None:
        """Prepare the copy and the images.

        Args:
            model: The unpruned network in evaluation mode, on the CPU; not changed.
            image: A batch of images whose shape to use, on the CPU.
            groups: What may be removed.
        """
        generator = torch.Generator().manual_seed(0)
        self._noise = torch.randn(_N_IMAGES, *image.shape[1:], generator=generator).to(image)
        self._model = probe_network(model, self._noise)
        self._groups = groups
        rng = np.random.default_rng(0)
        self._orders = [rng.permutation(group.n_channels) for group in groups]

    def find_unsafe(self) -> dict[int, str]:
        """Return the reasons against groups, by their number."""
        numbers = [i for i, group in enumerate(self._groups) if group.n_channels > 1]
        alone = set(range(len(self._groups))) - set(numbers)
        unsafe = dict.fromkeys(sorted(alone), "it reads a single channel")
        while numbers and (failure := self._first_failure(numbers)):
            found = self._search(failure.counts, numbers, [])
            unsafe |= found or dict.fromkeys(numbers, failure.reason)
            numbers = [i for i in numbers if i not in unsafe]
        return unsafe

    def _first_failure(self, numbers: list[int]) -> _Failure | None:
        """Prune all groups of `numbers` in every way; return where this went wrong first."""
        sizes = [self._groups[i].n_channels for i in numbers]
        widths = [self._widths_near(self._groups[i]) for i in numbers]
        failures = (
            self._prune([dict(zip(numbers, counts, strict=True)) for counts in course], numbers)
            for course in (equal_rounds(sizes, widths), unequal_rounds(sizes))
        )
        return next((failure for failure in failures if failure), None)

    def _widths_near(self, group: ChannelGroup) -> list[int]:
        """Return smaller widths than a group's, those of the layers nearest to its producer."""
        layers = compute_layers(self._model)
        place = list(layers).index(group.members[0].module)
        sides = [x.weight.shape[:2] for x in layers.values()]
        nearest = sorted(range(len(sides)), key=lambda i: abs(i - place))
        widths = dict.fromkeys(width for i in nearest for width in sides[i])
        return [x for x in widths if 1 < x < group.n_channels][:_N_WIDTHS]

    def _search(self, counts: Counts, numbers: list[int], base: list[int]) -> dict[int, str]:
        """Return those of `numbers` that do harm once the groups of `base` are pruned."""
        failure = self._prune([counts], base + numbers)
        if failure is None:
            return {}
        if len(numbers) == 1:
            reason = f"{failure.reason}, together with others" if base else failure.reason
            return {numbers[0]: reason}
        left, right = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
        found = self._search(counts, left, base) | self._search(counts, right, base)
        return found or self._search(counts, right, base + left)

    def _prune(self, course: Sequence[Counts], numbers: Collection[int]) -> _Failure | None:
        """Prune the groups of `numbers` round by round; return where this went wrong first."""
        live = LiveChannels(copy_structure(self._model))
        for start in range(0, len(course), _ROUNDS_TO_A_REFERENCE):
            rounds = course[start : start + _ROUNDS_TO_A_REFERENCE]
            # All of them are compared with one pass: what the last one removes is zeroed before.
            last = self._cuts(rounds[-1], numbers)
            wanted = _observe(live, self._noise, last)
            for counts in rounds:
                cuts = self._cuts(counts, numbers)
                reason = _remove_and_compare(live, cuts, last, self._noise, wanted)
                if reason and not (reason == _DIFFERS and self._is_rounding(counts, numbers)):
                    return _Failure(counts, reason)
        return None

    def _is_rounding(self, counts: Counts, numbers: Collection[int]) -> bool:
        """Whether a difference is gone in float64; a deep network may amplify rounding.

        A network that insists on float32 keeps its first verdict.
        """
        live = LiveChannels(copy_structure(self._exact_model))
        images, cuts = self._noise.double(), self._cuts(counts, numbers)
        try:
            wanted = _observe(live, images, cuts)
        except RuntimeError:
            return False
        return _remove_and_compare(live, cuts, cuts, images, wanted) is None

    @cached_property
    def _exact_model(self) -> nn.Module:
        return copy.deepcopy(self._model).double()

    def _cuts(self, counts: Counts, numbers: Collection[int]) -> Cuts:
        return [(self._groups[i], self._orders[i][counts[i] :]) for i in numbers]


class _Failure(NamedTuple):
    """The channels that each group had kept when something went wrong, and what."""

    counts: Counts
    reason: str


class _Answer(NamedTuple):
    """What one call of a layer answers, and which of its unpruned outputs that are."""

    layer: str
    dim: int
    """Where the outputs lie."""
    positions: NDArray[np.int64]
    values: Tensor


class _Pass(NamedTuple):
    """One forward pass: the answers of the layers, call by call, and of the network."""

    answers: list[_Answer]
    logits: Tensor


def _observe(live: LiveChannels, images: Tensor, zeroed: Cuts) -> _Pass:
    """Run a network in which nobody reads the zeroed channels, whether they are there or not."""
    answers: list[_Answer] = []

    def note(name: str, layer: nn.Module, values: Any) -> None:
        if isinstance(values, Tensor):
            dim = _channel_dim(layer)
            answers.append(_Answer(name, dim, live.positions(name, "out"), values))

    with ExitStack() as stack, torch.no_grad(), _zeroed_inputs(live, zeroed):
        for name, layer in compute_layers(live.model).items():
            hook = layer.register_forward_hook(lambda m, _i, out, name=name: note(name, m, out))
            stack.callback(hook.remove)
        return _Pass(answers, live.model(images))


def _remove_and_compare(
    live: LiveChannels, cuts: Cuts, zeroed: Cuts, images: Tensor, wanted: _Pass
) -> str | None:
    """Return why channels cannot go; None when the network answers what is wanted."""
    try:
        live.remove_all(cuts)
        got = _observe(live, images, zeroed)
    except Exception as error:  # any failure of foreign forward code is the answer itself
        message = reason_of(error)
        return f"removing an input channel breaks the network: {shorten(message, _MAX_MESSAGE)}"
    if got.logits.shape != wanted.logits.shape:
        return "removing an input channel changes the shape of the network's output"
    if [x.layer for x in got.answers] != [x.layer for x in wanted.answers]:
        return "removing an input channel changes the way through the network"
    same = all(map(_agree, got.answers, wanted.answers))
    return None if same and _is_close(got.logits, wanted.logits) else _DIFFERS


def _agree(got: _Answer, wanted: _Answer) -> bool:
    """Whether a layer answers as wanted in the channels that it has left."""
    left = torch.from_numpy(np.searchsorted(wanted.positions, got.positions))
    return _is_close(got.values, wanted.values.index_select(got.dim, left))


def _channel_dim(layer: nn.Module) -> int:
    """Return where the channels of a convolution, or the features of a linear layer, lie."""
    return -3 if isinstance(layer, nn.Conv2d) else -1


def _is_close(got: Tensor, wanted: Tensor) -> bool:
    if got.shape != wanted.shape:
        return False
    tolerance = TOLERANCE * max(float(wanted.abs().max()), _SILENCE)
    return torch.allclose(got, wanted, rtol=0.0, atol=tolerance)


@contextmanager
def _zeroed_inputs(live: LiveChannels, cuts: Cuts) -> Iterator[None]:
    """Let convolutions and linear layers read zeros from the given channels."""
    gone: defaultdict[str, list[NDArray[np.int64]]] = defaultdict(list)
    for group, channels in cuts:
        for member in group.consumers:
            gone[member.module].append(member.positions[channels].ravel())
    layers = compute_layers(live.model)
    with ExitStack() as stack:
        for name, positions in gone.items():
            zeroed = np.flatnonzero(np.isin(live.positions(name, "in"), np.concatenate(positions)))
            hook = _zeroing(torch.from_numpy(zeroed))
            handle = layers[name].register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _zeroing(positions: Tensor) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return a hook that zeroes channels of a layer's input, its only argument."""

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        [images] = *args, *kwargs.values()
        return (images.index_fill(_channel_dim(module), positions, 0.0),), {}

    return hook
