"""Several pruned networks in one pass, against the same networks one by one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress_env.data.bundle import DataBundle
from compress_env.envs.pruning import PruningEnv
from compress_env.networks.models import build_model
from compress_env.pruning.graph.surgery import LiveChannels, find_walk
from compress_env.pruning.stacked import StackedNetworks
from compress_env.seeding import derive_generator
from compress_env.task.task import CompressionTask, FinetuneConfig
from tests.fakes import BranchedNet, PlainNet, make_data, seeded

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "plain": (PlainNet, 8),
    "branched": (BranchedNet, 8),
    "lenet5": (partial(build_model, "lenet5", 3, (1, 16, 16)), 16),
    "resnet20": (partial(build_model, "resnet20", 3, (1, 8, 8)), 8),
}
"""Networks and the sides of their images."""
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


def make_task(
    name: str, *, device: str = "cpu", data: DataBundle | None = None, **settings: Any
) -> CompressionTask:
    build, side = NETWORKS[name]
    config = FinetuneConfig(**{"batch_size": 16, "batch_norm_batches": 2} | settings)
    data = make_data(side=side) if data is None else data
    return CompressionTask(seeded(build), data, device=device, config=config)


def prune(task: CompressionTask, n: int) -> list[LiveChannels]:
    """Cut other channels, and another number of them, out of each of `n` copies of the network."""
    rng, networks = np.random.default_rng(0), []
    decisions = find_walk(task.model, task.example_image()).decisions
    for _ in range(n):
        network = LiveChannels(task.copy_model())
        for group in (group for decision in decisions for group in decision.groups):
            n_gone = rng.integers(group.n_channels)
            network.remove(group, rng.permutation(group.n_channels)[:n_gone])
        networks.append(network)
    return networks


def one_by_one(
    task: CompressionTask, networks: list[LiveChannels], n_steps: int, **options: Any
) -> tuple[list[nn.Module], list[float]]:
    """Return copies of the networks after fine-tuning and their accuracies."""
    models = [copy.deepcopy(network.model) for network in networks]
    for model in models:
        task.finetune(model, n_steps, derive_generator(1), **options)
        task.reestimate_batch_norm(model, derive_generator(2))
    return models, [task.accuracy(model, "validation") for model in models]


def together(
    task: CompressionTask, networks: list[LiveChannels], n_steps: int, **options: Any
) -> list[float]:
    """Fine-tune the networks in place; return their accuracies."""
    stack = StackedNetworks(task, networks)
    stack.finetune(n_steps, derive_generator(1), **options)
    stack.reestimate_batch_norm(derive_generator(2))
    stack.write_back()
    return stack.accuracies("validation")


def assert_same(got: nn.Module, expected: nn.Module, **tolerance: Any) -> None:
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(got.state_dict()[name], tensor, **(tolerance or CLOSE))


@pytest.mark.parametrize("name", NETWORKS)
def test_becomes_what_it_becomes_one_by_one(name: str) -> None:
    task = make_task(name)
    networks = prune(task, 2)
    before = [copy.deepcopy(network.model) for network in networks]
    expected, accuracies = one_by_one(task, networks, 3)
    found = together(task, networks, 3)
    for network, model, old in zip(networks, expected, before, strict=True):
        assert_same(network.model, model)
        moved = zip(network.model.parameters(), old.parameters(), strict=True)
        assert max(float((a - b).detach().abs().max()) for a, b in moved) > 1e-3
    n_images = len(task.data.validation)
    np.testing.assert_allclose(found, accuracies, atol=1.5 / n_images)
    images = next(task.calibration_batches())[0]
    with torch.no_grad():
        logits = StackedNetworks(task, networks).logits(images)
        each = torch.stack([network.model(images) for network in networks])
    torch.testing.assert_close(logits, each, **CLOSE)


class DoubleTask(CompressionTask):
    """Computes in float64, where rounding cannot hide behind what deep networks make of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model.double()

    def train_batches(
        self, n_batches: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in super().train_batches(n_batches, generator):
            yield images.double(), labels

    def example_image(self) -> Tensor:
        return super().example_image().to(next(self.model.parameters()).dtype)


def test_of_a_deep_network_only_rounding_differs() -> None:
    model = seeded(partial(build_model, "mobilenet_v2_narrow", 3, (1, 8, 8)))
    config = FinetuneConfig(batch_size=16, batch_norm_batches=2)
    networks = prune(CompressionTask(model, make_data(), device="cpu", config=config), 2)
    task = DoubleTask(model, make_data(), device="cpu", config=config)
    models = [copy.deepcopy(network.model.double()) for network in networks]
    for each in models:
        task.finetune(each, 2, derive_generator(1))
        task.reestimate_batch_norm(each, derive_generator(2))
    stack = StackedNetworks(task, networks)
    stack.finetune(2, derive_generator(1))
    stack.reestimate_batch_norm(derive_generator(2))
    stack.write_back()
    for network, each in zip(networks, models, strict=True):
        assert_same(network.model, each, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"distill": 0.5}, {"anneal": True}),
        ({"momentum": 0.0, "weight_decay": 0.1}, {"warmup_steps": 3}),
        ({"channels_last": True, "learning_rate": 0.05}, {"distill": 1.0}),
    ],
    ids=["distilled", "decayed", "channels-last"],
)
def test_heeds_settings(settings: dict[str, Any], options: dict[str, Any]) -> None:
    task = make_task("branched", **settings)
    networks = prune(task, 2)
    expected, _ = one_by_one(task, networks, 4, **options)
    plain, _ = one_by_one(make_task("branched"), networks, 4)
    together(task, networks, 4, **options)
    for network, model, other in zip(networks, expected, plain, strict=True):
        assert_same(network.model, model)
        with pytest.raises(AssertionError):
            assert_same(network.model, other)


