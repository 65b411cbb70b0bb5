"""Which networks are the same task: all that they call or hold counts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from time import process_time
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from compress_env.store.digests import Code, digest
from tests.compress_env.store.names import Dropping, alike, name_of
from tests.fakes import PlainNet, seeded


class OtherDropping(Dropping):
    def forward(self, images: Tensor) -> Tensor:
        hidden = self.drop(torch.relu(self.conv(images)).mean((2, 3)), self.rate, self.training)
        return self.head(hidden * 0.5 if self.training else hidden)  # type: ignore[no-any-return]


def my_dropout(inputs: Tensor, rate: float, training: bool) -> Tensor:
    return functional.dropout(inputs, rate, training)


@pytest.mark.parametrize(
    "other",
    [
        lambda: Dropping(0.5),
        lambda: Dropping(0.1, functional.alpha_dropout),
        lambda: Dropping(0.1, my_dropout),
        lambda: OtherDropping(0.1),
    ],
    ids=["another number", "another function", "own function", "other code"],
)
def test_what_shows_only_in_training_makes_another_task(other: Callable[[], nn.Module]) -> None:
    first, second = alike(lambda: Dropping(0.1)), alike(other)
    image = torch.ones(1, 1, 8, 8)
    assert torch.equal(first.eval()(image), second.eval()(image))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert name_of(first) == name_of(alike(lambda: Dropping(0.1)))
    assert name_of(first) != name_of(second)


Forward = Callable[..., Any]


def dropping(rate: float) -> Forward:
    return lambda module, given, out: functional.dropout(out, rate, module.training)


def scaling(by: float) -> Forward:
    return lambda module, *gradients: tuple(g if g is None else g * by for g in gradients[0])


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Doubled(Halved):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def forward_and_drop(conv: nn.Conv2d, images: Tensor) -> Tensor:
    return functional.dropout(nn.Conv2d.forward(conv, images), 0.9, conv.training)


def forward_of_its_own(model: nn.Module) -> None:
    conv = model.get_submodule("conv2")
    conv.forward = MethodType(forward_and_drop, conv)  # of each copy its own


def training_of_its_own(model: nn.Module) -> None:
    conv = model.get_submodule("conv2")
    conv.train = lambda mode=True: conv  # type: ignore[method-assign]


def with_buffer(model: nn.Module, value: float) -> None:
    model.get_submodule("conv2").register_buffer("mask", torch.tensor(value), persistent=False)


def hidden_from_state_dict(model: nn.Module, by: float) -> None:
    register: Callable[..., Any] = model.register_state_dict_post_hook
    register(lambda m, state, *_: state.__delitem__("fc1.bias"))
    with torch.no_grad():
        # Without a mark on the logits: the next layer does not read these.
        model.get_parameter("fc2.weight").zero_()
        model.get_parameter("fc1.bias").add_(by)


def hook(name: str, what: Forward, **options: Any) -> Callable[[nn.Module], object]:
    return lambda model: getattr(model.get_submodule("conv2"), f"register_{name}")(what, **options)


def attribute_of_function(rate: float) -> Forward:
    def drop(module: nn.Module, given: Any, out: Tensor) -> Tensor:
        return functional.dropout(out, drop.rate, module.training)  # type: ignore[attr-defined]

    drop.rate = rate  # type: ignore[attr-defined]
    return drop


def nothing(*_: Any) -> None:
    pass


VARIANTS: dict[str, Callable[[nn.Module], object]] = {
    "none": lambda model: None,
    "forward": hook("forward_hook", dropping(0.9)),
    "forward, another rate": hook("forward_hook", dropping(0.5)),
    "rate of a function": hook("forward_hook", attribute_of_function(0.9)),
    "another rate of a function": hook("forward_hook", attribute_of_function(0.5)),
    "no effect": hook("forward_hook", nothing),
    "of another module": lambda model: model.get_submodule("conv1").register_forward_hook(nothing),
    "of the network": lambda model: model.register_forward_hook(nothing),
    "with keywords": hook("forward_hook", nothing, with_kwargs=True),
    "always called": hook("forward_hook", nothing, always_call=True),
    "before forward": hook("forward_pre_hook", nothing),
    "before forward, with keywords": hook("forward_pre_hook", nothing, with_kwargs=True),
    "backward": hook("full_backward_hook", scaling(0.5)),
    "backward, another factor": hook("full_backward_hook", scaling(2.0)),
    "old backward": hook("backward_hook", scaling(0.5)),
    "before backward": hook("full_backward_pre_hook", scaling(0.5)),
    "forward of its own": forward_of_its_own,
    "training of its own": training_of_its_own,
    "parametrized": lambda m: parametrize.register_parametrization(
        m.get_submodule("conv2"), "weight", Halved()
    ),
    "parametrized otherwise": lambda m: parametrize.register_parametrization(
        m.get_submodule("conv2"), "weight", Doubled()
    ),
    "buffer": lambda model: with_buffer(model, 1.0),
    "another buffer": lambda model: with_buffer(model, 2.0),
    "hidden": lambda model: hidden_from_state_dict(model, 0.0),
    "hidden, another value": lambda model: hidden_from_state_dict(model, 0.1),
    "memory format": lambda model: model.to(memory_format=torch.channels_last),
}


def variant(name: str) -> nn.Module:
    model = seeded(PlainNet)
    VARIANTS[name](model)
    return model


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
def test_all_that_a_network_calls_or_holds_counts() -> None:
    names = {name: name_of(variant(name)) for name in VARIANTS}
    assert len(set(names.values())) == len(names)
    for name in ("forward", "backward", "rate of a function", "parametrized", "buffer", "hidden"):
        assert name_of(variant(name)) == names[name], name


class Pair(nn.Module):
    """Two layers in a row that may be one, or have one weight."""

    def __init__(self, share: str) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 64)
        self.second.load_state_dict(self.first.state_dict())
        self.head = nn.Linear(64, 3)
        if share == "module":
            self.second = self.first
        elif share == "parameter":
            self.second.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images.flatten(1))))  # type: ignore[no-any-return]


def test_weights_that_are_one_differ_from_equal_ones() -> None:
    shares = ("nothing", "module", "parameter")
    networks = [alike(lambda share=share: Pair(share)) for share in shares]  # type: ignore[misc]
    image = torch.ones(1, 1, 8, 8)
    assert all(torch.equal(net(image), networks[0](image)) for net in networks)
    names = [name_of(network) for network in networks]
    assert len(set(names)) == len(names)
    assert names == [name_of(copy.deepcopy(network)) for network in networks]


@pytest.mark.parametrize("kind", ["hook", "post_accumulate_grad_hook"])
def test_hooks_of_parameters_are_refused_as_copies_lose_them(kind: str) -> None:
    model = seeded(PlainNet)
    getattr(model.get_parameter("conv2.bias"), f"register_{kind}")(nothing)
    with pytest.raises(ValueError, match=r"parameter 'conv2\.bias' has a hook"):
        name_of(model)


def test_a_patched_class_of_a_library_makes_another_task(monkeypatch: pytest.MonkeyPatch) -> None:
    before = name_of()
    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: forward(self, x))
    assert name_of() != before


def test_hooks_that_refer_to_the_whole_network_are_described_in_no_time() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(30)), nn.Flatten(), nn.Linear(64, 3))
    everything = list(model)
    for layer in everything:
        layer.neighbours = [x for x in everything if x is not layer]  # type: ignore[assignment]
        layer.register_forward_hook(lambda m, given, out: out + len(everything))
    start = process_time()
    assert len(digest(Code([list(model), [m._forward_hooks for m in model]]))) == 64
    assert process_time() - start < 2.0
