"""Small networks, data and tasks that make tests run in milliseconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from compress_env.data.bundle import DataBundle, ImageSource, make_data_bundle
from experiments.common.run_folder import RunFolder
from experiments.search.playing import Episode
from experiments.sweep.folder import Task, work
from experiments.sweep.pools import Outcome

DATA_ROOT = Path(os.environ.get("COMPRESS_ENV_DATA", Path(__file__).parents[2] / "shared" / "data"))


def quiet() -> Console:
    """Return a console that nobody sees."""
    return Console(file=StringIO(), width=200)


def slow(*values: Any) -> list[Any]:
    """Return values of a parameter that are left for the slow tests."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def slow_but(quick: Container[str], names: Iterable[str]) -> list[Any]:
    """Return names, of which all but some are left for the slow tests."""
    return [each for name in names for each in ([name] if name in quick else slow(name))]


def make_data(n_classes: int = 3, side: int = 8, channels: int = 1, seed: int = 0) -> DataBundle:
    """Images of noise whose brightest stripe tells the class; 96 train, 48 test."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n_images: int) -> TensorDataset:
        labels = torch.arange(n_images) % n_classes
        images = torch.rand(n_images, channels, side, side, generator=generator)
        rows = torch.arange(side)[None, :] % n_classes == labels[:, None]
        images = images + rows[:, None, :, None].float()
        return TensorDataset(images, labels)

    return make_data_bundle(draw(96), draw(48), n_calibration=32)


EPISODE = Episode(
    index=0,
    layers=("a", "b"),
    actions=(0.5, -1.0),
    values=(0.25, 0.75),
    accuracy=0.9,
    reward=-0.1,
    cost=10.0,
    dense_macs=10,
    dense_params=5,
    sparse_macs=10,
    sparse_params=5,
    n_evaluations=1,
    seconds=0.5,
)
"""An episode of two decisions."""


class PlainNet(nn.Module):
    """Two convolutions and two linear layers, the first after a flatten."""

    def __init__(self, n_classes: int = 3, channels: int = 1, side: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(6 * (side // 4) ** 2, 8)
        self.fc2 = nn.Linear(8, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.pool(torch.relu(self.conv1(images)))
        hidden = self.pool(torch.relu(self.conv2(hidden)))
        return self.fc2(torch.relu(self.fc1(hidden.flatten(1))))  # type: ignore[no-any-return]


class BranchedNet(nn.Module):
    """Batch-norm, a residual stream, a depthwise convolution and a concatenation."""

    def __init__(self, n_classes: int = 3, channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.block1 = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.block2 = nn.Conv2d(6, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, stride=2, groups=8)
        self.left = nn.Conv2d(8, 5, 1)
        self.right = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
        self.merge = nn.Conv2d(9, 7, 1)
        self.head = nn.Linear(7, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        stream = torch.relu(self.stem(images))
        stream = stream + self.block2(torch.relu(self.block1(stream)))
        stream = torch.relu(self.depthwise(stream))
        joined = torch.cat([self.left(stream), self.right(stream)], 1)
        pooled = torch.relu(self.merge(torch.relu(joined))).mean((2, 3))
        return self.head(pooled)  # type: ignore[no-any-return]


class ShapedNet(PlainNet):
    """A network whose forward pass insists on the number of channels of its first layer."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.conv1(images)).reshape(len(images), 4, 8, 8)
        hidden = self.pool(torch.relu(self.conv2(self.pool(hidden))))
        return self.fc2(torch.relu(self.fc1(hidden.flatten(1))))  # type: ignore[no-any-return]


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a network with fixed random weights and batch-norm statistics that are not trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                assert module.running_mean is not None and module.running_var is not None
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def gradient_images(n: int = 6, channels: int = 1, side: int = 4) -> Tensor:
    count = n * channels * side * side
    return (torch.arange(count) % 256).to(torch.uint8).reshape(n, channels, side, side)


