"""Channels are followed through whatever a forward pass does, and stay where that is not known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress_env.pruning.graph.surgery import Walk, find_walk
from tests.fakes import PlainNet, seeded

IMAGE = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Between = Callable[[Tensor], Tensor]


class Sandwich(nn.Module):
    """Two convolutions of 4 and 6 channels, something in between, and a linear layer."""

    def __init__(self, n_read: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(n_read, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(self.between(self.first(x))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    def between(self, x: Tensor) -> Tensor:
        return x


class Filled(Sandwich):
    """Calls a function in between."""

    def __init__(self, function: Between, n_read: int = 4) -> None:
        super().__init__(n_read)
        self.function = function

    def between(self, x: Tensor) -> Tensor:
        return self.function(x)


def _walk(between: Between, n_read: int = 4) -> Walk:
    return find_walk(seeded(lambda: Filled(between, n_read)), IMAGE)


def _sizes(walk: Walk) -> dict[str, list[int]]:
    return {d.layer.name: [g.n_channels for g in d.groups] for d in walk.decisions}


PER_CHANNEL: dict[str, Between] = {
    "activation": lambda x: F.hardswish(F.silu(F.gelu(x)), inplace=True),
    "pooling": lambda x: F.interpolate(F.avg_pool2d(F.max_pool2d(x, 2), 2), scale_factor=4),
    "adaptive pooling": lambda x: F.adaptive_avg_pool2d(x, 4),
    "border": lambda x: F.pad(x, (1, 1, 2, 2)),
    "every other pixel": lambda x: x[:, :, ::2, ::2],
    "channels last": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "excitation": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "norm of each plane": lambda x: x / (1 + x.std((2, 3), keepdim=True)),
    "attention to pixels": lambda x: x * x.flatten(2).softmax(-1).view_as(x),
    "in place": lambda x: x.add_(x).mul_(0.5).clamp_(min=0),
    "flat and back": lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(*x.shape),
    "condition": lambda x: torch.where(x > 0, x, 0.1 * x).masked_fill(x > 2, 2.0),
    "like itself": lambda x: x + torch.zeros_like(x) + torch.ones(1, 1, 8, 8),
}


@pytest.mark.parametrize("between", PER_CHANNEL.values(), ids=PER_CHANNEL)
def test_what_each_channel_goes_through_by_itself_does_no_harm(between: Between) -> None:
    walk = _walk(between)
    assert _sizes(walk) == {"second": [4], "head": [6]}
    assert walk.skipped == {}


MIXED: dict[str, tuple[Between, str]] = {
    "softmax": (lambda x: x.softmax(1), "are mixed by 'softmax' in the network"),
    "norm": (lambda x: F.layer_norm(x, x.shape[1:]), "are mixed by 'native_layer_norm'"),
    "groups": (lambda x: F.group_norm(x, 2), "are mixed by 'native_group_norm'"),
    "mean": (lambda x: x - x.mean(1, keepdim=True), "are mixed by 'mean'"),
    "maximum": (lambda x: x / (1 + x.max(1, keepdim=True).values.abs()), "are mixed by 'max'"),
    "product": (lambda x: torch.einsum("bchw,cd->bdhw", x, torch.eye(4)), "are mixed by 'bmm'"),
    "shuffle": (
        lambda x: x.reshape(-1, 2, 2, 8, 8).transpose(1, 2).reshape(-1, 4, 8, 8),
        "are divided up by 'view'",
    ),
    "native shuffle": (lambda x: F.channel_shuffle(x, 2), "are mixed by"),
    "roll": (lambda x: x.roll(1, 1), "are mixed by 'roll'"),
    "part": (lambda x: torch.cat([x[:, :2] * 2, x[:, 2:]], 1), "are divided up by 'slice'"),
    "halves": (lambda x: torch.cat([y * 2 for y in x.chunk(2, 1)], 1), "divided up by 'split'"),
    "one each": (lambda x: torch.stack(x.unbind(1), 1), "are divided up by 'unbind'"),
    "constant": (
        lambda x: x * torch.arange(4.0).reshape(1, 4, 1, 1),
        "are combined with a constant by 'mul'",
    ),
    "buffer": (lambda x: torch.zeros(len(x), 4, 8, 8).add_(x), "are combined with a constant"),
}


@pytest.mark.parametrize(("between", "reason"), MIXED.values(), ids=MIXED)
def test_what_mixes_or_numbers_channels_ties_them_down(between: Between, reason: str) -> None:
    walk = _walk(between)
    assert _sizes(walk) == {"head": [6]}
    assert walk.skipped.keys() == {"second"}
    assert reason in walk.skipped["second"]


@pytest.mark.parametrize(
    "between",
    [
        lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)),
        lambda x: torch.cat([x, torch.zeros(len(x), 4, 8, 8)], 1),
    ],
    ids=["pad", "cat"],
)
def test_channels_of_constants_tie_down_the_others(between: Between) -> None:
    walk = _walk(between, n_read=8)
    assert _sizes(walk) == {"head": [6]}
    assert "are filled up with constants" in walk.skipped["second"]


def test_a_map_for_all_channels_stays_and_they_go() -> None:
    class Spatial(Sandwich):
        """Weights the pixels by a map that one convolution computes of all channels."""

        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Conv2d(4, 1, 1)

        def between(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.map(x)) * x

    walk = find_walk(seeded(Spatial), IMAGE)
    assert _sizes(walk) == {"map": [4], "head": [6]}
    assert walk.skipped == {}


def test_layers_may_be_called_by_keyword() -> None:
    class Keyword(Sandwich):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.second(input=torch.relu(self.first(input=x))))
            return self.head(input=x.mean((2, 3)))  # type: ignore[no-any-return]

    walk = find_walk(seeded(Keyword), IMAGE)
    assert _sizes(walk) == {"second": [4], "head": [6]}


def test_repeated_channels_go_together() -> None:
    walk = _walk(lambda x: x.repeat(1, 2, 1, 1), n_read=8)
    assert _sizes(walk) == {"second": [4], "head": [6]}
    [group] = walk.decisions[0].groups
    assert group.columns("second").tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_flattened_channels_are_found_in_either_order() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, stride=4, padding=1)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).permute(0, 2, 3, 1)
            return self.head(x.flatten(1))  # type: ignore[no-any-return]

    [decision] = find_walk(seeded(Flat), IMAGE).decisions
    assert decision.groups[0].columns("head")[1].tolist() == [1, 5, 9, 13]


# Layers that must stay as they are.


class Shared(Sandwich):
    """Two layers that hold the same parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.fourth = nn.Conv2d(4, 4, 3, padding=1)
        self.fourth.weight = self.third.weight

    def between(self, x: Tensor) -> Tensor:
        return self.fourth(torch.relu(self.third(x)))  # type: ignore[no-any-return]


