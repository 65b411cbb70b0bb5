"""What a trace cannot see is found by removing channels and comparing with zeroed ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compress_env.pruning.graph.rounds import equal_rounds, unequal_rounds
from compress_env.pruning.graph.surgery import find_walk
from tests.fakes import BranchedNet, PlainNet, seeded

IMAGE = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class CountingNet(PlainNet):
    """Scales by the number of channels, a number that no operation on tensors shows."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.pool(torch.relu(self.conv1(images)))
        hidden = self.pool(torch.relu(self.conv2(hidden * hidden.shape[1])))
        return self.fc2(torch.relu(self.fc1(hidden.flatten(1))))  # type: ignore[no-any-return]


class PairNet(PlainNet):
    """Can do without all channels but one of either convolution, but not of both."""

    def forward(self, images: Tensor) -> Tensor:
        if self.conv1.out_channels + self.conv2.out_channels < 5:
            raise RuntimeError("too narrow")
        return super().forward(images)


class NarrowNet(PlainNet):
    """Has a layer with one input channel that is not the image's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 1, 3, padding=1)
        self.conv2 = nn.Conv2d(1, 6, 3, padding=1)


class ShapeNet(PlainNet):
    """Returns as many logits as it has channels."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, : max(1, self.conv2.out_channels - 3)]


@pytest.mark.parametrize(
    ("build", "skipped"),
    [
        (CountingNet, {"conv2": "removing an input channel is not the same as zeroing it"}),
        (NarrowNet, {"conv2": "it reads a single channel"}),
        (ShapeNet, {"fc1": "removing an input channel changes the shape of the network's output"}),
        (
            PairNet,
            {"fc1": "breaks the network: too narrow, together with others"},
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_culprits_are_found_and_the_others_stay_prunable(
    build: type[nn.Module], skipped: dict[str, str]
) -> None:
    walk = find_walk(seeded(build), IMAGE)
    assert walk.skipped.keys() == skipped.keys()
    for name, reason in skipped.items():
        assert reason in walk.skipped[name]
    assert {"conv2", "fc1", "fc2"} - {d.layer.name for d in walk.decisions} == skipped.keys()


def test_a_network_without_culprits_goes_through_each_round_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n_runs, forward = 0, BranchedNet.forward

    def counted(self: BranchedNet, images: Tensor) -> Tensor:
        nonlocal n_runs
        n_runs += 1
        return forward(self, images)

    monkeypatch.setattr(BranchedNet, "forward", counted)
    find_walk(seeded(BranchedNet), IMAGE)
    sizes, widths = [8, 6, 5, 4, 7], [9, 8, 7, 6, 5, 4, 3]
    n_rounds = len(equal_rounds(sizes, [widths] * 5)) + len(unequal_rounds(sizes))
    assert n_runs == 3 + n_rounds + 3  # followed, tabulated, probed; pruned; zeroed
