"""Tests of the networks that other packages build."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from compress_env.data.bundle import Preparation
from compress_env.networks.libraries import choose_preparation, preparation_of
from compress_env.networks.models import build_model


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "googlenet", "squeezenet1_1"])
def test_torchvision_networks_have_random_weights_and_the_wanted_logits(name: str) -> None:
    model = build_model(f"torchvision/{name}", 7, (3, 64, 64))
    assert model.training
    images = torch.randn(2, 3, 64, 64)
    assert model(images).shape == (2, 7)  # one tensor, also while it is trained
    assert model.eval()(images).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("alexnet", (3, 32, 32), r"torchvision/alexnet cannot take images of 32x32: .*too small"),
        ("vit_b_16", (3, 32, 32), "cannot take images of 32x32: .*Expected 224 but got 32"),
        ("resnet18", (1, 32, 32), "torchvision/resnet18 takes images of 3 channels, got 1"),
        ("resnet19", (3, 32, 32), "torchvision has no network 'resnet19'; it has: alexnet, "),
        ("raft_large", (3, 32, 32), "torchvision has no network 'raft_large'"),
    ],
)
def test_torchvision_networks_that_do_not_fit_are_refused(
    name: str, shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(f"torchvision/{name}", 10, shape)


def test_timm_is_asked_for_by_name_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"timm/resnet18 needs.*pip install timm"):
        build_model("timm/resnet18", 10, (1, 32, 32))


class FakeTimm(ModuleType):
    """Knows one network."""

    def __init__(self) -> None:
        super().__init__("timm")
        self.asked: dict[str, Any] = {}

    def is_model(self, name: str) -> bool:
        return name == "tiny_net"

    def list_models(self, pattern: str) -> list[str]:
        return ["tiny_net"] if pattern == "*tiny*" else []

    def create_model(self, name: str, **options: Any) -> nn.Module:
        self.asked = {"name": name, **options}
        n_features = options["in_chans"] * 64
        return nn.Sequential(nn.Flatten(), nn.Linear(n_features, options["num_classes"]))


def test_timm_networks_take_any_number_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTimm()
    monkeypatch.setitem(sys.modules, "timm", fake)
    assert build_model("timm/tiny_net", 5, (2, 8, 8))(torch.zeros(3, 2, 8, 8)).shape == (3, 5)
    assert fake.asked == {"name": "tiny_net", "pretrained": False, "num_classes": 5, "in_chans": 2}
    with pytest.raises(ValueError, match="timm/tiny_net cannot take images of 9x9"):
        build_model("timm/tiny_net", 5, (2, 9, 9))
    with pytest.raises(ValueError, match=r"timm has no network 'tiny_nut'.*such as tiny_net"):
        build_model("timm/tiny_nut", 5, (2, 8, 8))
    monkeypatch.setattr(fake, "create_model", lambda name, **options: nn.Flatten())
    with pytest.raises(ValueError, match=r"timm/tiny_net returns \(1, 128\), not \(1, 5\)"):
        build_model("timm/tiny_net", 5, (2, 8, 8))


def test_timm_itself_builds_a_network() -> None:
    pytest.importorskip("timm")
    model = build_model("timm/resnet10t", 4, (1, 32, 32))
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize("name", ["mobilenetv1_100", "mobilenetv1_100.ra4_e3600_r224_in1k"])
def test_timm_tells_what_its_weights_were_trained_with(name: str) -> None:
    pytest.importorskip("timm")
    halves = (0.5, 0.5, 0.5)
    assert preparation_of(f"timm/{name}") == Preparation(halves, halves, "bicubic", 0.875)


@pytest.mark.parametrize("name", ["resnet20", "torchvision/resnet18", "timm/no_such_net", "timm/"])
def test_other_networks_take_images_as_usual(name: str) -> None:
    assert preparation_of(name) is None


def test_networks_of_timm_take_images_as_usual_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert preparation_of("timm/mobilenetv1_100") is None


def test_preparation_can_be_another_than_the_networks_own() -> None:
    pytest.importorskip("timm")
    name, halves = "timm/mobilenetv1_100", (0.5, 0.5, 0.5)
    own = preparation_of(name)
    assert own is not None and own.mean == halves
    assert choose_preparation("auto", name, "imagenet") == own
    assert choose_preparation("imagenet", name, "folder") is None
    assert choose_preparation(name, "resnet20", "folder") == own
    assert choose_preparation("auto", "resnet20", "cifar10") is None


@pytest.mark.parametrize(
    ("how", "data", "message"),
    [
        ("usual", "imagenet", "preparation must be auto, imagenet or timm/NAME.* got 'usual'"),
        ("torchvision/resnet18", "folder", "preparation must be"),
        ("imagenet", "cifar10", "for the data sets imagenet and folder; cifar10 has its own"),
    ],
)
def test_a_wrong_preparation_is_told(how: str, data: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_preparation(how, "resnet20", data)
