"""Sensitivity to damage: what is measured, and that nothing is left of the damage."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from compress_env.allocation import sensitivity
from compress_env.task.layers import compute_layers
from tests.fakes import BranchedNet, PlainNet, seeded


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class Recorder:
    """Scores 0.8, or something else per call, and notes what the weights were."""

    def __init__(self, scores: list[float] | None = None) -> None:
        self.scores = scores or []
        self.seen: list[dict[str, Tensor]] = []

    def __call__(self, model: nn.Module) -> float:
        self.seen.append(state_of(model))
        return self.scores[len(self.seen) - 1] if self.scores else 0.8


def test_sensitivity_by_hand() -> None:
    score = Recorder([0.8, 0.6, 0.2, 0.9, 0.9])
    table = sensitivity(seeded(PlainNet), score, n_trials=2, layers=["conv2", "fc1"])
    assert table.index.tolist() == ["conv2", "fc1"]
    assert table["score"].tolist() == [0.8, 0.8]
    assert table["damaged_mean"].tolist() == pytest.approx([0.4, 0.9])
    assert table["damaged_std"].tolist() == pytest.approx([0.2, 0.0])
    assert table["lost"].tolist() == pytest.approx([0.4, -0.1])
    assert table["sensitivity"].tolist() == pytest.approx([0.5, 0.0])


@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
def test_one_layer_at_a_time_is_damaged_by_so_much(build: type[nn.Module]) -> None:
    model, score = seeded(build), Recorder()
    before = state_of(model)
    sensitivity(model, score, damage=0.5, n_trials=3)
    assert_same(model, before)
    names = list(compute_layers(model))
    assert len(score.seen) == 1 + 3 * len(names)
    assert all(torch.equal(score.seen[0][name], before[name]) for name in before)
    for call, seen in enumerate(score.seen[1:]):
        changed = [name for name in before if not torch.equal(seen[name], before[name])]
        assert changed == [f"{names[call // 3]}.weight"]
        weight = before[changed[0]]
        noise = (seen[changed[0]] - weight).double()
        expected = 0.5 * float(weight.double().std(correction=0))
        # within five standard errors
        assert float(noise.square().mean().sqrt()) == pytest.approx(
            expected, rel=5 / math.sqrt(2 * noise.numel())
        )


def test_noise_follows_from_seed_layer_and_trial() -> None:
    def noisy(seed: int, layers: list[str]) -> list[Tensor]:
        score = Recorder()
        sensitivity(seeded(PlainNet), score, n_trials=2, layers=layers, seed=seed)
        return [seen["fc1.weight"] for seen in score.seen[-2:]]

    alone, with_others = noisy(0, ["fc1"]), noisy(0, ["conv2", "fc1"])
    assert all(map(torch.equal, alone, with_others))
    assert not torch.equal(*alone)
    assert not torch.equal(alone[0], noisy(1, ["fc1"])[0])


@pytest.mark.parametrize("failing_call", [0, 1, 4])
def test_weights_are_restored_when_the_scorer_raises(failing_call: int) -> None:
    model = seeded(BranchedNet)
    before, calls = state_of(model), 0

    def score(_: nn.Module) -> float:
        nonlocal calls
        calls += 1
        if calls == failing_call + 1:
            raise RuntimeError("broken scorer")
        return 0.5

    with pytest.raises(RuntimeError, match="broken scorer"):
        sensitivity(model, score, n_trials=2)
    assert calls == failing_call + 1
    assert_same(model, before)


def test_constant_weights_cannot_be_damaged() -> None:
    model = seeded(PlainNet)
    nn.init.constant_(model.get_submodule("fc1").weight, 0.25)  # type: ignore[arg-type]

    def score(network: nn.Module) -> float:
        with torch.no_grad():
            return 1.0 / (1.0 + float(network(torch.ones(1, 1, 8, 8)).square().sum()))

    table = sensitivity(model, score, n_trials=1)
    row = table.loc["fc1"]
    assert (row["weight_std"], row["lost"], row["sensitivity"]) == (0.0, 0.0, 0.0)
    assert table["sensitivity"].max() > 0.0


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([math.nan], "returned nan for the network as it is"),
        ([0.5, math.nan], "returned nan for the network with 'conv1' damaged"),
        ([0.5, math.inf], "returned inf for the network with 'conv1' damaged"),
    ],
    ids=["whole", "damaged", "infinite"],
)
def test_scores_that_are_not_finite_are_refused(scores: list[float], message: str) -> None:
    model = seeded(PlainNet)
    before = state_of(model)
    with pytest.raises(FloatingPointError, match=message):
        sensitivity(model, Recorder(scores))
    assert_same(model, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damage": 0.0}, "damage must be above 0 and finite, got 0.0"),
        ({"damage": math.nan}, "damage must be above 0 and finite, got nan"),
        ({"n_trials": 0}, "n_trials must be at least 1, got 0"),
        ({"layers": ["conv9"]}, "expected layers among conv1, conv2, fc1, fc2, got 'conv9'"),
        ({"layers": []}, "expected layers among .* got none"),
        ({"score": lambda _: 0.0}, "expected a score above 0 .* got 0.0"),
    ],
    ids=["damage", "NaN", "trials", "layer", "no layer", "score"],
)
def test_bad_input_is_refused(options: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {"score": Recorder()} | options
    with pytest.raises(ValueError, match=message):
        sensitivity(seeded(PlainNet), **settings)  # type: ignore[arg-type]
