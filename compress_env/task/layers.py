"""The layer table and the cost model: what each layer of a network computes and stores.

Shapes: N output channels, C input channels, H x W kernel, R output positions per image. Positions
are those of one image, tokens, windows and other copies of it among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from compress_env.task.counting import running_one_image

__all__ = [
    "FLOAT_BYTES",
    "Layer",
    "check_network",
    "compute_layers",
    "dense_params",
    "describe_layer",
    "largest_bits_within",
    "layer_at",
    "layer_table",
    "nonzero_params",
    "nonzero_weights",
    "round_channels",
    "smallest_rate_within",
    "sparse_macs",
    "sparse_params",
    "turning_rates",
]

FLOAT_BYTES = 4
SLACK = 1e-4  # a rate that went through float32 still rounds as it did in float64
LAYER_TYPES = (nn.Conv2d, nn.Linear)


class Layer(NamedTuple):
    """One convolution or linear layer as the forward pass meets it.

    Attributes:
        name: Dotted module name.
        in_channels: C, input channels (features of a linear layer).
        out_channels: N, output channels (features of a linear layer).
        kernel_height: H, 1 for a linear layer.
        kernel_width: W, 1 for a linear layer.
        stride: Vertical stride, 1 for a linear layer.
        groups: Groups of a convolution, 1 for a linear layer.
        positions: R, output positions per image.
        n_weights: Elements of the weight tensor.
        n_calls: How often one forward pass runs the layer.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel_height: int
    kernel_width: int
    stride: int
    groups: int
    positions: int
    n_weights: int
    n_calls: int

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations per image."""
        return self.positions * self.n_weights


def compute_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the convolutions and linear layers of `model` by dotted name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LAYER_TYPES)}


def layer_at(model: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
    """Return the convolution or linear layer of a dotted name."""
    layer = model.get_submodule(name)
    assert isinstance(layer, LAYER_TYPES)
    return layer


def format_minimum(fraction: float) -> str:
    """Format the least that a fraction may be, rounded up, so that what is shown is allowed."""
    return f"{math.ceil(1e4 * fraction) / 1e4:.4f}"


def check_network(model: nn.Module) -> None:
    """Check that a network has layers to be looked into, and weights.

    Raises:
        ValueError: If it is TorchScript, or if a lazy module has not seen an image yet, so that its
            weights are to come.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError("the network is TorchScript: give the module that it was made from")
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ValueError(
            f"{lazy[0]!r} of the network has no values yet: lazy modules must be run on an image, "
            "and trained, before they are compressed"
        )


def describe_layer(name: str, module: nn.Module, positions: int, n_calls: int = 1) -> Layer:
    """Describe a live module that has `positions` output positions per image.

    Raises:
        TypeError: If `module` is neither a Conv2d nor a Linear.
    """
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        shape = (module.in_channels, module.out_channels, height, width)
        stride, groups = int(module.stride[0]), module.groups
    elif isinstance(module, nn.Linear):
        shape = (module.in_features, module.out_features, 1, 1)
        stride, groups = 1, 1
    else:
        raise TypeError(f"expected Conv2d or Linear at {name!r}, got {type(module).__name__}")
    n_weights = math.prod(shape) // groups
    return Layer(name, *shape, stride, groups, positions, n_weights, n_calls)


