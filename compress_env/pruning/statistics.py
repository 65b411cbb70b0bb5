"""Sufficient statistics of one layer, sampled at fixed places of the calibration images.

Shape legend: b images in a batch, p positions per image, P = b * p rows in all, C input channels,
k = kh * kw elements of a kernel, D = C * k inputs of one output unit, N output channels,
L output positions of one image (height times width of a convolution, 1 for a plain linear layer).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "LayerStatistics",
    "PatchSampler",
    "collect_responses",
    "collect_statistics",
    "sample_patches",
    "sample_responses",
]

_NARROW = 64  # columns below which one product is faster than a part of it

PrunableLayer: TypeAlias = nn.Conv2d | nn.Linear


class LayerStatistics(NamedTuple):
    """What channel selection and reconstruction need to know about one layer."""

    gram: Tensor
    """``A = X^T X``, shape (D, D), float64."""
    cross: Tensor
    """``B = X^T Y``, shape (D, N), float64."""
    n_rows: int
    """Number of sampled rows P."""


class PatchSampler:
    """Draws the output positions at which a layer is observed, the same at every call.

    The positions of a layer depend only on the seed and on its number L of output positions, so
    that the unpruned and the pruned network are compared at the same places.

    Args:
        n_images: Number of calibration images.
        n_positions: Positions per image; a layer with fewer output positions is observed at all.
        seed: Seed of the draw.

    Raises:
        ValueError: If a count is not positive.
    """

    def __init__(self, n_images: int, n_positions: int = 10, seed: int = 0) -> None:
        """Check the arguments; nothing is drawn yet."""
        if n_images < 1 or n_positions < 1:
            raise ValueError(
                f"expected n_images >= 1 and n_positions >= 1, got {n_images} and {n_positions}"
            )
        self.n_images = n_images
        self.n_positions = n_positions
        self.seed = seed
        self._drawn: dict[int, Tensor] = {}

    def positions(self, n_outputs: int) -> Tensor:
        """Return the positions for a layer with ``n_outputs`` output positions per image.

        Args:
            n_outputs: L, the height times the width of a convolution's output; 1 for a linear
                layer applied to flat features.

        Returns:
            Flat (row-major) positions, shape (n_images, min(n_positions, L)), int64, on the CPU,
            without repetition within an image.

        Raises:
            ValueError: If ``n_outputs`` is not positive.
        """
        if n_outputs < 1:
            raise ValueError(f"expected n_outputs >= 1, got {n_outputs}")
        if n_outputs not in self._drawn:
            generator = torch.Generator().manual_seed(self.seed)
            rows = [
                torch.randperm(n_outputs, generator=generator)[: self.n_positions].clone()
                for _ in range(self.n_images)
            ]
            self._drawn[n_outputs] = torch.stack(rows)
        return self._drawn[n_outputs]


def sample_patches(inputs: Tensor, layer: PrunableLayer, positions: Tensor) -> Tensor:
    """Gather the flattened inputs of the sampled outputs, without unfolding the others.

    Args:
        inputs: Input of the layer: (b, C, height, width) for a convolution, (b, ..., D) for a
            linear layer.
        layer: A ``Conv2d`` with ``groups=1``, any stride, padding, padding mode and dilation, or
            a ``Linear``.
        positions: Flat output positions, shape (b, p), int64.

    Returns:
        X, shape (b * p, D), in the dtype of ``inputs``; row ``i * p + j`` belongs to position j of
        image i, and its columns are ordered as in ``layer.weight.flatten(1)``.

    Raises:
        ValueError: If the convolution is grouped, or the batch sizes disagree.
    """
    _check_batch(inputs, positions)
    positions = positions.to(inputs.device)
    if isinstance(layer, nn.Linear):
        return _gather_rows(inputs, positions)
    if layer.groups != 1:
        raise ValueError(f"expected a Conv2d with groups=1, got groups={layer.groups}")
    padded = _pad(inputs, layer)
    index = _patch_index(layer, positions, padded.shape[-2], padded.shape[-1])
    return _gather_patches(padded, index)


def sample_responses(outputs: Tensor, layer: PrunableLayer, positions: Tensor) -> Tensor:
    """Gather the pre-activations without bias at the sampled output positions.

    Args:
        outputs: Output of the layer: (b, N, height, width) for a convolution, (b, ..., N) for a
            linear layer.
        layer: The layer, for its bias and its kind.
        positions: Flat output positions, shape (b, p), int64.

    Returns:
        Y, shape (b * p, N), in the dtype of ``outputs``, rows ordered as in
        :func:`sample_patches`.

    Raises:
        ValueError: If the batch sizes disagree.
    """
    _check_batch(outputs, positions)
    positions = positions.to(outputs.device)
    if isinstance(layer, nn.Conv2d):
        # (b, N, height, width) -> (b, L, N)
        outputs = outputs.flatten(2).transpose(1, 2)
    rows = _gather_rows(outputs, positions)
    return rows if layer.bias is None else rows - layer.bias.detach()


def collect_responses(
    model: nn.Module,
    layer_names: Sequence[str],
    batches: Iterable[Tensor],
    positions: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Run the model once and return the sampled responses of several layers.

    The model is run in evaluation mode without gradients, and left as it was.

    Args:
        model: The network, usually the unpruned one.
        layer_names: Names of ``Conv2d`` and ``Linear`` modules, as in ``named_modules``.
        batches: Image batches, each (b, C, height, width), on the model's device; together as many
            images as each of ``positions`` has rows.
        positions: For each layer its flat output positions, shape (n_images, p), int64.

    Returns:
        For each layer Y, shape (n_images * p, N).

    Raises:
        ValueError: If a layer does not exist or is not reached, or the numbers of images differ.
    """
    layers = {name: _layer(model, name) for name in layer_names}
    rows: dict[str, list[Tensor]] = {name: [] for name in layers}
    start = 0

    def take(name: str, output: Tensor) -> Tensor:
        part = positions[name][start : start + len(output)]
        return sample_responses(output, layers[name], part)

    for batch in batches:
        for name, responses in _observe(model, layers, batch, take).items():
            rows[name].append(responses)
        start += len(batch)
    for name in layers:
        _check_all_used(start, positions[name])
    return {name: torch.cat(parts) for name, parts in rows.items()}


