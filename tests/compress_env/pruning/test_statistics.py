"""Sampled rows and sufficient statistics against a full unfold."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress_env.pruning.statistics import (
    LayerStatistics,
    PatchSampler,
    collect_responses,
    collect_statistics,
    sample_patches,
    sample_responses,
)

N_OUTPUTS = {"conv1": 64, "conv2": 9, "fc1": 1, "fc2": 1}  # of SmallNet, per image
NAMES = list(N_OUTPUTS)


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


def draw_positions(n_positions: int) -> dict[str, Tensor]:
    """Positions of every layer of SmallNet for ten images."""
    sampler = PatchSampler(10, n_positions)
    return {name: sampler.positions(n_outputs) for name, n_outputs in N_OUTPUTS.items()}


def rows_by_hook(model: SmallNet, name: str, images: Tensor, positions: Tensor) -> Tensor:
    """The sampled inputs of a layer in one complete evaluation pass over a copy of the model."""
    model = copy.deepcopy(model).eval()
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(images)
    return sample_patches(seen[0], layer, positions)


def statistics_of_rows(x: Tensor, y: Tensor, sizes: list[int]) -> LayerStatistics:
    """What is collected from a layer that is fed explicit rows, in batches of some sizes."""
    positions = torch.zeros(len(x), 1, dtype=torch.int64)
    model = nn.Sequential(nn.Linear(x.shape[1], 1))
    return collect_statistics(model, "0", torch.split(x, sizes), positions, y)


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


@pytest.mark.parametrize("name", NAMES)
def test_collected_inputs_and_responses_belong_together(
    model: SmallNet, images: Tensor, name: str
) -> None:
    positions = draw_positions(4)
    responses = collect_responses(model, NAMES, [images], positions)[name]
    statistics = collect_statistics(model, name, torch.split(images, 4), positions[name], responses)
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    inputs = rows_by_hook(model, name, images, positions[name])
    torch.testing.assert_close(inputs @ weight.detach().flatten(1).T, responses)
    x, y = inputs.double(), responses.double()
    assert statistics.n_rows == len(x)
    torch.testing.assert_close(statistics.gram, x.T @ x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(statistics.cross, x.T @ y, rtol=1e-5, atol=1e-5)


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
    positions = draw_positions(2)
    responses = collect_responses(model, ["fc1"], [images], positions)["fc1"]
    statistics = collect_statistics(model, "fc1", [images], positions["fc1"], responses)
    assert not any(t.requires_grad for t in (responses, statistics.gram, statistics.cross))
    assert model.training and model.norm.training and not model.drop.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.fc1._forward_pre_hooks and not model.fc1._forward_hooks


def test_the_forward_pass_ends_at_the_last_layer_asked_for(model: SmallNet, images: Tensor) -> None:
    positions = draw_positions(2)
    responses = collect_responses(model, NAMES, [images], positions)
    collect_statistics(model, "fc2", [images], positions["fc2"], responses["fc2"])
    assert model.n_completed == 0


def test_an_error_of_the_model_itself_is_not_swallowed(model: SmallNet) -> None:
    images, positions = torch.ones(1, 2, 8, 8), torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(RuntimeError):
        collect_statistics(model, "fc1", [images], positions, torch.ones(1, 6))
    with pytest.raises(RuntimeError):
        collect_responses(model, ["fc1"], [images], {"fc1": positions})
    assert not model.fc1._forward_pre_hooks and not model.fc1._forward_hooks


@pytest.mark.parametrize(
    ("name", "n_images", "message"),
    [
        ("conv9", 10, "expected a Conv2d or Linear at 'conv9', got nothing"),
        ("norm", 10, "got BatchNorm2d"),
        ("spare", 10, r"did not reach \['spare'\]"),
        ("fc1", 11, "expected 11 images in the batches, got 10"),
        ("fc1", 9, "positions for 10 images, got them for 9"),
    ],
    ids=["unknown", "other kind", "unused", "too few images", "too many images"],
)
def test_collecting_names_what_is_wrong(
    model: SmallNet, images: Tensor, name: str, n_images: int, message: str
) -> None:
    model.add_module("spare", nn.Linear(1, 1))
    positions = torch.zeros(n_images, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        collect_statistics(model, name, [images], positions, torch.ones(n_images, 6))
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
    statistics = statistics_of_rows(x, y, sizes)
    assert statistics.n_rows == sum(sizes)
    assert statistics.gram.dtype == statistics.cross.dtype == torch.float64
    torch.testing.assert_close(statistics.gram, x.double().T @ x.double())
    torch.testing.assert_close(statistics.cross, x.double().T @ y.double())


def test_statistics_pick_the_live_output_channels(model: SmallNet, images: Tensor) -> None:
    positions = draw_positions(3)
    responses = collect_responses(model, ["conv2"], [images], positions)["conv2"]
    live = torch.tensor([0, 2])
    batches = torch.split(images, 3)
    statistics = collect_statistics(model, "conv2", batches, positions["conv2"], responses, live)
    rows = rows_by_hook(model, "conv2", images, positions["conv2"])
    expected = statistics_of_rows(rows, responses[:, live], [30])
    assert statistics.n_rows == expected.n_rows == 30
    torch.testing.assert_close(statistics.gram, expected.gram)
    torch.testing.assert_close(statistics.cross, expected.cross)


@pytest.mark.parametrize(
    ("n_images", "n_rows", "message"),
    [
        (10, 31, "expected 30 rows of responses, got 31"),
        (10, 29, "expected 30 rows of responses, got 29"),
        (0, 30, "expected 10 images in the batches, got 0"),
    ],
    ids=["too many rows", "too few rows", "no batch"],
)
def test_statistics_reject_responses_and_images_that_do_not_match(
    model: SmallNet, images: Tensor, n_images: int, n_rows: int, message: str
) -> None:
    positions = PatchSampler(10, 3).positions(64)
    batches = torch.split(images[:n_images], 4) if n_images else []
    with pytest.raises(ValueError, match=message):
        collect_statistics(model, "conv1", batches, positions, torch.ones(n_rows, 3))


def test_statistics_reject_an_empty_draw(model: SmallNet) -> None:
    positions = torch.zeros(0, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least one position"):
        collect_statistics(model, "conv1", [], positions, torch.ones(0, 3))
