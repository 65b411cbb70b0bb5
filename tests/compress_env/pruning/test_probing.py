"""The copy of a network on which every path matters."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress_env.pruning.probing import probe_network
from tests.fakes import BranchedNet, seeded

IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def _deep(norm: Callable[[], nn.Module]) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1)]
    for _ in range(20):
        layers += [norm(), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).eval()


def _silent(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


@pytest.mark.parametrize(
    "model",
    [_silent(seeded(BranchedNet)), _deep(nn.Identity), _deep(lambda: nn.BatchNorm2d(16))],
    ids=["silent", "deep", "normed"],
)
def test_signals_get_through_and_keep_their_size(model: nn.Module) -> None:
    probe = probe_network(model, IMAGES)
    assert all(bool((p.abs() > 0).all()) for p in probe.parameters() if p.dim() > 1)
    with torch.no_grad():
        logits = probe(IMAGES)
    assert 1e-2 < float(logits.abs().max()) < 1e2
    assert float((logits[0] - logits[1]).abs().max()) > 1e-4


def test_the_network_itself_is_left_alone() -> None:
    model = seeded(BranchedNet)
    before = copy.deepcopy(model.state_dict())
    probe_network(model, IMAGES)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class Choosy(nn.Module):
    """Answers only with weights as they are: others have no logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        nn.init.constant_(self.conv.weight, 0.1)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images)).mean((2, 3)) + self.conv.weight.log().sum()  # type: ignore[no-any-return]


def test_a_network_that_needs_its_own_parameters_keeps_them() -> None:
    model = Choosy().eval()
    probe = probe_network(model, IMAGES)
    assert isinstance(probe, Choosy)
    assert torch.equal(probe.conv.weight, model.conv.weight)
    assert probe.norm.running_mean is not None
    assert bool((probe.norm.running_mean != 0).any())  # fits the images
