"""How images and weights lie in memory: channels last, and what that asks of a convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.overrides import TorchFunctionMode

__all__ = ["channels_last_of", "strides_before", "use_channels_last"]

FEW = 8
"""Input channels from which on a strided 1x1 convolution needs no care."""


def use_channels_last(model: nn.Module) -> None:
    """Lay out all 4-d parameters of `model` channels last, in place; values and objects stay."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = channels_last_of(parameter.data)


def channels_last_of(tensor: Tensor) -> Tensor:
    """Return a (n, C, H, W) tensor in memory as (n, H, W, C), with the strides that say so.

    With one channel or pixel both layouts are the same bytes and PyTorch keeps the strides that it
    finds, but chooses kernels by them: without this, results would depend on where a tensor has
    been before.
    """
    _, channels, height, width = tensor.shape
    strides = (channels * height * width, 1, width * channels, channels)
    return tensor.contiguous(memory_format=torch.channels_last).as_strided(tensor.shape, strides)


@contextmanager
def strides_before(model: nn.Module) -> Iterator[None]:
    """Take the pixels that a strided 1x1 convolution reads before it, where it has few channels.

    On a CPU the float32 weight gradient of such a convolution writes beyond its memory, and sooner
    or later ends the process, where images lie channels last and fewer than `FEW` channels come in
    (seen with PyTorch 2.14 and AVX2). With the pixels taken first the convolution has stride 1, and
    the same numbers.

    Args:
        model: Network that is about to run.

    Yields:
        While it runs; nothing changes where no weight is of that kind.
    """
    is_needed = any(_is_few(parameter) for parameter in model.parameters())
    with _StridesBefore() if is_needed else nullcontext():
        yield


def _is_few(weight: Tensor) -> bool:
    return weight.dim() == 4 and weight.shape[2:] == (1, 1) and weight.shape[1] < FEW


class _StridesBefore(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.conv2d:
            return _conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    down, across = _pair(stride)
    if _is_few(weight) and (down, across) != (1, 1):
        top, left = (0, 0) if isinstance(padding, str) else _pair(padding)
        if top or left:
            input = pad(input, (left, left, top, top))
        input, stride, padding = input[..., ::down, ::across], 1, 0
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    return (size[0], size[0]) if len(size) == 1 else (size[0], size[1])
