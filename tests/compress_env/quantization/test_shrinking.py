"""Loading a pruned network's state into the architecture that it was pruned from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress_env.quantization.shrinking import load_into
from tests.compress_env.quantization.fakes import DepthwiseNet, quantized_net


def test_load_into_shrinks_the_architecture() -> None:
    small = DepthwiseNet(width=4, hidden=8)
    small(torch.randn(4, 3, 8, 8))
    model = DepthwiseNet()
    model.conv.weight.requires_grad_(False)
    load_into(model, small.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.eval()(images), small.eval()(images))
    assert (model.conv.out_channels, model.norm.num_features) == (4, 4)
    depthwise = model.depthwise
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (4, 8, 4)
    assert (model.bare_norm.num_features, model.head.in_features) == (8, 8)
    assert not model.conv.weight.requires_grad and model.head.weight.requires_grad


def test_load_into_keeps_the_groups_of_grouped_convolutions() -> None:
    model = nn.Conv2d(8, 8, 3, groups=2)
    small = nn.Conv2d(4, 6, 3, groups=2)
    load_into(model, small.state_dict())
    assert (model.in_channels, model.out_channels, model.groups) == (4, 6, 2)
    images = torch.randn(1, 4, 5, 5)
    assert torch.equal(model(images), small(images))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("conv.weight", (7, 3, 3, 3), r"conv\.weight: .*\(6, 3, 3, 3\).*got \(7, 3, 3, 3\)"),
        ("conv.weight", (6, 3, 5, 5), r"conv\.weight: "),
        ("conv.weight", (6, 3, 3), r"conv\.weight: "),
        ("conv.bias", (5,), r"conv\.(weight|bias): "),
        ("norm.running_mean", (5,), r"norm\.\w+: "),
        ("norm.num_batches_tracked", (1,), r"norm\.\w+: "),
        ("depthwise.weight", (7, 1, 3, 3), r"depthwise\.weight: "),
        ("depthwise.weight", (0, 1, 3, 3), r"depthwise\.weight: "),
        ("head.extra", (1,), "has, but the model does not, 'head.extra'"),
    ],
    ids=["wider", "kernel", "rank", "bias", "norm", "scalar", "groups", "empty", "left over"],
)
def test_load_into_names_what_does_not_fit(name: str, shape: tuple[int, ...], message: str) -> None:
    model = DepthwiseNet()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state = {**DepthwiseNet().state_dict(), name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=message):
        load_into(model, state)
    after = model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_load_into_takes_the_state_of_a_quantized_model() -> None:
    model, other = quantized_net((2, 3, 4)), quantized_net((2, 3, 4))
    nn.init.zeros_(model.norm.weight)
    load_into(model, other.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(images), other(images))


def test_load_into_names_what_is_missing() -> None:
    state = DepthwiseNet().state_dict()
    del state["head.bias"]
    with pytest.raises(ValueError, match=r"lacks 'head\.bias'"):
        load_into(DepthwiseNet(), state)


def test_load_into_shrinks_prelu() -> None:
    model, small = (
        nn.Sequential(nn.Linear(3, 5), nn.PReLU(5)),
        nn.Sequential(nn.Linear(3, 2), nn.PReLU(2)),
    )
    load_into(model, small.state_dict())
    inputs = torch.randn(4, 3)
    assert torch.equal(model(inputs), small(inputs))
    assert isinstance(model[1], nn.PReLU) and model[1].num_parameters == 2


def test_load_into_gives_values_to_a_network_without_any() -> None:
    with torch.device("meta"):
        model = DepthwiseNet()
    small = DepthwiseNet(width=4, hidden=8)
    model.conv.weight.requires_grad_(False)
    load_into(model, small.state_dict(), assign=True)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.eval()(images), small.eval()(images))
    assert not model.conv.weight.requires_grad and model.head.weight.requires_grad