def test_ends_an_episode_as_the_environment_does() -> None:
    settings: dict[str, Any] = {"finetune_at": "episode", "reward_at": "episode", "device": "cpu"}
    settings |= {
        "method": "magnitude+reconstruction",
        "finetune_config": FinetuneConfig(batch_size=16),
    }
    envs = [
        PruningEnv(seeded(BranchedNet), make_data(), finetune_steps=n, **settings) for n in (0, 3)
    ]
    networks, models, accuracies = [], [], []
    for action in (-0.4, 0.3):
        for env in envs:
            env.reset()
            for _ in env.walk:
                info = env.step(np.array([action], np.float32))[-1]
        found = copy.deepcopy(envs[0]._network_after(envs[0]._executed))
        assert isinstance(found, LiveChannels)
        networks.append(found)
        models.append(envs[1].compressed_model())
        accuracies.append(info["accuracy"])
    last, seed = len(envs[1].walk) - 1, envs[1].task_seed
    stack = StackedNetworks(envs[1].task, networks)
    stack.finetune(3, derive_generator(seed, last, 0))
    stack.reestimate_batch_norm(derive_generator(seed, last, 1))
    stack.write_back()
    np.testing.assert_allclose(stack.accuracies("validation"), accuracies, atol=0.05)
    for network, model in zip(networks, models, strict=True):
        assert_same(network.model, model)


def test_what_is_removed_or_zero_stays_zero_and_frozen_parameters_stay() -> None:
    task = make_task("branched", momentum=0.9)
    networks = prune(task, 2)
    with torch.no_grad():
        for network in networks:
            network.model.get_submodule("merge").weight[:, 0] = 0.0  # type: ignore[operator]
    stack = StackedNetworks(task, networks)
    zeros = {name: tensor.detach() == 0 for name, tensor in stack._parameters.items()}
    removed = sum(int(where.sum()) for where in zeros.values())
    assert removed > sum(int((p == 0).sum()) for x in networks for p in x.model.parameters())
    stack.finetune(5, derive_generator(1))
    for name, where in zeros.items():
        assert not stack._parameters[name][where].any()
    expected, _ = one_by_one(task, networks, 5)
    together(task, networks, 5)
    assert_same(networks[1].model, expected[1])

    frozen = make_task("plain")
    frozen.model.get_submodule("fc2").requires_grad_(False)
    networks = prune(frozen, 2)
    kept = copy.deepcopy(networks[0].model.get_submodule("fc2"))
    together(frozen, networks, 2)
    assert_same(networks[0].model.get_submodule("fc2"), kept, rtol=0.0, atol=0.0)


