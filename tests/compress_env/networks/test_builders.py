"""Tests of the networks that are built here: their sizes, and what images they take."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compress_env.networks.models import MODELS, build_model
from compress_env.networks.resnet import BasicBlock, resnet
from compress_env.pruning.graph.surgery import LiveChannels, find_walk, zero_channels
from tests.fakes import slow_but

PARAMETERS = {  # for three channels and ten classes
    "lenet5": 61_706 + 2 * 150,
    "cnn4": 32 * 27 + 32 + 64 * 288 + 64 + 128 * 4096 + 128 + 1290,
    "lenet5_softplus": 61_706 + 2 * 150,
    "cnn4_softplus": 32 * 27 + 32 + 64 * 288 + 64 + 128 * 4096 + 128 + 1290,
    "alexnet_small": 16 * 28
    + 40 * 145
    + 64 * 361
    + 64 * 577
    + 48 * 577
    + 256 * 769
    + 128 * 257
    + 1290,
    "vgg8": 146_938,
    "vgg16": 14_724_042,
    "vgg19": 20_035_018,
    "resnet18_cifar": 11_173_962,
    "resnet20": 272_474,
    "resnet56": 855_770,
    "resnet110": 1_730_714,
    "resnet20_padded": 269_722,
    "resnet56_padded": 853_018,
    "resnet110_padded": 1_727_962,
    "mobilenet_v1": 4_231_976 - 990 * 1025,
    "mobilenet_v2_narrow": 45_250,
    "mobilenet_v2_cifar": 2_236_682,
    "densenet_small": 46_650,
}
LARGE = {"vgg19", "resnet56", "resnet110", "resnet56_padded", "resnet110_padded"}
SMALLEST = {
    "lenet5": 1,
    "lenet5_softplus": 1,
    "cnn4": 4,
    "cnn4_softplus": 4,
    "vgg8": 8,
    "vgg16": 32,
    "vgg19": 32,
    "mobilenet_v1": 16,
    "mobilenet_v2_narrow": 8,
    "mobilenet_v2_cifar": 8,
    "densenet_small": 8,
}


@pytest.mark.parametrize("name", MODELS)
def test_networks_have_the_parameters_that_they_are_known_for(name: str) -> None:
    model = build_model(name, 10, (3, 32, 32))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", slow_but(MODELS.keys() - LARGE, MODELS))
def test_networks_take_the_smallest_image_but_none_smaller(name: str) -> None:
    smallest = SMALLEST.get(name, 8)
    model = build_model(name, 7, (2, smallest, smallest + 1)).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 2, smallest, smallest + 1)).shape == (2, 7)
    if smallest > 1:
        with pytest.raises(ValueError, match=f"at least {smallest}x{smallest}, got"):
            build_model(name, 7, (2, 32, smallest - 1))


@pytest.mark.parametrize("name", slow_but(MODELS.keys() - LARGE, MODELS))
def test_networks_can_be_trained(name: str) -> None:
    model = build_model(name, 3, (1, 32, 32))
    model(torch.randn(2, 1, 32, 32)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["lenet5", "cnn4"])
def test_softplus_stands_where_relu_stood(name: str) -> None:
    relu, softplus = (build_model(each, 10, (1, 28, 28)) for each in (name, f"{name}_softplus"))
    assert not any(isinstance(module, nn.ReLU) for module in softplus.modules())
    for left, right in zip(relu.children(), softplus.children(), strict=True):
        assert isinstance(right, nn.Softplus if isinstance(left, nn.ReLU) else type(left))
    weights = {key: value.shape for key, value in relu.state_dict().items()}
    assert weights == {key: value.shape for key, value in softplus.state_dict().items()}


def test_mobilenet_v1_takes_every_pixel_of_small_images_only() -> None:
    strides = {
        side: next(
            module.stride[0]
            for module in build_model("mobilenet_v1", 10, (3, side, side)).modules()
            if isinstance(module, nn.Conv2d)
        )
        for side in (32, 63, 64, 224)
    }
    assert strides == {32: 1, 63: 1, 64: 2, 224: 2}


@pytest.mark.parametrize("side", [28, 32])
def test_lenet5_has_the_classic_parameters(side: int) -> None:
    model = build_model("lenet5", 10, (1, side, side))
    counts = {
        name: sum(p.numel() for p in layer.parameters())
        for name, layer in model.named_children()
        if list(layer.parameters())
    }
    assert counts == {"conv1": 156, "conv2": 2416, "fc1": 48120, "fc2": 10164, "fc3": 850}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 31, 17), (1, 29, 32), (2, 1, 1)])
def test_lenet5_pads_small_images(shape: tuple[int, int, int]) -> None:
    model = build_model("lenet5", 7, shape)
    assert model(torch.zeros(2, *shape)).shape == (2, 7)
    assert sum(p.numel() for p in model.parameters()) == 61_706 + 150 * (shape[0] - 1) - 3 * 85


def test_lenet5_takes_no_large_images() -> None:
    with pytest.raises(ValueError, match="up to 32x32, got 64x32"):
        build_model("lenet5", 10, (3, 64, 32))


@pytest.mark.parametrize(
    ("shape", "num_classes"), [((3, 32, 32), 10), ((1, 8, 8), 3), ((2, 9, 17), 10)]
)
def test_resnet20_has_the_parameters_of_the_paper_and_its_projections(
    shape: tuple[int, int, int], num_classes: int
) -> None:
    model = build_model("resnet20", num_classes, shape)
    assert model(torch.zeros(2, *shape)).shape == (2, num_classes)
    expected = 272_474 + 9 * 16 * (shape[0] - 3) + 65 * (num_classes - 10)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_every_residual_stream_of_resnet20_can_be_pruned() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("resnet20", 10, (1, 8, 8)).eval()
    walk = find_walk(model, torch.zeros(1, 1, 8, 8))
    assert walk.skipped == {}
    # The three streams, first read by a block's first convolution, and the inside of nine blocks.
    sizes = {d.layer.name: [g.n_channels for g in d.groups] for d in walk.decisions}
    streams = {"stages.0.0.conv1": [16], "stages.1.1.conv1": [32], "stages.2.1.conv1": [64]}
    inside = {
        f"stages.{stage}.{block}.conv2": [16 * 2**stage] for stage in range(3) for block in range(3)
    }
    assert sizes == streams | inside


def test_resnet20_pruned_equals_zeroed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("resnet20", 10, (1, 8, 8)).eval()
    walk = find_walk(model, torch.zeros(1, 1, 8, 8))
    pruned, zeroed = copy.deepcopy(model), copy.deepcopy(model)
    channels = LiveChannels(pruned)
    for decision in walk.decisions:
        for group in decision.groups:
            gone = list(range(0, group.n_channels, 3))
            channels.remove(group, gone)
            zero_channels(zeroed, group, gone)
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(pruned(images), zeroed(images), rtol=1e-4, atol=1e-5)
    n_parameters = sum(p.numel() for p in pruned.parameters())
    assert n_parameters < 0.5 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_resnets_have_certain_depths_only(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"6 n \+ 2.*got {depth}"):
        resnet(10, (3, 32, 32), depth=depth)


def test_a_padded_shortcut_takes_every_other_pixel_and_adds_zeros_on_both_sides() -> None:
    block = BasicBlock(2, 4, stride=2, shortcut="padding")
    stream = torch.arange(1.0, 33.0).reshape(1, 2, 4, 4)
    widened = block.shortcut(stream)
    assert not list(block.shortcut.parameters())
    assert widened[0, 1].tolist() == [[1, 3], [9, 11]]
    assert widened[0, 2].tolist() == [[17, 19], [25, 27]]
    assert not widened[0, [0, 3]].any()
