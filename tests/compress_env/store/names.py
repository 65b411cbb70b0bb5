"""The name of a task of small networks and data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress_env.data.bundle import DataBundle
from compress_env.envs.pruning import PruningEnv
from compress_env.store.fingerprint import task_fingerprint
from compress_env.task.task import CompressionTask, FinetuneConfig
from tests.fakes import BranchedNet, make_data, seeded


def name_of(
    model: nn.Module | None = None,
    data: DataBundle | None = None,
    kind: type = PruningEnv,
    config: FinetuneConfig | None = None,
    **settings: Any,
) -> str:
    task = CompressionTask(
        seeded(BranchedNet) if model is None else model,
        make_data() if data is None else data,
        config=config,
        device="cpu",
    )
    return task_fingerprint(task, kind, settings)


class Dropping(nn.Module):
    """Drops inputs in a way that `repr` does not show, and only when training."""

    def __init__(self, rate: float, drop: Callable[..., Tensor] = functional.dropout) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4, 3)
        self.rate = rate
        self.drop = drop

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.drop(torch.relu(self.conv(images)).mean((2, 3)), self.rate, self.training)
        return self.head(hidden)  # type: ignore[no-any-return]


def alike(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()