def collect_statistics(
    model: nn.Module,
    layer_name: str,
    batches: Iterable[Tensor],
    positions: Tensor,
    responses: Tensor,
    out_channels: Tensor | None = None,
) -> LayerStatistics:
    """Return the statistics of the live layer's inputs and the unpruned layer's responses.

    The model is run up to the layer in evaluation mode without gradients, and left as it was. The
    sums are made batch by batch in float64, so that no more than one batch of inputs is held.

    Args:
        model: The live, partly pruned network.
        layer_name: Name of a ``Conv2d`` or ``Linear``, as in ``named_modules``.
        batches: Image batches, as for :func:`collect_responses`.
        positions: Flat output positions of the layer, shape (n_images, p), int64.
        responses: Y of the unpruned network at the same places, shape (n_images * p, N).
        out_channels: Indices of the output channels that the live layer still has, in its order;
            all when None.

    Returns:
        The statistics, on the model's device.

    Raises:
        ValueError: If the layer does not exist or is not reached, there is no position, or the
            numbers of images or rows differ.
    """
    layer = _layer(model, layer_name)
    _check_rows(responses, positions)
    if out_channels is not None:
        responses = responses[:, out_channels.to(responses.device)]
    # (n_images * p, N) -> (n_images, p, N)
    by_image = responses.reshape(*positions.shape, responses.shape[1])
    total: LayerStatistics | None = None
    start = 0
    for batch in batches:
        places = slice(start, start + len(batch))
        inputs = _run_until_input(model, layer, layer_name, batch)
        x = sample_patches(inputs, layer, positions[places])
        y = by_image[places].flatten(0, 1)
        part = _statistics_of(x.double(), y.to(x.device).double())
        total = part if total is None else _add(total, part)
        start += len(batch)
    _check_all_used(start, positions)
    assert total is not None  # there is a position, hence an image
    return total


class _AllSeenError(Exception):
    """Ends a forward pass once every layer of interest has run."""