def test_statistics_that_average_over_all_minibatches() -> None:
    task = make_task("branched")
    for module in task.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            assert module.num_batches_tracked is not None
            module.num_batches_tracked.fill_(4)
    networks = prune(task, 2)
    models = [copy.deepcopy(network.model) for network in networks]
    for model in models:
        task.finetune(model, 3, derive_generator(1))
    stack = StackedNetworks(task, networks)
    stack.finetune(3, derive_generator(1))
    stack.write_back()
    for network, model in zip(networks, models, strict=True):
        assert_same(network.model, model)


def test_a_network_that_diverges_leaves_the_others_alone() -> None:
    task = make_task("plain")
    networks = prune(task, 3)
    expected, _ = one_by_one(task, networks, 3)
    with torch.no_grad():
        next(networks[1].model.parameters()).fill_(1e38)
    accuracies = together(task, networks, 3)
    assert [math.isnan(accuracy) for accuracy in accuracies] == [False, True, False]
    assert_same(networks[2].model, expected[2])


def test_networks_are_left_alone_until_they_are_written_back() -> None:
    task = make_task("branched")
    networks = prune(task, 2)
    before = [copy.deepcopy(network.model) for network in networks]
    stack = StackedNetworks(task, networks)
    stack.finetune(2, derive_generator(1))
    for network, model in zip(networks, before, strict=True):
        assert_same(network.model, model, rtol=0.0, atol=0.0)
    untouched = StackedNetworks(task, networks)
    untouched.finetune(0, derive_generator(1))
    untouched.write_back()
    for network, model in zip(networks, before, strict=True):
        assert_same(network.model, model, rtol=0.0, atol=0.0)


class Counting(PlainNet):
    """Looks at values of its images, as no vectorised network can."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = super().forward(images)
        return hidden if float(hidden.detach().sum()) < math.inf else -hidden


def test_refuses_what_cannot_be_stacked() -> None:
    task = make_task("plain")
    with pytest.raises(ValueError, match="expected at least one network, got none"):
        StackedNetworks(task, [])
    other = LiveChannels(seeded(BranchedNet))
    with pytest.raises(ValueError, match="expected networks cut out of the task's, one differs"):
        StackedNetworks(task, [other])
    wider = PlainNet()
    wider.conv1 = nn.Conv2d(1, 5, 3, padding=1)
    with pytest.raises(ValueError, match=r"one differs in 'conv1\.weight'"):
        StackedNetworks(task, [LiveChannels(wider)])
    counting = CompressionTask(seeded(Counting), make_data(), device="cpu")
    with pytest.raises(ValueError, match="cannot be run for several at once: vmap") as refused:
        StackedNetworks(counting, [LiveChannels(counting.copy_model())])
    assert "\n" not in str(refused.value)


def test_bfloat16_is_close_to_float32() -> None:
    task, rough = make_task("branched"), make_task("branched", bf16=True)
    networks = prune(task, 2)
    expected, _ = one_by_one(task, networks, 3)
    together(rough, networks, 3)
    assert all(p.dtype == torch.float32 for x in networks for p in x.model.parameters())
    for network, model in zip(networks, expected, strict=True):
        assert_same(network.model, model, rtol=0.1, atol=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["branched", "resnet20"])
def test_becomes_what_it_becomes_one_by_one_on_the_gpu(name: str) -> None:
    task = make_task(name, device="cuda", learning_rate=1e-3)
    networks = prune(task, 3)
    expected, _ = one_by_one(task, networks, 2)
    together(task, networks, 2)
    for network, model in zip(networks, expected, strict=True):  # kernels round otherwise there
        assert_same(network.model, model, rtol=1e-2, atol=1e-2)
