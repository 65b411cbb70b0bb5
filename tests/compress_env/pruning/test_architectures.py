"""Whole episodes on every family of networks: what is pruned is what would be zeroed, exactly."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress_env import PruningEnv
from compress_env.networks.models import build_model
from compress_env.pruning.graph.surgery import ChannelGroup, LiveChannels, zero_channels
from compress_env.task.finetune import reestimate_batch_norm
from compress_env.task.task import FinetuneConfig
from tests.fakes import make_data, slow

QUICK = FinetuneConfig(batch_size=2, batch_norm_batches=1)


class Family(NamedTuple):
    """A network, the images that it gets, and what its walk is."""

    name: str
    side: int
    channels: int
    n_layers: int
    n_decisions: int
    skipped: str = ""
    n_skipped: int = 0
    budget: float = 0.7

    def image(self, n_images: int = 1) -> Tensor:
        shape = (n_images, self.channels, self.side, self.side)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def build(self) -> nn.Module:
        """Random weights, and batch-norm statistics that fit them, so that signals get through."""
        if self.name.startswith("timm/"):
            pytest.importorskip("timm")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build_model(self.name, 10, (self.channels, self.side, self.side))
            for parameter in model.parameters():  # heads and scales that start from nothing
                if parameter.dim() > 1 and float(parameter.detach().abs().max()) < 1e-4:
                    nn.init.normal_(parameter, std=0.1)
        reestimate_batch_norm(model, [(self.image(4), torch.zeros(4))])
        return model.eval()


PADDED = "are filled up with constants by 'constant_pad_nd' in 'stages."
SHUFFLED = "are divided up by 'view' in"
SMALL = [
    Family("lenet5", 28, 1, 5, 4),
    Family("cnn4", 28, 1, 4, 3),
    Family("lenet5_softplus", 28, 1, 5, 4),
    Family("cnn4_softplus", 28, 1, 4, 3),
    Family("alexnet_small", 28, 1, 8, 7),
    Family("vgg8", 16, 1, 9, 8),
    Family("densenet_small", 16, 1, 28, 27),
    Family("mobilenet_v2_narrow", 16, 1, 33, 15),
    Family("resnet20_padded", 32, 3, 20, 9, PADDED, 10),
    Family("torchvision/resnet18", 32, 3, 21, 12),
    Family("torchvision/mobilenet_v3_small", 32, 3, 54, 27),
    Family("torchvision/shufflenet_v2_x0_5", 32, 3, 57, 18, SHUFFLED, 18),
]
LARGE = [
    Family("resnet20", 32, 3, 22, 12),
    Family("vgg16", 32, 3, 14, 13),
    Family("mobilenet_v1", 32, 3, 28, 14),
    Family("torchvision/resnet50", 32, 3, 54, 37),
    Family("torchvision/mobilenet_v2", 32, 3, 53, 25),
    Family("torchvision/densenet121", 32, 3, 121, 120),
    Family("torchvision/efficientnet_b0", 32, 3, 82, 40),
    Family("torchvision/convnext_tiny", 32, 3, 59, 18, "", 22),
    Family("torchvision/swin_t", 32, 3, 29, 12, "", 16, 0.95),
    Family("torchvision/vit_b_16", 224, 3, 26, 12, "", 13),
    Family("timm/mobilevit_xxs", 64, 3, 72, 31, "", 30),
    Family("vgg19", 32, 3, 17, 16),
    Family("resnet18_cifar", 32, 3, 21, 12),
    Family("resnet56", 32, 3, 58, 30),
    Family("resnet110", 32, 3, 112, 57),
    Family("resnet56_padded", 32, 3, 56, 27, PADDED, 28),
    Family("resnet110_padded", 32, 3, 110, 54, PADDED, 55),
    Family("torchvision/vgg16", 32, 3, 16, 15),
    Family("torchvision/mobilenet_v3_large", 32, 3, 64, 30),
    Family("mobilenet_v2_cifar", 32, 3, 53, 25),
    Family("mobilenet_v1", 96, 3, 28, 14),
    Family("resnet20_padded", 96, 3, 20, 9, PADDED, 10),
    Family("torchvision/alexnet", 96, 3, 8, 7),
    Family("torchvision/vgg16", 96, 3, 16, 15),
    Family("torchvision/resnet18", 96, 3, 21, 12),
    Family("torchvision/resnet50", 96, 3, 54, 37),
    Family("torchvision/mobilenet_v2", 96, 3, 53, 25),
    Family("torchvision/mobilenet_v3_small", 96, 3, 54, 27),
    Family("torchvision/mobilenet_v3_large", 96, 3, 64, 30),
    Family("torchvision/densenet121", 96, 3, 121, 120),
    Family("torchvision/efficientnet_b0", 96, 3, 82, 40),
]


class Removed(NamedTuple):
    """What an episode has removed from one group."""

    group: ChannelGroup
    channels: list[int]


class Episode(NamedTuple):
    """A finished episode of random rates, and the network that it started from."""

    env: PruningEnv
    original: nn.Module
    removed: list[Removed]
    info: dict[str, Any]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def _run(family: Family, monkeypatch: pytest.MonkeyPatch) -> Episode:
    """Take random actions until the end, and note every removal."""
    removed: list[Removed] = []
    original = family.build()
    env = PruningEnv(
        original,
        make_data(n_classes=10, side=family.side, channels=family.channels),
        method="magnitude",
        flops_budget=family.budget,
        finetune_steps=0,
        finetune_config=QUICK,
        reward_at="episode",
        scorer=lambda model: 0.5,
        store=None,
        device="cpu",
    )
    remove = LiveChannels.remove

    def noted(self: LiveChannels, group: ChannelGroup, channels: list[int]) -> None:
        removed.append(Removed(group, [int(x) for x in channels]))
        remove(self, group, channels)

    monkeypatch.setattr(LiveChannels, "remove", noted)
    rng, done = np.random.default_rng(0), False
    env.reset(seed=0)
    while not done:
        action = rng.uniform(-1.0, 1.0, 1).astype(np.float32)
        _, _, done, _, info = env.step(action)
        assert "error" not in info
    monkeypatch.undo()
    return Episode(env, original, removed, info)


def _check_episode(family: Family, episode: Episode) -> None:
    """Check the walk, the counts, the budget and the invariant."""
    env, original, removed, info = episode
    image, compressed = family.image(), env.compressed_model()
    assert [len(env.table), len(env.walk)] == [family.n_layers, family.n_decisions]
    assert len(env.skipped_layers) == family.n_skipped
    assert all(family.skipped in reason for reason in env.skipped_layers.values())
    assert _count_macs(original, image) == env.unpruned.macs
    assert info["dense_macs"] == _count_macs(compressed, image)
    assert info["dense_macs"] <= family.budget * env.unpruned.macs
    assert info["dense_params"] == sum(p.numel() for p in compressed.parameters())
    _check_pruned_equals_zeroed(original, compressed, removed, image)


def _count_macs(model: nn.Module, image: Tensor) -> int:
    """Count by an independent counter, on the operations that really run."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).to("meta")(image.to("meta"))
    return int(counter.get_total_flops()) // 2


