"""Channels are removed from everything they touch, and only what is safe is touched."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress_env.networks.models import build_model
from compress_env.pruning.graph.surgery import LiveChannels, find_walk, zero_channels
from tests.fakes import BranchedNet, PlainNet, ShapedNet, seeded

IMAGE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class TwiceNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.fc1 = nn.Linear(4, 6)
        self.fc2 = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(torch.relu(self.again(torch.relu(self.stem(x)))))
        return self.fc2(torch.relu(self.fc1(x.mean((2, 3)))))  # type: ignore[no-any-return]


class GroupedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.merge = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.merge(torch.relu(self.grouped(torch.relu(self.stem(x)))))
        return self.head(torch.relu(x).mean((2, 3)))  # type: ignore[no-any-return]


class SoftmaxNet(nn.Module):
    """Normalises over channels, so that a channel counts even if no layer reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.next = nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.next(torch.softmax(self.stem(x), 1)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class UpsampledNet(nn.Module):
    """A transposed convolution is first to read the second convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.next = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(torch.relu(self.next(torch.relu(self.stem(x)))))
        return x.mean((2, 3))


class HalfSafeNet(nn.Module):
    """Concatenates a branch that insists on its width and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 4, 3, padding=1)
        self.right = nn.Conv2d(1, 4, 3, padding=1)
        self.merge = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x)
        left = left / left.softmax(1).amax(1, keepdim=True)
        return self.merge(torch.cat([left, self.right(x)], 1)).mean((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_pruned_equals_zeroed(build: type[nn.Module], seed: int) -> None:
    model = seeded(build)
    walk = find_walk(model, IMAGE)
    pruned, zeroed = copy.deepcopy(model), copy.deepcopy(model)
    live, rng = LiveChannels(pruned), np.random.default_rng(seed)
    for decision in walk.decisions:
        for group in decision.groups:
            gone = rng.permutation(group.n_channels)[: rng.integers(group.n_channels)]
            live.remove(group, gone)
            zero_channels(zeroed, group, gone.tolist())
    with torch.no_grad():
        torch.testing.assert_close(pruned(IMAGE), zeroed(IMAGE), atol=1e-5, rtol=0)


def test_walk_of_a_chain_is_every_layer_but_the_first() -> None:
    walk = find_walk(build_model("lenet5", 10, (1, 28, 28)), torch.zeros(1, 1, 28, 28))
    assert [d.layer.in_channels for d in walk.decisions] == [6, 400, 120, 84]
    assert [d.n_channels for d in walk.decisions] == [6, 16, 120, 84]
    assert walk.skipped == {}


def test_walk_decides_each_group_once_at_its_first_reader() -> None:
    walk = find_walk(seeded(BranchedNet), IMAGE)
    decided = {d.layer.name: [g.n_channels for g in d.groups] for d in walk.decisions}
    # block1.0 is first to read the residual stream, merge reads a concatenation of two groups
    assert decided == {"block1.0": [8], "block2": [6], "merge": [5, 4], "head": [7]}
    stream = walk.decisions[0].groups[0]
    members = {(m.module, m.side) for m in stream.members}
    assert members == {
        ("stem.0", "out"),
        ("stem.1", "out"),
        ("block1.0", "in"),
        ("block2", "out"),
        ("depthwise", "out"),
        ("left", "in"),
        ("right.0", "in"),
    }
    right = walk.decisions[2].groups[1]
    assert right.columns("merge").ravel().tolist() == [5, 6, 7, 8]


def test_flattened_channels_own_their_places() -> None:
    walk = find_walk(seeded(PlainNet), IMAGE)
    group = walk.decisions[1].groups[0]
    np.testing.assert_array_equal(group.columns("fc1"), np.arange(24).reshape(6, 4))


def test_removal_updates_what_is_left() -> None:
    model = seeded(BranchedNet)
    walk = find_walk(model, IMAGE)
    live = LiveChannels(model)
    left, right = walk.decisions[2].groups
    live.remove(left, [1, 3])
    live.remove(right, [0])
    assert live.positions("merge", "in").tolist() == [0, 2, 4, 6, 7, 8]
    assert live.positions("left", "out").tolist() == [0, 2, 4]
    assert model.get_submodule("merge").in_channels == 6


@pytest.mark.parametrize(
    ("build", "layer", "reason"),
    [
        (TwiceNet, "again", "runs more than once"),
        (GroupedNet, "grouped", "is a grouped convolution"),
        (ShapedNet, "conv2", "removing an input channel breaks the network: shape '["),
        (SoftmaxNet, "next", "are mixed by 'softmax' in the network"),
        (UpsampledNet, "up", "ConvTranspose2d, which is neither a Conv2d nor a Linear"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_unsafe_layers_are_skipped_with_the_reason(
    build: type[nn.Module], layer: str, reason: str
) -> None:
    walk = find_walk(seeded(build), IMAGE)
    assert reason in walk.skipped[layer]
    assert layer not in [d.layer.name for d in walk.decisions]
    assert walk.decisions


def test_channel_that_hides_its_coupling_does_not_mislead_the_check() -> None:
    model = seeded(SoftmaxNet)
    assert isinstance(model, SoftmaxNet)
    with torch.no_grad():
        model.stem.bias[-1] = -1e4  # type: ignore[index]
    assert "next" in find_walk(model, IMAGE).skipped


def test_layer_with_one_unsafe_input_is_pruned_for_the_other() -> None:
    walk = find_walk(seeded(HalfSafeNet), IMAGE)
    assert [[g.n_channels for g in d.groups] for d in walk.decisions] == [[4]]
    assert walk.skipped["merge"].startswith("some of its inputs stay: ")


def test_frozen_parameters_stay_frozen() -> None:
    model = seeded(PlainNet)
    assert isinstance(model, PlainNet)
    model.conv1.requires_grad_(False)
    walk = find_walk(model, IMAGE)
    LiveChannels(model).remove(walk.decisions[0].groups[0], [0])
    assert [p.requires_grad for p in model.conv1.parameters()] == [False, False]
    assert model.conv2.weight.requires_grad


def test_walk_leaves_the_model_alone_and_can_be_pickled() -> None:
    model = seeded(BranchedNet)
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    walk = pickle.loads(pickle.dumps(find_walk(model, IMAGE)))
    assert len(walk.decisions) == 4
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_network_without_hidden_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="no prunable layer"):
        find_walk(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), IMAGE)


def test_a_deep_network_without_prunable_layers_is_refused_in_a_short_line() -> None:
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1)]
    for _ in range(60):
        layers += [nn.Softmax(1), nn.Conv2d(4, 4, 3, padding=1)]
    model = nn.Sequential(*layers, nn.Softmax(1), nn.Flatten(), nn.Linear(256, 3))
    with pytest.raises(
        ValueError, match=r"no prunable layer \(2: .*'softmax'.*; and 58 more\)"
    ) as e:
        find_walk(model.eval(), IMAGE)
    assert len(str(e.value)) < 600


def test_a_long_message_of_a_network_that_breaks_is_cut_short() -> None:
    class Talkative(PlainNet):
        def forward(self, images: Tensor) -> Tensor:
            if self.conv1.out_channels < 4:
                raise RuntimeError("too narrow " * 1000)
            return super().forward(images)

    assert len(find_walk(seeded(Talkative), IMAGE).skipped["conv2"]) < 300