def _observe(
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


def _run_until_input(model: nn.Module, layer: PrunableLayer, name: str, batch: Tensor) -> Tensor:
    """Return the first input of a layer, ending the pass before the layer computes."""
    seen: dict[str, Tensor] = {}

    def record(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[name] = args[0]
        raise _AllSeenError

    handle = layer.register_forward_pre_hook(record)
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


def _statistics_of(x: Tensor, y: Tensor) -> LayerStatistics:
    """Return the statistics of one batch of rows."""
    return LayerStatistics(_gram(x), x.T @ y, len(x))


def _gram(x: Tensor) -> Tensor:
    """Return ``X^T X``, exactly symmetric, multiplying each pair of wide blocks of columns once."""
    half = x.shape[1] // 2
    if half < _NARROW:
        return x.T @ x
    left, right = x[:, :half], x[:, half:]
    corner = left.T @ right
    # two of (D/2, D) -> (D, D)
    return torch.cat([torch.cat([_gram(left), corner], 1), torch.cat([corner.T, _gram(right)], 1)])


def _add(left: LayerStatistics, right: LayerStatistics) -> LayerStatistics:
    """Add two batches' statistics."""
    return LayerStatistics(
        left.gram + right.gram, left.cross + right.cross, left.n_rows + right.n_rows
    )


def _gather_rows(features: Tensor, positions: Tensor) -> Tensor:
    """Pick rows of (b, ..., F) features at (b, p) flat positions; the result is (b * p, F)."""
    # (b, ..., F) -> (b, L, F)
    rows = features.reshape(len(features), -1, features.shape[-1])
    image = torch.arange(len(rows), device=rows.device)[:, None]
    # (b, p, F) -> (b * p, F)
    return rows[image, positions].flatten(0, 1)


def _gather_patches(padded: Tensor, index: Tensor) -> Tensor:
    """Pick (b, p, k) flat positions of a padded (b, C, height, width) input."""
    (n_images, n_channels), (n_positions, n_offsets) = padded.shape[:2], index.shape[1:]
    # (b, C, height, width) -> (b, C, height * width)
    flat = padded.flatten(2)
    # (b, p, k) -> (b, C, p * k), a view: every channel is read at the same places
    places = index.flatten(1)[:, None].expand(-1, n_channels, -1)
    # (b, C, p * k) -> (b, C, p, k) -> (b, p, C, k) -> (b * p, C * k)
    patches = flat.gather(2, places).view(n_images, n_channels, n_positions, n_offsets)
    return patches.transpose(1, 2).reshape(n_images * n_positions, n_channels * n_offsets)


def _patch_index(layer: nn.Conv2d, positions: Tensor, height: int, width: int) -> Tensor:
    """Return the flat places, (b, p, k), that each output position reads in the padded input."""
    (kernel_h, kernel_w), (stride_h, stride_w) = layer.kernel_size, layer.stride
    dilation_h, dilation_w = layer.dilation
    n_rows, n_columns = _output_size(layer, height, width)
    _check_range(positions, n_rows * n_columns)
    first = (positions // n_columns) * stride_h * width + (positions % n_columns) * stride_w
    offset_h = torch.arange(kernel_h, device=positions.device) * dilation_h * width
    offset_w = torch.arange(kernel_w, device=positions.device) * dilation_w
    # (kh, 1) + (1, kw) -> (kh * kw,)
    offsets = (offset_h[:, None] + offset_w[None, :]).flatten()
    return first[..., None] + offsets


def _output_size(layer: nn.Conv2d, height: int, width: int) -> tuple[int, int]:
    """Return the output's height and width for a padded input's."""
    sizes = [
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, dilation, kernel, stride in zip(
            (height, width), layer.dilation, layer.kernel_size, layer.stride, strict=True
        )
    ]
    return sizes[0], sizes[1]


def _pad(inputs: Tensor, layer: nn.Conv2d) -> Tensor:
    """Pad an input as the convolution itself would."""
    (top, bottom), (left, right) = _padding(layer, 0), _padding(layer, 1)
    if not (top or bottom or left or right):
        return inputs
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(inputs, (left, right, top, bottom), mode=mode)


def _padding(layer: nn.Conv2d, axis: int) -> tuple[int, int]:
    """Return the padding before and after along an axis; 'same' puts an odd rest after."""
    if layer.padding == "valid":
        return 0, 0
    if isinstance(layer.padding, str):
        total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        return total // 2, total - total // 2
    return layer.padding[axis], layer.padding[axis]


def _layer(model: nn.Module, name: str) -> PrunableLayer:
    """Look a layer up by name."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"expected a Conv2d or Linear at {name!r}, got nothing") from None
    if not isinstance(module, nn.Conv2d | nn.Linear):
        kind = type(module).__name__
        raise ValueError(f"expected a Conv2d or Linear at {name!r}, got {kind}")
    return module


def _check_reached(names: Iterable[str], seen: Container[str]) -> None:
    missing = [name for name in names if name not in seen]
    if missing:
        raise ValueError(f"the forward pass did not reach {missing}")


def _check_batch(features: Tensor, positions: Tensor) -> None:
    if len(features) != len(positions):
        raise ValueError(
            f"expected positions for {len(features)} images, got them for {len(positions)}"
        )


def _check_rows(responses: Tensor, positions: Tensor) -> None:
    if not positions.numel():
        raise ValueError("expected at least one position, got none")
    if len(responses) != positions.numel():
        raise ValueError(f"expected {positions.numel()} rows of responses, got {len(responses)}")


def _check_all_used(n_images: int, positions: Tensor) -> None:
    if n_images != len(positions):
        raise ValueError(f"expected {len(positions)} images in the batches, got {n_images}")


def _check_range(positions: Tensor, n_outputs: int) -> None:
    if ((positions < 0) | (positions >= n_outputs)).any():
        raise ValueError(f"expected positions in 0..{n_outputs - 1}, got others")