def read_all(
    source: ImageSource, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    return next(iter(source.batches([torch.arange(len(source))], generator=generator)))


def set_sizes(bundle: DataBundle) -> tuple[int, int, int, int]:
    return (
        len(bundle.train),
        len(bundle.calibration),
        len(bundle.validation),
        len(bundle.test),
    )


def image_set(source: ImageSource) -> set[bytes]:
    return {image.numpy().tobytes() for image in read_all(source)[0]}


def flags(settings: dict[str, Any]) -> list[str]:
    """Return settings of an experiment as on its command line; booleans are off."""
    words = []
    for key, value in settings.items():
        name = key.replace("_", "-")
        if value is False:
            words.append(f"--no-{name}")
        elif isinstance(value, tuple):
            words += [f"--{name}", *value]
        else:
            words.append(f"--{name}={value}")
    return words


@cache
def trained_net() -> nn.Module:
    """Return a network that tells the classes of `make_data` apart."""
    model = seeded(PlainNet)
    model.train()
    images, labels = read_all(make_data().train)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss: Tensor = nn.functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    return model


TINY = ("compress_env/TinyPrune-v0", "compress_env/TinyQuantize-v0")
"""Tasks that are registered inside `tiny_tasks`: one evaluation an episode."""
NOISY = ("compress_env/NoisyPrune-v0", "compress_env/NoisyQuantize-v0")
"""Registered there too: orders are drawn, and matter."""


@contextmanager
def tiny_tasks() -> Iterator[None]:
    """Register tasks whose episodes take milliseconds."""
    shared: dict[str, Any] = {"model": seeded(PlainNet), "data": make_data(), "device": "cpu"}
    shared |= {"finetune_steps": 1, "reward_at": "episode"}
    pruning = shared | {"method": "magnitude", "flops_budget": 0.4}
    gym.register(TINY[0], "compress_env.envs.pruning:PruningEnv", kwargs=pruning)
    quantization = shared | {"size_budget": 0.5}
    gym.register(TINY[1], "compress_env.envs.quantization:QuantizationEnv", kwargs=quantization)
    noise: dict[str, Any] = {"transition_noise": True, "prior": "uniform", "model": trained_net()}
    noise |= {"finetune_steps": 2, "finetune_at": "episode"}
    noise |= {"finetune_config": {"learning_rate": 0.05, "batch_size": 8}}
    gym.register(NOISY[0], "compress_env.envs.pruning:PruningEnv", kwargs=pruning | noise)
    gym.register(
        NOISY[1], "compress_env.envs.quantization:QuantizationEnv", kwargs=quantization | noise
    )
    try:
        yield
    finally:
        for name in (*TINY, *NOISY):
            del gym.registry[name]


def stop_after_state(monkeypatch: pytest.MonkeyPatch, pattern: str = "*") -> list[str]:
    """Have a run interrupted, once, when it has written a state; return the names written so far.

    Args:
        monkeypatch: Of the test.
        pattern: What the state's name must match.
    """
    write, names, stopped = RunFolder.write_state, list[str](), list[str]()

    def write_and_stop(self: RunFolder, name: str, state: Mapping[str, Any]) -> None:
        write(self, name, state)
        names.append(name)
        if not stopped and fnmatch(name, pattern):
            stopped.append(name)
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "write_state", write_and_stop)
    return names


class InProcessPool:
    """Works on tasks in this process, one after the other; stands in for `LocalPool`."""

    place = "in this process"

    def __init__(self, *, jobs: int, retries: int) -> None:
        self._tasks: list[Task] = []

    def submit(self, tasks: Sequence[Task]) -> None:
        self._tasks += tasks

    def poll(self, timeout_s: float) -> list[Outcome]:
        task = self._tasks.pop(0)
        return [Outcome(task.cell.name, work(task))]

    def stop(self) -> None:
        self._tasks.clear()
