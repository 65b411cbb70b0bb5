"""Derivatives by a gate on each channel, against gradients of single images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from compress_env.allocation import fisher_scores, gate_gradients, taylor_scores
from compress_env.pruning.graph.surgery import find_walk
from tests.fakes import BranchedNet, PlainNet, seeded

IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1])
BATCHES = [(IMAGES[:3], LABELS[:3]), (IMAGES[3:], LABELS[3:])]


def by_hand(model: nn.Module, decision: Any) -> np.ndarray[Any, Any]:
    """Return the sum of weight times gradient over what reads a channel, one image at a time."""
    rows = []
    for image, label in zip(IMAGES, LABELS, strict=True):
        model.zero_grad()
        cross_entropy(model(image[None]), label[None]).backward()  # type: ignore[no-untyped-call]
        row = []
        for group in decision.groups:
            total = torch.zeros(group.n_channels)
            for member in group.consumers:
                weight = model.get_parameter(f"{member.module}.weight")
                assert weight.grad is not None
                read = (weight * weight.grad).transpose(0, 1).flatten(1).sum(1).detach()
                total += read[torch.from_numpy(member.positions)].sum(1)
            row.append(total)
        rows.append(torch.cat(row))
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
def test_gates_sum_weight_times_gradient_of_all_readers(build: type[nn.Module]) -> None:
    model = seeded(build)
    decisions = find_walk(model, IMAGES).decisions
    found = gate_gradients(model, decisions, BATCHES)
    for decision, gradients in zip(decisions, found, strict=True):
        assert gradients.shape == (5, decision.n_channels)
        np.testing.assert_allclose(gradients, by_hand(model, decision), rtol=1e-3, atol=1e-6)


def test_network_is_left_as_it_was() -> None:
    model = seeded(BranchedNet).train()
    decisions = find_walk(seeded(BranchedNet), IMAGES).decisions
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        gate_gradients(model, decisions, BATCHES)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_so_many_images_are_looked_at() -> None:
    model = seeded(PlainNet)
    decisions = find_walk(model, IMAGES).decisions
    found, all_of_them = (gate_gradients(model, decisions, BATCHES, n) for n in (4, 9))
    for some, each in zip(found, all_of_them, strict=True):
        assert len(some) == 4
        np.testing.assert_allclose(some, each[:4], rtol=1e-4, atol=1e-7)


def test_layers_that_run_on_tokens_give_one_derivative_an_image() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            rows = images.reshape(-1, 8)  # (b, 1, 8, 8) -> (b * 8, 8)
            rows = self.second(torch.relu(self.first(rows)))
            return rows.view(len(images), 8, 3).mean(1)  # type: ignore[no-any-return]

    model = seeded(Tokens)
    (decision,) = find_walk(model, IMAGES).decisions
    (found,) = gate_gradients(model, [decision], BATCHES)
    np.testing.assert_allclose(found, by_hand(model, decision), rtol=1e-3, atol=1e-6)


def test_scores_by_hand() -> None:
    gradients = [np.array([[1.0, -2.0], [-3.0, 0.0]])]
    assert fisher_scores(gradients)[0].tolist() == [5.0, 2.0]
    assert taylor_scores(gradients)[0].tolist() == [2.0, 1.0]


def test_nothing_to_look_at_is_refused() -> None:
    model = seeded(PlainNet)
    decisions = find_walk(model, IMAGES).decisions
    with pytest.raises(ValueError, match="expected at least one image, got none"):
        gate_gradients(model, decisions, [])
    with pytest.raises(FloatingPointError, match="derivatives of the loss are not finite"):
        gate_gradients(model, decisions, [(IMAGES * math.inf, LABELS)])