def layer_table(model: nn.Module, image: Tensor) -> tuple[Layer, ...]:
    """Run `model` on one image and list its convolutions and linear layers in execution order.

    Args:
        model: Any network of images; left in the mode it was in.
        image: A batch of images, (b, C, H, W) float32, on the model's device; the first is run.

    Returns:
        One row per layer that the forward pass reaches, in the order of its first call.

    Raises:
        ValueError: See `check_network`.
    """
    check_network(model)
    calls: dict[str, list[int]] = {}

    def record(name: str, output: Tensor) -> None:
        channels = output.shape[-3 if isinstance(layers[name], nn.Conv2d) else -1]
        calls.setdefault(name, []).append(output.numel() // channels)

    layers = compute_layers(model)
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: record(name, out))
        for name, module in layers.items()
    ]
    try:
        with running_one_image(model):
            model(image[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(
        describe_layer(name, layers[name], sum(positions), len(positions))
        for name, positions in calls.items()
    )


def sparse_macs(model: nn.Module, positions: Mapping[str, int]) -> int:
    """Multiply-accumulates per image of layers by non-zero weights.

    Dense kernels do not skip the others.
    """
    layers = compute_layers(model)
    counts = _count_nonzero(layers[name].weight for name in positions)
    return sum(n * count for n, count in zip(positions.values(), counts, strict=True))


def dense_params(model: nn.Module) -> int:
    """Number of parameters as stored."""
    return sum(p.numel() for p in model.parameters())


def sparse_params(model: nn.Module) -> int:
    """Number of non-zero parameters, those of quantized weights counted after quantization."""
    weights, others = nonzero_params(compute_layers(model), model.parameters())
    return sum(weights.values()) + others


def nonzero_params(
    layers: Mapping[str, nn.Conv2d | nn.Linear], parameters: Iterable[nn.Parameter]
) -> tuple[dict[str, int], int]:
    """Count the non-zero elements of a network's parameters.

    Args:
        layers: Its `compute_layers`.
        parameters: All of its parameters.

    Returns:
        The number for each layer's weight by name, and that for all else together.
    """
    stored = {id(p) for layer in layers.values() for p in layer.parameters() if p.dim() > 1}
    others = [p for p in parameters if id(p) not in stored]
    counts = _count_nonzero([*(layer.weight for layer in layers.values()), *others])
    n = len(layers)
    return dict(zip(layers, counts[:n], strict=True)), sum(counts[n:])


def nonzero_weights(model: nn.Module, names: Iterable[str]) -> list[int]:
    """Return the non-zero elements of the weight of each named layer."""
    layers = compute_layers(model)
    return _count_nonzero(layers[name].weight for name in names)


def _count_nonzero(tensors: Iterable[Tensor]) -> list[int]:
    """Return the number of non-zero elements of each tensor, waiting for the device once."""
    counts = [torch.count_nonzero(tensor.detach()) for tensor in tensors]
    return torch.stack(counts).tolist() if counts else []


def round_channels(n_channels: int, pruning_rate: float, channel_round: int = 1) -> int:
    """Channels that stay when the fraction `pruning_rate` of `n_channels` is removed.

    Args:
        n_channels: Channels before pruning, at least 1.
        pruning_rate: Fraction removed, in [0, 1].
        channel_round: The count is rounded, half down, to the nearest multiple of this that is
            below `n_channels`, or to `n_channels` itself.

    Returns:
        A count in 1..n_channels; it never grows with the rate, and rate 0 removes nothing.
    """
    wanted = (1.0 - pruning_rate) * n_channels - SLACK
    largest_multiple = n_channels // channel_round * channel_round
    if wanted > (largest_multiple + n_channels) / 2:
        return n_channels
    multiples = math.ceil(wanted / channel_round - 0.5)
    return min(n_channels, max(1, multiples) * channel_round)


def smallest_rate_within(
    sizes: Sequence[int],
    highest: float,
    meets: Callable[[float], bool],
    channel_round: int = 1,
) -> float:
    """Return the smallest pruning rate in [0, `highest`] at which `meets` holds.

    Only the rates at which a channel count can change are tried, so the answer is exact.

    Args:
        sizes: Channels of each group that the rate applies to.
        highest: Highest rate allowed; `meets(highest)` is taken for granted.
        meets: Whether a rate meets the budget; once true it stays true for higher rates.
        channel_round: As in `round_channels`.
    """
    rates = turning_rates(sizes, highest, channel_round)
    low, high = 0, len(rates) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(rates[middle]) else (middle + 1, high)
    return rates[low]


def turning_rates(sizes: Sequence[int], highest: float, channel_round: int = 1) -> list[float]:
    """Return the rates in [0, `highest`], both among them, at which channel counts can change.

    Args:
        sizes: Channels of each group that the rate applies to.
        highest: Highest rate allowed.
        channel_round: As in `round_channels`.
    """
    grid = {1.0 - count / n for n in set(sizes) for count in _turning_points(n, channel_round)}
    return sorted({0.0, highest} | {rate for rate in grid if 0.0 < rate < highest})


def _turning_points(n_channels: int, channel_round: int) -> list[float]:
    """Return the counts at which `round_channels` turns from one multiple to the next."""
    n_multiples = n_channels // channel_round
    between = [(m + 0.5) * channel_round for m in range(1, n_multiples)]
    return [*between, (n_multiples * channel_round + n_channels) / 2]


def largest_bits_within(lowest: int, highest: int, meets: Callable[[float], bool]) -> int:
    """Return the largest bit-width in `lowest`..`highest` at which `meets` holds.

    `meets(lowest)` is taken for granted.
    """
    return next((b for b in range(highest, lowest, -1) if meets(b)), lowest)
