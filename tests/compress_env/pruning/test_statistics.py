"""Sampled rows and sufficient statistics against a full unfold."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress_env.pruning.statistics import (
    PatchSampler,
    accumulate,
    collect_inputs,
    collect_responses,
    collect_statistics,
    sample_patches,
    sample_responses,
)

NAMES = ["conv1", "conv2", "fc1", "fc2"]


class SmallNet(nn.Module):
    """Two convolutions and two linear layers; counts its completed passes."""

    def __init__(self) -> None:
        """Build the layers."""
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 4, 3, stride=2)
        self.drop = nn.Dropout(0.5)
        self.fc1 = nn.Linear(4 * 9, 6)
        self.fc2 = nn.Linear(6, 2)
        self.n_completed = 0

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        hidden = self.norm(self.conv1(images)).relu()
        hidden = self.drop(self.conv2(hidden).relu()).flatten(1)
        logits: Tensor = self.fc2(self.fc1(hidden).relu())
        self.n_completed += 1
        return logits


@pytest.fixture
def model() -> SmallNet:
    torch.manual_seed(0)
    return SmallNet()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))


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


def test_draw_finds_the_output_sizes(model: SmallNet, images: Tensor) -> None:
    positions = PatchSampler(10, 12).draw(model, NAMES, images[:1])
    widths = {name: tensor.shape[1] for name, tensor in positions.items()}
    assert widths == {"conv1": 12, "conv2": 9, "fc1": 1, "fc2": 1}
    assert int(positions["conv1"].max()) > 9


@pytest.mark.parametrize(
    ("n_images", "n_positions"), [(0, 1), (1, 0)], ids=["no image", "no position"]
)
def test_sampler_rejects_empty_draws(n_images: int, n_positions: int) -> None:
    with pytest.raises(ValueError, match="expected n_images >= 1 and n_positions >= 1"):
        PatchSampler(n_images, n_positions)
    with pytest.raises(ValueError, match="expected n_outputs >= 1"):
        PatchSampler(1, 1).positions(0)


@pytest.mark.parametrize("name", NAMES)
def test_collected_inputs_and_responses_belong_together(
    model: SmallNet, images: Tensor, name: str
) -> None:
    positions = PatchSampler(10, 4).draw(model, NAMES, images)
    inputs = collect_inputs(model, name, torch.split(images, 4), positions[name])
    responses = collect_responses(model, NAMES, [images], positions)
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    torch.testing.assert_close(inputs @ weight.detach().flatten(1).T, responses[name])


def test_responses_are_those_before_an_in_place_activation(images: Tensor) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 3, 3)
    positions = {"0": PatchSampler(10, 5).positions(36)}
    model = nn.Sequential(layer, nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3))
    both = collect_responses(model, ["0", "2"], [images], {**positions, "2": positions["0"] % 16})
    expected = rows_by_full_convolution(layer, images, positions["0"])
    torch.testing.assert_close(both["0"], expected)
    assert (both["0"] < 0).any()


def test_collecting_leaves_the_model_as_it_was(model: SmallNet, images: Tensor) -> None:
    model.train()
    model.drop.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    positions = PatchSampler(10, 2).draw(model, NAMES, images)
    inputs = collect_inputs(model, "fc1", [images], positions["fc1"])
    assert not inputs.requires_grad
    assert model.training and model.norm.training and not model.drop.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.fc1._forward_pre_hooks and not model.fc1._forward_hooks


def test_the_forward_pass_ends_at_the_last_layer_asked_for(model: SmallNet, images: Tensor) -> None:
    positions = PatchSampler(10, 2).draw(model, NAMES, images)
    collect_inputs(model, "fc2", [images], positions["fc2"])
    collect_responses(model, NAMES, [images], positions)
    assert model.n_completed == 0


def test_an_error_of_the_model_itself_is_not_swallowed(model: SmallNet) -> None:
    with pytest.raises(RuntimeError):
        collect_inputs(model, "fc1", [torch.ones(1, 2, 8, 8)], torch.zeros(1, 1).long())
    assert not model.fc1._forward_pre_hooks


@pytest.mark.parametrize(
    ("name", "n_images", "message"),
    [
        ("conv9", 10, "expected a Conv2d or Linear at 'conv9', got nothing"),
        ("norm", 10, "got BatchNorm2d"),
        ("spare", 10, r"did not reach \['spare'\]"),
        ("fc1", 11, "expected 11 images in the batches, got 10"),
    ],
    ids=["unknown", "other kind", "unused", "too few images"],
)
def test_collecting_names_what_is_wrong(
    model: SmallNet, images: Tensor, name: str, n_images: int, message: str
) -> None:
    model.add_module("spare", nn.Linear(1, 1))
    positions = torch.zeros(n_images, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        collect_inputs(model, name, [images], positions)
    with pytest.raises(ValueError, match=message):
        collect_responses(model, [name], [images], {name: positions})


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    n_inputs=st.integers(1, 30),
    n_outputs=st.integers(1, 5),
)
@settings(max_examples=30, deadline=None)
def test_accumulated_batches_equal_one_batch(
    sizes: list[int], n_inputs: int, n_outputs: int
) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    x = torch.randn(sum(sizes), n_inputs, generator=generator)
    y = torch.randn(sum(sizes), n_outputs, generator=generator)
    statistics = accumulate(torch.split(x, sizes), torch.split(y, sizes))
    assert statistics.n_rows == sum(sizes)
    assert statistics.gram.dtype == statistics.cross.dtype == torch.float64
    torch.testing.assert_close(statistics.gram, x.double().T @ x.double())
    torch.testing.assert_close(statistics.cross, x.double().T @ y.double())


def test_statistics_pick_the_live_output_channels(model: SmallNet, images: Tensor) -> None:
    positions = PatchSampler(10, 3).draw(model, NAMES, images)
    responses = collect_responses(model, ["conv2"], [images], positions)["conv2"]
    live = torch.tensor([0, 2])
    batches = torch.split(images, 3)
    statistics = collect_statistics(model, "conv2", batches, positions["conv2"], responses, live)
    rows = collect_inputs(model, "conv2", [images], positions["conv2"])
    expected = accumulate([rows], [responses[:, live]])
    assert statistics.n_rows == expected.n_rows == 30
    torch.testing.assert_close(statistics.gram, expected.gram)
    torch.testing.assert_close(statistics.cross, expected.cross)


@pytest.mark.parametrize(
    ("inputs", "responses", "message"),
    [
        ([], [], "at least one batch"),
        ([torch.ones(2, 1)], [torch.ones(3, 1)], "as many responses as inputs, got 3 and 2"),
        ([torch.ones(2, 1)], [], "shorter"),
    ],
    ids=["empty", "rows", "batches"],
)
def test_accumulate_rejects_batches_that_do_not_match(
    inputs: Iterable[Tensor], responses: Iterable[Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        accumulate(inputs, responses)


def test_statistics_reject_responses_of_another_size(model: SmallNet, images: Tensor) -> None:
    positions = PatchSampler(10, 3).positions(64)
    with pytest.raises(ValueError, match="expected 30 rows of responses, got 31"):
        collect_statistics(model, "conv1", [images], positions, torch.ones(31, 3))
