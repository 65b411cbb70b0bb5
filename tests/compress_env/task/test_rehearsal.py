"""A network that cannot be trained is refused before any work, in one line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress_env import PruningEnv, QuantizationEnv
from compress_env.task.rehearsal import rehearse_training
from compress_env.task.task import CompressionTask
from tests.fakes import BranchedNet, PlainNet, make_data, seeded

QUICK: dict[str, Any] = {"device": "cpu", "finetune_steps": 1, "reward_at": "episode"}


class Auxiliary(PlainNet):
    """Has a second head, whose answer comes beside the first one's in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Sequential(nn.Flatten(), nn.Linear(4 * 16, 3))

    def forward(self, images: Tensor) -> Any:
        hidden = self.pool(torch.relu(self.conv1(images)))
        logits = self.fc2(
            torch.relu(self.fc1(self.pool(torch.relu(self.conv2(hidden))).flatten(1)))
        )
        return self.join(logits, self.auxiliary(hidden)) if self.training else logits

    def join(self, logits: Tensor, others: Tensor) -> Any:
        return logits, others


class Added(Auxiliary):
    """Adds the second answer to the first one."""

    def join(self, logits: Tensor, others: Tensor) -> Any:
        return logits + 0.3 * others


class Named(Auxiliary):
    """Returns a dict."""

    def join(self, logits: Tensor, others: Tensor) -> Any:
        return {"logits": logits, "others": others}


class Broken(PlainNet):
    """Has never been trained like this."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            raise NotImplementedError("only for inference")
        return super().forward(images)


class Detached(PlainNet):
    """Lets no gradient pass."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).detach()


class Overwritten(PlainNet):
    """Changes in place what its gradient needs."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits.exp().mul_(logits).exp_().mul_(2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Auxiliary, r"in training mode the network returns tuple, not .*\(2, 3\): remove"),
        (Named, "in training mode the network returns dict, not logits"),
        (Broken, "the network cannot be trained: only for inference"),
        (Detached, "the network cannot be trained: element 0 of tensors does not require grad"),
        (Overwritten, "the network cannot be trained: one of the variables needed for gradient"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
@pytest.mark.parametrize("env_class", [PruningEnv, QuantizationEnv])
def test_what_fails_in_training_fails_at_construction(
    env_class: type[PruningEnv] | type[QuantizationEnv],
    build: type[nn.Module],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        env_class(seeded(build), make_data(), **QUICK)
    assert "\n" not in str(caught.value)


def test_pruning_refuses_modules_that_run_in_training_only() -> None:
    with pytest.raises(ValueError, match=r"'auxiliary.1' run in training mode only"):
        PruningEnv(seeded(Added), make_data(), **QUICK)
    env = QuantizationEnv(seeded(Added), make_data(), **QUICK)  # nothing is cut there
    assert "auxiliary.1" not in [layer.name for layer in env.walk]


def _normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)
    )


def test_batches_of_one_are_refused_where_batch_norm_cannot_do_with_them() -> None:
    with pytest.raises(ValueError, match=r"batches of one image: give .* batch_size of at least 2"):
        PruningEnv(_normed(), make_data(), finetune_config={"batch_size": 1}, **QUICK)
    PruningEnv(_normed(), make_data(), finetune_config={"batch_size": 2}, **QUICK)
    PruningEnv(seeded(BranchedNet), make_data(), finetune_config={"batch_size": 1}, **QUICK)


class Squeezed(nn.Module):
    """Squeezes whatever has one element, the batch included."""

    def __init__(self, *, normed: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 8)
        self.norm = nn.BatchNorm1d(4) if normed else nn.Identity()
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(images).squeeze()))  # type: ignore[no-any-return]


@pytest.mark.parametrize("normed", [False, True])
def test_a_squeezed_batch_is_explained(normed: bool) -> None:
    with pytest.raises(ValueError, match=r"as squeeze\(\) does; use flatten\(1\) instead"):
        CompressionTask(Squeezed(normed=normed), make_data(), device="cpu")


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_caller_may_have_switched_gradients_off(context: Callable[[], Any]) -> None:
    with context():
        assert CompressionTask(PlainNet(), make_data(), device="cpu").training_only == set()


def test_a_frozen_network_is_not_tried() -> None:
    model = seeded(Detached).requires_grad_(False)
    assert CompressionTask(model, make_data(), device="cpu").training_only == set()


def test_a_rehearsal_leaves_network_and_random_state_alone() -> None:
    model = nn.Sequential(seeded(BranchedNet), nn.Dropout(0.5)).eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    task = CompressionTask(model, make_data(), device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    for network in (model, task.model):
        assert not any(module.training for module in network.modules())
        assert all(p.grad is None for p in network.parameters())
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, before[name]), name


def test_a_rehearsal_names_what_runs_in_training_only() -> None:
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"bf16": False, "channels_last": False}
    assert rehearse_training(Added(), images, 3, **options) == {"auxiliary.1"}
    assert rehearse_training(BranchedNet(), images, 3, **options) == set()
