"""Sufficient statistics of one layer, sampled at fixed places of the calibration images.

Shape legend: b images in a batch, p positions per image, P = b * p rows in all, C input channels,
k = kh * kw elements of a kernel, D = C * k inputs of one output unit, N output channels.

A layer with D <= P is described by sums over the rows, a wider one by the rows themselves, so that
nothing of D x D is ever held for it: each form is the smaller one where it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from compress_env.pruning.channels.observing import observe, run_until_input
from compress_env.pruning.channels.patches import PrunableLayer, sample_patches, sample_responses

__all__ = [
    "GramStatistics",
    "LayerStatistics",
    "RowStatistics",
    "collect_responses",
    "collect_statistics",
    "input_rms",
]

_NARROW = 64  # columns below which one product is faster than a part of it
_CHUNK = 2**22  # elements that are converted to float64 at a time: 32 MiB
_MAX_ROW_BYTES = 2**29  # of the inputs held for a wide layer; 5,350 rows of 25,088 in float32

Columns: TypeAlias = Tensor | slice


class LayerStatistics(Protocol):
    """What channel selection and reconstruction need to know about one layer."""

    @property
    def gram(self) -> Tensor:
        """``A = X^T X``, shape (D, D), float64."""

    @property
    def cross(self) -> Tensor:
        """``B = X^T Y``, shape (D, N), float64."""

    @property
    def n_rows(self) -> int:
        """Number of sampled rows P."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the layer's flattened weight, (N, D)."""

    @property
    def input_energy(self) -> Tensor:
        """Sums of squares of the inputs, the diagonal of A, shape (D,), float64."""

    def gram_block(
        self, rows: Columns, columns: Columns, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Return a block of A.

        Args:
            rows: Indices or a slice of its rows.
            columns: Indices or a slice of its columns.
            dtype: In which the block is computed if it has to be.
        """

    def cross_rows(self, rows: Columns, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return rows of B, as :meth:`gram_block` returns a block of A."""


class GramStatistics(NamedTuple):
    """Statistics as sums over the rows, of a layer with no more inputs than rows."""

    gram: Tensor
    """``A = X^T X``, shape (D, D), float64."""
    cross: Tensor
    """``B = X^T Y``, shape (D, N), float64."""
    n_rows: int
    """Number of sampled rows P."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the layer's flattened weight, (N, D)."""
        return self.cross.shape[1], self.cross.shape[0]

    @property
    def input_energy(self) -> Tensor:
        """Sums of squares of the inputs, shape (D,), float64."""
        return self.gram.diagonal()

    def gram_block(
        self, rows: Columns, columns: Columns, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Return a block of A in float64."""
        return self.gram[rows][:, columns]

    def cross_rows(self, rows: Columns, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return rows of B in float64."""
        return self.cross[rows]


class RowStatistics(NamedTuple):
    """Statistics as the rows themselves, of a layer with more inputs than rows."""

    inputs: Tensor
    """X, shape (P, D), float32 or float64."""
    responses: Tensor
    """Y, shape (P, N), float32 or float64."""

    @property
    def gram(self) -> Tensor:
        """``A = X^T X``, shape (D, D), float64: larger than the rows, and made at each call."""
        return self.gram_block(slice(None), slice(None))

    @property
    def cross(self) -> Tensor:
        """``B = X^T Y``, shape (D, N), float64, made at each call."""
        return self.cross_rows(slice(None))

    @property
    def n_rows(self) -> int:
        """Number of sampled rows P."""
        return len(self.inputs)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the layer's flattened weight, (N, D)."""
        return self.responses.shape[1], self.inputs.shape[1]

    @property
    def input_energy(self) -> Tensor:
        """Sums of squares of the inputs, shape (D,), float64."""
        return _sum(x.double().square().sum(dim=0) for x in self._chunks(self.inputs))

    def gram_block(
        self, rows: Columns, columns: Columns, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Return a block of A, computed from the rows in a precision."""
        return _sum(
            x[:, rows].to(dtype).T @ x[:, columns].to(dtype) for x in self._chunks(self.inputs)
        )

    def cross_rows(self, rows: Columns, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return rows of B, computed from the rows in a precision."""
        pairs = zip(self._chunks(self.inputs), self._chunks(self.responses), strict=True)
        return _sum(x[:, rows].to(dtype).T @ y.to(dtype) for x, y in pairs)

    def row_gram(self, columns: Tensor) -> Tensor:
        """Return ``X_S X_S^T``, shape (P, P), float64, of some columns S."""
        total = self.inputs.new_zeros(self.n_rows, self.n_rows, dtype=torch.float64)
        for part in torch.split(columns, _share(self.n_rows)):
            _add_gram_(total, self.inputs[:, part].double().T)
        _mirror_(total)
        return total

    def _chunks(self, rows: Tensor) -> tuple[Tensor, ...]:
        return torch.split(rows, _share(max(self.shape)))


def input_rms(statistics: LayerStatistics | None) -> Tensor:
    """Return the root mean square of each input of a layer, (D,) float32."""
    assert statistics is not None
    return (statistics.input_energy / statistics.n_rows).sqrt().float()


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
    for batch in batches:
        images = slice(start, start + len(batch))

        def take(name: str, output: Tensor, images: slice = images) -> Tensor:
            return sample_responses(output, layers[name], positions[name][images])

        for name, responses in observe(model, layers, batch, take).items():
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
    sums are made batch by batch in float64, so that no more than one batch of inputs is held. The
    inputs of a layer with more inputs than rows are held instead, up to 512 MiB; of more, evenly
    spaced rows are.

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
    n_rows, n_inputs = len(responses), layer.weight[0].numel()
    kind = _GramSums if n_inputs <= n_rows else _RowBuffer
    collected = kind(n_rows, n_inputs, responses.shape[1], layer.weight)
    start = 0
    for batch in batches:
        places = slice(start, start + len(batch))
        inputs = run_until_input(model, layer, layer_name, batch)
        x = sample_patches(inputs, layer, positions[places])
        collected.add(x, by_image[places].flatten(0, 1).to(x.device))
        start += len(batch)
    _check_all_used(start, positions)
    return collected.result()


class _GramSums:
    """Adds up the sums over the rows."""

    def __init__(self, n_rows: int, n_inputs: int, n_outputs: int, weight: Tensor) -> None:
        self._gram = weight.new_zeros(n_inputs, n_inputs, dtype=torch.float64)
        self._cross = weight.new_zeros(n_inputs, n_outputs, dtype=torch.float64)
        self._n_rows = n_rows

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows X, (r, D), and Y, (r, N)."""
        n_rows = _share(x.shape[1])
        for part, responses in zip(torch.split(x, n_rows), torch.split(y, n_rows), strict=True):
            part = part.double()
            _add_gram_(self._gram, part)
            self._cross.addmm_(part.T, responses.double())

    def result(self) -> GramStatistics:
        """Return the statistics of all rows."""
        _mirror_(self._gram)
        return GramStatistics(self._gram, self._cross, self._n_rows)


class _RowBuffer:
    """Holds rows, or as many of them, evenly spaced, as its memory allows."""

    def __init__(self, n_rows: int, n_inputs: int, n_outputs: int, weight: Tensor) -> None:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        n_kept = min(n_rows, max(1, _MAX_ROW_BYTES // (n_inputs * dtype.itemsize)))
        self._kept = torch.arange(n_kept, device=weight.device) * n_rows // n_kept
        self._inputs = weight.new_empty(n_kept, n_inputs, dtype=dtype)
        self._responses = weight.new_empty(n_kept, n_outputs, dtype=dtype)
        self._n_seen = self._n_held = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take what is to be kept of rows X, (r, D), and Y, (r, N)."""
        kept = self._kept - self._n_seen
        kept = kept[(kept >= 0) & (kept < len(x))]
        places = slice(self._n_held, self._n_held + len(kept))
        self._inputs[places] = x[kept]
        self._responses[places] = y[kept]
        self._n_seen += len(x)
        self._n_held += len(kept)

    def result(self) -> RowStatistics:
        """Return the rows."""
        return RowStatistics(self._inputs, self._responses)


def _add_gram_(total: Tensor, x: Tensor) -> None:
    """Add ``X^T X`` to the upper triangle, multiplying each pair of wide blocks of columns once."""
    half = x.shape[1] // 2
    if half < _NARROW:
        total.addmm_(x.T, x)
        return
    left, right = x[:, :half], x[:, half:]
    total[:half, half:].addmm_(left.T, right)
    _add_gram_(total[:half, :half], left)
    _add_gram_(total[half:, half:], right)


def _mirror_(total: Tensor) -> None:
    """Copy the upper triangle of a square matrix to the lower one, by blocks."""
    half = len(total) // 2
    if half < _NARROW:
        total.copy_(total.triu() + total.triu(1).T)
        return
    total[half:, :half] = total[:half, half:].T
    _mirror_(total[:half, :half])
    _mirror_(total[half:, half:])


def _share(width: int) -> int:
    """Return how many rows of a width are converted at a time."""
    return max(1, _CHUNK // width)


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """Add tensors up in the first one."""
    return reduce(Tensor.add_, parts)


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


def _check_rows(responses: Tensor, positions: Tensor) -> None:
    if not positions.numel():
        raise ValueError("expected at least one position, got none")
    if len(responses) != positions.numel():
        raise ValueError(f"expected {positions.numel()} rows of responses, got {len(responses)}")


def _check_all_used(n_images: int, positions: Tensor) -> None:
    if n_images != len(positions):
        raise ValueError(f"expected {len(positions)} images in the batches, got {n_images}")
