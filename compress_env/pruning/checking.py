"""Removes channels on a copy of a network, and compares with the same channels zeroed."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress_env.finetune import reestimate_batch_norm
from compress_env.layers import compute_layers
from compress_env.pruning.groups import ChannelGroup

__all__ = ["SafetyCheck"]

_N_PIXELS = 2**13  # in all images that a network is compared on, more or less
_DIFFERS = "removing an input channel is not the same as zeroing it"
TOLERANCE = 1e-4  # of the largest logit, for "pruned equals zeroed"

Remove = Callable[[nn.Module, Sequence[tuple[ChannelGroup, int]]], None]
"""Cuts one channel out of each of several groups of a network, in place."""


class SafetyCheck:
    """Tells the groups of channels whose removal is the same as zeroing them from the others."""

    def __init__(self, model: nn.Module, image: Tensor, remove: Remove) -> None:
        """Prepare the images.

        Args:
            model: A copy of the unpruned network in evaluation mode, to work on.
            image: A batch of images whose shape to use, on the model's device.
            remove: Cuts channels out of a copy.
        """
        self._model = model
        self._remove = remove
        n_images = max(2, min(8, _N_PIXELS // image[0, 0].numel()))
        generator = torch.Generator().manual_seed(0)
        self._noise = torch.randn(n_images, *image.shape[1:], generator=generator).to(image)
        # With statistics far from its inputs a deep network answers the same to anything.
        reestimate_batch_norm(model, [(self._noise, torch.zeros(n_images))])

    def find_unsafe(self, groups: Sequence[ChannelGroup]) -> dict[int, str]:
        """Return the reasons against groups, by their number in `groups`.

        One channel is removed from all groups at once. Should the network then differ, the groups
        are halved until the culprits are alone, and what is left is checked again.
        """
        numbers = [i for i, group in enumerate(groups) if group.n_channels > 1]
        alone = set(range(len(groups))) - set(numbers)
        unsafe = dict.fromkeys(sorted(alone), "it reads a single channel")
        while numbers and (found := self._search(groups, numbers, [])):
            unsafe |= found
            numbers = [i for i in numbers if i not in found]
        return unsafe

    def _search(
        self, groups: Sequence[ChannelGroup], numbers: list[int], base: list[int]
    ) -> dict[int, str]:
        """Return those of `numbers` that do harm once the groups of `base` have lost a channel."""
        reason = self._compare([groups[i] for i in base + numbers])
        if reason is None:
            return {}
        if len(numbers) == 1:
            return {numbers[0]: f"{reason}, together with others" if base else reason}
        left, right = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
        found = self._search(groups, left, base) | self._search(groups, right, base)
        return found or self._search(groups, right, base + left)

    def _compare(self, groups: Sequence[ChannelGroup]) -> str | None:
        """Return why one channel of each group cannot go; None when shapes and values agree."""
        channels = [(group, _strongest_channel(self._model, group)) for group in groups]
        reason = self._difference(self._model, self._noise, channels)
        if reason != _DIFFERS:
            return reason
        # A deep network may amplify rounding; one that insists on float32 keeps its first verdict.
        exact = self._difference(
            copy.deepcopy(self._model).double(), self._noise.double(), channels
        )
        return None if exact is None else reason

    def _difference(
        self, model: nn.Module, images: Tensor, channels: Sequence[tuple[ChannelGroup, int]]
    ) -> str | None:
        pruned = copy.deepcopy(model)
        try:
            self._remove(pruned, channels)
            with torch.no_grad():
                got = pruned(images)
                with _zeroed_inputs(model, channels):
                    wanted = model(images)
        except Exception as error:  # any failure of foreign forward code is the answer itself
            message = next(iter(str(error).splitlines()), "no message")
            return f"removing an input channel breaks the network: {message}"
        if got.shape != wanted.shape:
            return "removing an input channel changes the shape of the network's output"
        tolerance = TOLERANCE * float(wanted.abs().max())
        return None if torch.allclose(got, wanted, rtol=0.0, atol=tolerance) else _DIFFERS


@contextmanager
def _zeroed_inputs(
    model: nn.Module, channels: Sequence[tuple[ChannelGroup, int]]
) -> Iterator[None]:
    """Let convolutions and linear layers read zeros from the given channels."""
    layers = compute_layers(model)
    positions: defaultdict[str, list[int]] = defaultdict(list)
    for group, channel in channels:
        for member in group.consumers:
            positions[member.module] += member.positions[channel].tolist()
    with ExitStack() as stack:
        for name, numbers in positions.items():
            hook = layers[name].register_forward_pre_hook(_zeroing(numbers), with_kwargs=True)
            stack.callback(hook.remove)
        yield


def _zeroing(positions: list[int]) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return a hook that zeroes channels of a layer's input, its only argument."""

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        [images] = *args, *kwargs.values()
        dim = 1 if isinstance(module, nn.Conv2d) else -1
        index = torch.tensor(positions, device=images.device)
        return (images.index_fill(dim, index, 0.0),), {}

    return hook


def _strongest_channel(model: nn.Module, group: ChannelGroup) -> int:
    """Return the channel that its producer answers with most, bias and weights together."""
    producer = model.get_submodule(group.members[0].module)
    strength = sum(p.detach().flatten(1).norm(dim=1) for p in producer.parameters() if p.dim() > 1)
    assert isinstance(strength, Tensor)
    bias = getattr(producer, "bias", None)
    if bias is not None:
        strength = strength + bias.detach()
    # (n,) -> (n_channels,)
    return int(np.argmax(strength.cpu().numpy()[group.members[0].positions[:, 0]]))