def _check_pruned_equals_zeroed(
    original: nn.Module, compressed: nn.Module, removed: list[Removed], image: Tensor
) -> None:
    """Compare with the unpruned network, in float64 as many layers add up."""
    pruned, zeroed = copy.deepcopy(original).double(), copy.deepcopy(original).double()
    live = LiveChannels(pruned)
    for group, channels in removed:
        live.remove(group, channels)
        zero_channels(zeroed, group, channels)
    with torch.no_grad():
        got, wanted = pruned(image.double()), zeroed(image.double())
        unpruned = original(image).double()
    torch.testing.assert_close(got, wanted, rtol=0.0, atol=1e-5)
    assert float((unpruned - wanted).abs().max()) > 1e-3
    # Nothing but the statistics of batch-norms has changed besides.
    weights = dict(compressed.named_parameters())
    for name, parameter in pruned.named_parameters():
        torch.testing.assert_close(weights[name].double(), parameter, rtol=0.0, atol=0.0)


def _check_export(family: Family, compressed: nn.Module) -> None:
    image = family.image(2)
    exported = torch.export.export(compressed, (image,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(image), compressed(image), rtol=1e-4, atol=1e-4)


def _name_of(family: Family) -> str:
    return f"{family.name}-{family.side}"


@pytest.mark.parametrize("family", SMALL, ids=_name_of)
def test_an_episode_prunes_as_if_zeroed(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    _check_episode(family, _run(family, monkeypatch))


@pytest.mark.slow
@pytest.mark.parametrize("family", LARGE, ids=_name_of)
def test_large_networks_are_pruned_as_if_zeroed_and_can_be_exported(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    episode = _run(family, monkeypatch)
    _check_episode(family, episode)
    if family in LARGE[:15]:
        _check_export(family, episode.env.compressed_model())


EXPORTED = ("lenet5", "resnet20_padded", "torchvision/mobilenet_v3_small")


@pytest.mark.parametrize(
    "family", [x for f in SMALL for x in ([f] if f.name in EXPORTED else slow(f))], ids=_name_of
)
def test_what_an_episode_ends_with_can_be_exported(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check_export(family, _run(family, monkeypatch).env.compressed_model())
