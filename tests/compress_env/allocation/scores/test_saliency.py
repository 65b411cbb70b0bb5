"""Scores of channels: Torch-Pruning's, where it has the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning as tp

from compress_env.allocation import channel_norms
from compress_env.allocation.scores.saliency import by_mean, lamp_scores
from compress_env.pruning.graph.surgery import find_walk
from tests.compress_env.allocation.networks import SHAPES, network, plan_of
from tests.fakes import BranchedNet, PlainNet, seeded

IMPORTANCES: dict[Any, Any] = {
    "l1": tp.importance.GroupMagnitudeImportance(p=1),
    "l2": tp.importance.GroupMagnitudeImportance(p=2),
    "lamp": tp.importance.LAMPImportance(),
    "batch_norm": tp.importance.BNScaleImportance(),
}


@pytest.mark.parametrize("norm", IMPORTANCES)
@pytest.mark.parametrize("name", ["vgg8", "resnet20", "densenet_small"])
def test_scores_are_torch_prunings(name: str, norm: Any) -> None:
    model, decisions = network(name), plan_of(name).decisions
    image = torch.zeros(1, *SHAPES[name])
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=image)
    for decision, scores in zip(decisions, channel_norms(model, decisions, norm), strict=True):
        (group,) = decision.groups
        producer = model.get_submodule(group.members[0].module)
        found = graph.get_pruning_group(
            producer, tp.prune_conv_out_channels, idxs=list(range(group.n_channels))
        )
        expected = IMPORTANCES[norm](found)
        if expected is None:  # no batch norm
            (expected,) = channel_norms(model, [decision], "l1")
        np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_depthwise_filters_norms_and_all_readers_count() -> None:
    model = seeded(BranchedNet)
    decisions = find_walk(model, torch.zeros(1, 1, 8, 8)).decisions
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    total = (
        weights["stem.0.weight"].abs().sum((1, 2, 3))
        + weights["stem.1.weight"].abs()
        + weights["block1.0.weight"].abs().sum((0, 2, 3))
        + weights["block2.weight"].abs().sum((1, 2, 3))
        + weights["depthwise.weight"].abs().sum((1, 2, 3))
        + weights["left.weight"].abs().sum((0, 2, 3))
        + weights["right.0.weight"].abs().sum((0, 2, 3))
    )
    stream, _, merge, _ = channel_norms(model, decisions)
    np.testing.assert_allclose(stream, (total / total.mean()).numpy())
    # Two groups, each by its own mean.
    np.testing.assert_allclose([merge[:5].mean(), merge[5:].mean()], 1.0)


def test_all_places_of_a_channel_behind_a_flatten_count() -> None:
    model = seeded(PlainNet)
    decisions = find_walk(model, torch.zeros(1, 1, 8, 8)).decisions
    conv2, fc1 = model.get_parameter("conv2.weight"), model.get_parameter("fc1.weight")
    total = conv2.square().sum((1, 2, 3)) + fc1.square().view(8, 6, 4).sum((0, 2))
    expected = (total / total.mean()).detach().numpy()
    np.testing.assert_allclose(channel_norms(model, decisions, "l2")[1], expected, rtol=1e-5)


def test_groups_without_a_norm_go_by_their_weights() -> None:
    model = seeded(PlainNet)
    decisions = find_walk(model, torch.zeros(1, 1, 8, 8)).decisions
    for one, other in zip(
        channel_norms(model, decisions, "batch_norm"), channel_norms(model, decisions), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_scales_by_hand() -> None:
    scores = np.array([3.0, 1.0, 4.0])
    np.testing.assert_allclose(by_mean(scores), scores * 3 / 8)
    np.testing.assert_allclose(lamp_scores(scores), [3 / 7, 1 / 8, 1.0])
    assert by_mean(np.zeros(2)).tolist() == [1.0, 1.0]
    assert lamp_scores(np.zeros(2)).tolist() == [0.0, 0.0]


def test_wrong_input_is_refused() -> None:
    model = seeded(PlainNet)
    decisions = find_walk(model, torch.zeros(1, 1, 8, 8)).decisions
    with pytest.raises(ValueError, match="unknown norm 'lampe', did you mean 'lamp'"):
        channel_norms(model, decisions, "lampe")  # type: ignore[arg-type]
    with torch.no_grad():
        model.get_parameter("conv2.weight")[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="expected finite weights, got some that are not with"):
        channel_norms(model, decisions)
