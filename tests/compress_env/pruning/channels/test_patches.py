"""Sampled rows against a full unfold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress_env.pruning.channels.patches import PatchSampler, sample_patches, sample_responses


def rows_by_full_convolution(layer: nn.Conv2d, inputs: Tensor, positions: Tensor) -> Tensor:
    """The layer's outputs without bias at the positions, by running all of it."""
    outputs = layer(inputs)
    if layer.bias is not None:
        outputs = outputs - layer.bias[:, None, None]
    # (b, N, L) -> (b, N, p) -> (b * p, N)
    places = positions[:, None].expand(-1, layer.out_channels, -1)
    rows: Tensor = outputs.flatten(2).gather(2, places).transpose(1, 2).reshape(-1, len(outputs[0]))
    return rows.detach()


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride": {"stride": 2},
    "padding": {"padding": 2},
    "rectangular": {"kernel_size": (3, 1), "stride": (1, 2), "padding": (1, 0)},
    "same": {"padding": "same"},
    "same even kernel": {"kernel_size": 4, "padding": "same"},
    "valid": {"padding": "valid"},
    "dilation": {"dilation": 2, "padding": 2},
    "same dilation": {"dilation": (1, 2), "padding": "same"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": 2, "padding_mode": "replicate"},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "no bias": {"bias": False},
    "1x1": {"kernel_size": 1, "stride": 2},
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_patches_times_weight_are_the_convolutions_outputs(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, **{"kernel_size": 3, **options})
    inputs = torch.randn(4, 3, 9, 7)
    outputs = layer(inputs)
    positions = torch.randint(outputs[0, 0].numel(), (4, 6))
    patches = sample_patches(inputs, layer, positions)
    expected = rows_by_full_convolution(layer, inputs, positions)
    torch.testing.assert_close(patches @ layer.weight.detach().flatten(1).T, expected)
    torch.testing.assert_close(sample_responses(outputs.detach(), layer, positions), expected)


def test_patches_equal_a_full_unfold() -> None:
    inputs = torch.randn(2, 3, 6, 6)
    layer = nn.Conv2d(3, 1, 3, stride=2, padding=1)
    positions = torch.tensor([[0, 8, 4], [3, 3, 1]])
    unfolded = F.unfold(inputs, 3, stride=2, padding=1).transpose(1, 2)
    expected = torch.cat([unfolded[i, positions[i]] for i in range(2)])
    torch.testing.assert_close(sample_patches(inputs, layer, positions), expected, rtol=0, atol=0)


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)], ids=["flat", "tokens", "grid"])
def test_linear_rows_flatten_the_leading_dimensions(leading: tuple[int, ...]) -> None:
    layer = nn.Linear(4, 3)
    inputs = torch.randn(6, *leading, 4)
    positions = torch.randint(math.prod(leading), (6, 2))
    rows = sample_patches(inputs, layer, positions)
    expected = inputs.reshape(6, -1, 4)[torch.arange(6)[:, None], positions].reshape(12, 4)
    torch.testing.assert_close(rows, expected)
    responses = sample_responses(layer(inputs).detach(), layer, positions)
    torch.testing.assert_close(responses, rows @ layer.weight.detach().T)


def test_sampling_rejects_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="groups=2"):
        sample_patches(
            torch.ones(1, 4, 5, 5), nn.Conv2d(4, 4, 3, groups=2), torch.zeros(1, 1).long()
        )
    with pytest.raises(ValueError, match=r"positions in 0\.\.8"):
        sample_patches(torch.ones(1, 1, 5, 5), nn.Conv2d(1, 1, 3), torch.full((1, 1), 9))
    with pytest.raises(ValueError, match="positions for 2 images"):
        sample_patches(torch.ones(2, 4), nn.Linear(4, 1), torch.zeros(3, 1).long())


@given(
    n_images=st.integers(1, 20),
    n_positions=st.integers(1, 12),
    n_outputs=st.integers(1, 60),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=50, deadline=None)
def test_positions_are_fixed_distinct_and_in_range(
    n_images: int, n_positions: int, n_outputs: int, seed: int
) -> None:
    sampler = PatchSampler(n_images, n_positions, seed)
    positions = sampler.positions(n_outputs)
    assert positions.shape == (n_images, min(n_positions, n_outputs))
    assert 0 <= int(positions.min()) <= int(positions.max()) < n_outputs
    assert all(len(torch.unique(row)) == len(row) for row in positions)
    assert torch.equal(positions, PatchSampler(n_images, n_positions, seed).positions(n_outputs))


def test_positions_differ_between_images_and_seeds() -> None:
    positions = PatchSampler(5, 4, seed=0).positions(100)
    assert len(torch.unique(positions, dim=0)) == 5
    assert not torch.equal(positions, PatchSampler(5, 4, seed=1).positions(100))


@pytest.mark.parametrize(
    ("n_images", "n_positions"), [(0, 1), (1, 0)], ids=["no image", "no position"]
)
def test_sampler_rejects_empty_draws(n_images: int, n_positions: int) -> None:
    with pytest.raises(ValueError, match="expected n_images >= 1 and n_positions >= 1"):
        PatchSampler(n_images, n_positions)
    with pytest.raises(ValueError, match="expected n_outputs >= 1"):
        PatchSampler(1, 1).positions(0)


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_several_maps_of_an_image_are_numbered_on(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, **{"kernel_size": 3, **options})
    inputs = torch.randn(2 * 4, 3, 9, 7)  # two images, four windows each
    outputs = layer(inputs).detach()
    n_outputs = outputs[0, 0].numel()
    positions = torch.randint(4 * n_outputs, (2, 6))
    patches = sample_patches(inputs, layer, positions)
    responses = sample_responses(outputs, layer, positions)
    torch.testing.assert_close(patches @ layer.weight.detach().flatten(1).T, responses)
    bias = 0.0 if layer.bias is None else layer.bias.detach()
    for row, (image, position) in enumerate((i, p) for i in range(2) for p in positions[i]):
        window = outputs[image * 4 + int(position) // n_outputs].flatten(1)
        expected = window[:, int(position) % n_outputs] - bias
        torch.testing.assert_close(responses[row], expected)


def test_rows_of_a_linear_layer_are_found_whatever_dimensions_hold_them() -> None:
    layer = nn.Linear(6, 2)
    inputs = torch.randn(3 * 4, 5, 6)  # three images, four windows of five tokens each
    positions = torch.randint(20, (3, 7))
    expected = inputs.reshape(3, 20, 6).gather(1, positions[..., None].expand(-1, -1, 6))
    assert torch.equal(sample_patches(inputs, layer, positions), expected.flatten(0, 1))
    with pytest.raises(ValueError, match=r"positions in 0\.\.19"):
        sample_patches(inputs, layer, positions + 20)
