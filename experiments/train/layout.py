"""In which precision and layout of memory a network trains fastest on a device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compress_env.data.bundle import DataBundle
from compress_env.task.finetune import compute_logits
from compress_env.task.layout import use_channels_last
from compress_env.task.scoring import halving

__all__ = ["Layout", "fastest"]

N_IMAGES = 64
"""Images of a timed minibatch, at most."""
REPEATS = 3
GAIN = 0.95
"""Share of the plain layout's time below which another one is taken."""


class Layout(NamedTuple):
    """How a minibatch is computed."""

    bf16: bool
    """Whether forward passes run under autocast in bfloat16."""
    channels_last: bool
    """Whether network and images are laid out channels last."""

    def describe(self) -> str:
        """Return it in words."""
        order = "last" if self.channels_last else "first"
        return f"{'bfloat16 autocast' if self.bf16 else 'float32'}, channels {order}"


def fastest(
    model: nn.Module,
    data: DataBundle,
    batch_size: int,
    bf16: bool | None = None,
    channels_last: bool | None = None,
    time: Callable[[Callable[[], None]], float] | None = None,
) -> Layout:
    """Time a minibatch in each layout that is left open, in turn, and return the fastest.

    Args:
        model: The network, on its device; it is left as it is.
        data: Its images, on the same device.
        batch_size: Images in a minibatch; at most `N_IMAGES` are timed, fewer where so many do not
            fit into memory.
        bf16: Whether in bfloat16; whatever is faster when None.
        channels_last: Whether channels last; whatever is faster when None.
        time: Returns how long a call takes; the clock's seconds when None.

    Returns:
        The plain layout, float32 with channels first, unless another takes less than `GAIN` of its
        time.
    """
    options = product(*((False, True) if x is None else (x,) for x in (bf16, channels_last)))
    layouts = [Layout(*each) for each in options]
    if len(layouts) == 1:
        return layouts[0]
    timed = partial(_time_all, model, data, layouts, measure=time or _seconds)
    times, _ = halving(timed, min(batch_size, N_IMAGES, len(data.train)))
    best = min(range(len(layouts)), key=times.__getitem__)
    return layouts[best] if times[best] < GAIN * times[0] else layouts[0]


def _time_all(
    model: nn.Module,
    data: DataBundle,
    layouts: Sequence[Layout],
    n_images: int,
    *,
    measure: Callable[[Callable[[], None]], float],
) -> list[float]:
    """Return the median time of a minibatch of so many images in each layout."""
    images, labels = next(iter(data.train.batches([torch.arange(n_images)])))
    calls = [partial(_train_once, _laid_out(model, each), images, labels, each) for each in layouts]
    for call in calls:
        measure(call)  # the first call of each finds its kernels
    rounds = [[measure(call) for call in calls] for _ in range(REPEATS)]
    return [median(column) for column in zip(*rounds, strict=True)]


def _laid_out(model: nn.Module, layout: Layout) -> nn.Module:
    network = copy.deepcopy(model).train()
    if layout.channels_last:
        use_channels_last(network)
    return network


def _train_once(network: nn.Module, images: Tensor, labels: Tensor, layout: Layout) -> None:
    logits = compute_logits(network, images, **layout._asdict())
    cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)


def _seconds(call: Callable[[], None]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start
