"""Sampled rows of a layer: what it reads and answers at fixed places of the calibration images.

Shape legend: b images in a batch, p positions per image, C input channels, k = kh * kw elements of
a kernel, D = C * k inputs of one output unit, N output channels, L output positions of one image
(height times width of a convolution, 1 for a plain linear layer).
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PatchSampler", "PrunableLayer", "sample_patches", "sample_responses"]

PrunableLayer: TypeAlias = nn.Conv2d | nn.Linear
"""What patches are sampled of."""


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

    An image may come as several maps or rows, such as windows, tokens or flipped copies: their
    places are numbered on, map by map.

    Args:
        inputs: Input of the layer: (m * b, C, height, width) for a convolution of m maps an image,
            (..., D) for a linear layer, a multiple of b rows.
        layer: A ``Conv2d`` with ``groups=1``, any stride, padding, padding mode and dilation, or
            a ``Linear``.
        positions: Flat output positions, shape (b, p), int64.

    Returns:
        X, shape (b * p, D), in the dtype of ``inputs``; row ``i * p + j`` belongs to position j of
        image i, and its columns are ordered as in ``layer.weight.flatten(1)``.

    Raises:
        ValueError: If the convolution is grouped, or the batch sizes disagree.
    """
    positions = positions.to(inputs.device)
    if isinstance(layer, nn.Linear):
        return _gather_rows(inputs, positions)
    if layer.groups != 1:
        raise ValueError(f"expected a Conv2d with groups=1, got groups={layer.groups}")
    _check_batch(inputs, positions)
    padded = _pad(inputs, layer)
    height, width = padded.shape[-2:]
    n_outputs = math.prod(_output_size(layer, height, width))
    n_maps = len(inputs) // max(1, len(positions))
    _check_range(positions, n_maps * n_outputs)
    if n_maps == 1:
        return _gather_patches(padded, _patch_index(layer, positions, height, width))
    # (b, p) -> (b * p, 1): a map and a place on it for each position
    first = torch.arange(len(positions), device=positions.device)[:, None] * n_maps
    maps = (first + positions // n_outputs).flatten()
    places = (positions % n_outputs).reshape(-1, 1)
    return _gather_patches(padded[maps], _patch_index(layer, places, height, width))


def sample_responses(outputs: Tensor, layer: PrunableLayer, positions: Tensor) -> Tensor:
    """Gather the pre-activations without bias at the sampled output positions.

    Args:
        outputs: Output of the layer: (m * b, N, height, width) for a convolution, (..., N) for a
            linear layer, as in :func:`sample_patches`.
        layer: The layer, for its bias and its kind.
        positions: Flat output positions, shape (b, p), int64.

    Returns:
        Y, shape (b * p, N), in the dtype of ``outputs``, rows ordered as in
        :func:`sample_patches`.

    Raises:
        ValueError: If the batch sizes disagree.
    """
    positions = positions.to(outputs.device)
    if isinstance(layer, nn.Conv2d):
        # (m * b, N, height, width) -> (m * b, L / m, N)
        outputs = outputs.flatten(2).transpose(1, 2)
    rows = _gather_rows(outputs, positions)
    return rows if layer.bias is None else rows - layer.bias.detach()


def _gather_rows(features: Tensor, positions: Tensor) -> Tensor:
    """Pick rows of (..., F) features, b * L in all, at (b, p) flat positions: (b * p, F)."""
    _check_batch(features.flatten(0, -2), positions)
    # (..., F) -> (b, L, F)
    rows = features.reshape(len(positions), -1, features.shape[-1])
    _check_range(positions, rows.shape[1])
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
    _, n_columns = _output_size(layer, height, width)
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


def _check_batch(features: Tensor, positions: Tensor) -> None:
    n_images = len(positions)
    if len(features) < n_images or len(features) % max(1, n_images):
        raise ValueError(f"expected positions for {len(features)} images, got them for {n_images}")


def _check_range(positions: Tensor, n_outputs: int) -> None:
    if ((positions < 0) | (positions >= n_outputs)).any():
        raise ValueError(f"expected positions in 0..{n_outputs - 1}, got others")
