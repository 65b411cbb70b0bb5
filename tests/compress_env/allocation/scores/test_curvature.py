"""Curvature and slopes of the loss by weights, against derivatives worked out in full."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from compress_env.allocation import fisher_losses, hessian_traces
from compress_env.quantization.fake_quant import attach
from compress_env.task.layers import compute_layers
from tests.fakes import BranchedNet, PlainNet, seeded

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
BATCHES = [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])]


def test_traces_are_those_of_the_gauss_newton_matrix() -> None:
    """J' (diag p - p p') J, image by image and logit by logit."""
    model, names = seeded(PlainNet), ["conv1", "fc2"]
    weights = [model.get_parameter(f"{name}.weight") for name in names]
    expected = np.zeros(2)
    for image in IMAGES:
        logits = model(image[None])[0]
        p = logits.softmax(0).detach()
        slopes = [torch.autograd.grad(each, weights, retain_graph=True) for each in logits]
        for i in range(2):
            rows = torch.stack([slope[i].flatten() for slope in slopes])  # (K, weights)
            inner = torch.diag(p) - torch.outer(p, p)
            expected[i] += float((rows * (inner @ rows)).sum()) / weights[i].numel() / 6
    found = hessian_traces(model, names, BATCHES, n_vectors=100)
    np.testing.assert_allclose(found, expected, rtol=0.2)


def test_trace_of_a_linear_layer_by_hand() -> None:
    """The Hessian of softmax regression is (diag p - p p') x x'."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    x, p = IMAGES.double().flatten(1), model(IMAGES.double()).softmax(1).detach()
    expected = ((p * (1 - p)).sum(1) * x.square().sum(1)).mean() / (3 * 64)
    batches = [(IMAGES.double(), LABELS)]
    (found,) = hessian_traces(model, ["1"], batches, n_vectors=100)
    assert found == pytest.approx(float(expected), rel=0.1)


@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
def test_losses_are_those_of_single_images(build: type[nn.Module]) -> None:
    model = seeded(build)
    layers = compute_layers(model)
    changes = [[0.1 * torch.randn_like(x.weight), x.weight.detach()] for x in layers.values()]
    found = fisher_losses(model, list(layers), changes, BATCHES)
    expected = np.zeros(found.shape)
    for image, label in zip(IMAGES, LABELS, strict=True):
        loss = cross_entropy(model(image[None]), label[None])
        slopes = torch.autograd.grad(loss, [x.weight for x in layers.values()])
        for t, (slope, options) in enumerate(zip(slopes, changes, strict=True)):
            expected[t] += [float((slope * change).sum()) ** 2 / 6 for change in options]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-9)


class Tied(nn.Module):
    """One layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = torch.relu(self.layer(images.reshape(-1, 8)))  # (b, 1, 8, 8) -> (b * 8, 8)
        rows = torch.relu(self.layer(rows))
        return self.head(rows).view(len(images), 8, 3).mean(1)  # type: ignore[no-any-return]


def test_all_calls_and_rows_of_an_image_count() -> None:
    model = seeded(Tied)
    change = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    ((found,),) = fisher_losses(model, ["layer"], [[change]], BATCHES)
    weight = model.get_parameter("layer.weight")
    slopes = [
        torch.autograd.grad(cross_entropy(model(x[None]), y[None]), weight)[0]
        for x, y in zip(IMAGES, LABELS, strict=True)
    ]
    assert found == pytest.approx(np.mean([float((s * change).sum()) ** 2 for s in slopes]), 1e-4)


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def quantized(model: nn.Module) -> nn.Module:
    for layer in compute_layers(model).values():
        attach(layer, 8)
    return model


@pytest.mark.parametrize("change", [frozen, quantized, lambda model: model.train()])
def test_any_state_will_do_and_is_left_as_it_was(change: Any) -> None:
    model = change(seeded(BranchedNet))
    before = copy.deepcopy(model.state_dict())
    layers = compute_layers(model)
    changes = [[layer.weight.detach()] for layer in layers.values()]
    with torch.no_grad():
        traces = hessian_traces(model, list(layers), BATCHES)
        losses = fisher_losses(model, list(layers), changes, BATCHES)
    assert (traces >= 0).all() and (losses >= 0).all() and losses.any()
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_traces_follow_from_the_seed() -> None:
    model = seeded(PlainNet)
    one, same, other = (hessian_traces(model, ["fc1"], BATCHES, seed=seed) for seed in (0, 0, 1))
    assert one == same != other


def test_derivatives_that_are_not_finite_are_refused() -> None:
    model = seeded(PlainNet)
    with torch.no_grad():
        model.get_parameter("fc2.bias").fill_(torch.inf)
    weight = model.get_parameter("conv1.weight").detach()
    with pytest.raises(FloatingPointError, match="derivatives of the logits are not finite"):
        hessian_traces(model, ["conv1"], BATCHES)
    with pytest.raises(FloatingPointError, match="derivatives of the loss are not finite"):
        fisher_losses(model, ["conv1"], [[weight]], BATCHES)