class Reused(Sandwich):
    """Uses the weights of a layer once more, outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Conv2d(4, 4, 1)

    def between(self, x: Tensor) -> Tensor:
        return F.conv2d(self.middle(x), self.middle.weight)


class Normed(Sandwich):
    """A layer whose weight is computed from two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.utils.parametrizations.weight_norm(self.head)


class Scaled(Sandwich):
    """Scales each channel by a parameter that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def between(self, x: Tensor) -> Tensor:
        return x * self.scale


class Multiplied(Sandwich):
    """A grouped convolution with two outputs for each input."""

    def __init__(self) -> None:
        super().__init__(n_read=8)
        self.middle = nn.Conv2d(4, 8, 3, padding=1, groups=4)

    def between(self, x: Tensor) -> Tensor:
        return self.middle(x)  # type: ignore[no-any-return]


class Gate(nn.Linear):
    """A linear layer whose forward pass takes two tensors."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * gate


class Gated(Sandwich):
    """Calls a layer with two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = Gate(8, 8)

    def between(self, x: Tensor) -> Tensor:
        return self.middle(x, x[..., :1])  # type: ignore[no-any-return]


class OfPixels(Sandwich):
    """A linear layer that reads rows of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(8, 8)

    def between(self, x: Tensor) -> Tensor:
        return self.middle(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("build", "decided", "reasons"),
    [
        (Shared, {"head": [6]}, {"third": "'third' shares weights with 'fourth'"}),
        (Reused, {"head": [6]}, {"middle": "weights of layer 'middle' are also used outside"}),
        (Normed, {"second": [4]}, {"head": "the weight of layer 'head' is computed, not stored"}),
        (Scaled, {"head": [6]}, {"second": "the bare parameter 'scale'"}),
        (Multiplied, {"head": [6]}, {"middle": "'middle' is a grouped convolution"}),
        (Gated, {"head": [6]}, {"second": "'middle' does not map one tensor to one tensor"}),
        (OfPixels, {"head": [6]}, {"middle": "takes its input channels for something else"}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_layers_that_must_stay_are_named(
    build: type[nn.Module], decided: dict[str, list[int]], reasons: dict[str, str]
) -> None:
    walk = find_walk(seeded(build), IMAGE)
    assert _sizes(walk) == decided
    for name, reason in reasons.items():
        assert reason in walk.skipped[name]


class Careless(Sandwich):
    """Goes another way when the image is dark."""

    def between(self, x: Tensor) -> Tensor:
        return x * 2 if x.mean() > 0 else x


def test_a_forward_pass_that_depends_on_values_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data-dependent control flow.*cannot be pruned"):
        find_walk(seeded(Careless), IMAGE)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_script_is_refused() -> None:
    script = torch.jit.script(seeded(PlainNet))
    with pytest.raises(ValueError, match=r"TorchScript: give the module that it was made from"):
        find_walk(script, IMAGE)


def test_channels_last_in_memory_make_no_difference() -> None:
    class Pooled(Sandwich):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.second(self.first(x)))
            return self.head(self.pool(x).flatten(1))  # type: ignore[no-any-return]

    model = seeded(Pooled).to(memory_format=torch.channels_last)
    walk = find_walk(model, IMAGE.to(memory_format=torch.channels_last))
    assert _sizes(walk) == {"second": [4], "head": [6]}


def test_a_lazy_network_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"'3\.weight' of the network has no values yet"):
        find_walk(model, IMAGE)


def test_attention_stays_and_what_is_around_it_goes() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 8, 4, stride=4)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.norm = nn.LayerNorm(8)
            self.wide = nn.Linear(8, 16)
            self.narrow = nn.Linear(16, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).flatten(2).transpose(1, 2)
            x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
            x = x + self.narrow(torch.relu(self.wide(x)))
            return self.head(x.mean(1))  # type: ignore[no-any-return]

    walk = find_walk(seeded(Attention), IMAGE)
    assert _sizes(walk) == {"narrow": [16]}
    assert set(walk.skipped) == {"wide", "head"}
    assert "'norm' (LayerNorm)" in walk.skipped["wide"]


def test_a_module_under_two_names_is_one_layer() -> None:
    class Alias(Sandwich):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(self.first, nn.ReLU())

    assert _sizes(find_walk(seeded(Alias), IMAGE)) == {"second": [4], "head": [6]}


def test_batch_norm_on_flat_features_loses_the_places_of_a_channel() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=4, padding=1),
        nn.Flatten(),
        nn.BatchNorm1d(16),
        nn.PReLU(16),
        nn.PReLU(),
        nn.Linear(16, 3),
    )
    [decision] = find_walk(seeded(lambda: model), IMAGE).decisions
    sides = {m.module: m.positions.shape for m in decision.groups[0].members}
    assert sides == {"0": (4, 1), "2": (4, 4), "3": (4, 4), "5": (4, 4)}
