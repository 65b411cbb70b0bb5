"""Sufficient statistics against products of explicit rows, in both forms."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress_env.pruning.channels import statistics as statistics_module
from compress_env.pruning.channels.patches import PatchSampler, sample_patches, sample_responses
from compress_env.pruning.channels.statistics import (
    GramStatistics,
    LayerStatistics,
    RowStatistics,
    collect_responses,
    collect_statistics,
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
    expected = sample_responses(layer(images).detach(), layer, positions["0"])
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
    assert isinstance(statistics, GramStatistics if n_inputs <= len(x) else RowStatistics)
    assert statistics.n_rows == sum(sizes)
    assert statistics.shape == (n_outputs, n_inputs)
    assert statistics.gram.dtype == statistics.cross.dtype == torch.float64
    torch.testing.assert_close(statistics.gram, x.double().T @ x.double())
    torch.testing.assert_close(statistics.cross, x.double().T @ y.double())


def test_sums_of_a_wide_layer_are_exactly_symmetric() -> None:
    x = torch.randn(700, 611, generator=torch.Generator().manual_seed(0))
    statistics = statistics_of_rows(x, x[:, :3], [300, 300, 100])
    assert torch.equal(statistics.gram, statistics.gram.T)
    torch.testing.assert_close(statistics.gram, x.double().T @ x.double())
    torch.testing.assert_close(statistics.cross, x.double().T @ x[:, :3].double())


@pytest.mark.parametrize("chunk", [1, 70, 2**22], ids=["a row", "some rows", "all rows"])
def test_both_forms_read_the_same(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(statistics_module, "_CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 20, generator=generator)
    y = torch.randn(9, 4, generator=generator)
    rows = RowStatistics(x, y)
    sums = GramStatistics(x.double().T @ x.double(), x.double().T @ y.double(), 9)
    assert rows.n_rows == sums.n_rows and rows.shape == sums.shape == (4, 20)
    torch.testing.assert_close(rows.input_energy, sums.input_energy)
    some, other = torch.tensor([7, 0, 19]), slice(5, 12)
    torch.testing.assert_close(rows.gram_block(some, other), sums.gram_block(some, other))
    torch.testing.assert_close(rows.gram_block(some, some), sums.gram_block(some, some))
    torch.testing.assert_close(rows.cross_rows(some), sums.cross_rows(some))
    part = x[:, some].double()
    torch.testing.assert_close(rows.row_gram(some), part @ part.T)


def test_rows_are_kept_evenly_spaced_within_the_memory_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(statistics_module, "_MAX_ROW_BYTES", 4 * 16 * 4 + 3)
    for sizes in ([10], [1, 2, 3, 4]):
        statistics = statistics_of_rows(x, 2 * x[:, :3], sizes)
        assert isinstance(statistics, RowStatistics)
        assert torch.equal(statistics.inputs, x[[0, 2, 5, 7]])
        assert torch.equal(statistics.responses, 2 * x[[0, 2, 5, 7], :3])


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
