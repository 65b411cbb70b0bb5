"""Rules by name: what they look at, and that they are the functions they are made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress_env.allocation import (
    channel_norms,
    fisher_losses,
    hessian_traces,
    kl_curves,
    rank_channels,
    relative_errors,
)
from compress_env.allocation.bits import weight_changes
from compress_env.allocation.rules import (
    BIT_RULES,
    PRUNING_RULES,
    BitTask,
    PruningTask,
    Source,
)
from compress_env.allocation.scores.curves import Probes
from compress_env.allocation.scores.saliency import Norm
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.quantization.scales import fit_scale, rounded_scale
from compress_env.task.layers import compute_layers
from tests.fakes import BranchedNet, PlainNet, make_data, seeded

NO_IMAGES: tuple[Norm, ...] = ("l1", "l2", "lamp")


def unread() -> Iterator[tuple[Tensor, Tensor]]:
    raise AssertionError("images were read")
    yield


def unused(*_: Any) -> Any:
    raise AssertionError("a network was run")


def task_of(env: PruningEnv, batches: Iterable[tuple[Tensor, Tensor]]) -> PruningTask:
    source = Source(env.task.model, batches, Probes(unused, unused), unused)
    return PruningTask(source, env.plan, env.budgets)


@pytest.fixture(scope="module")
def env() -> PruningEnv:
    return PruningEnv(seeded(PlainNet), make_data(), flops_budget=0.5, device="cpu", store=None)


@pytest.mark.parametrize("name", NO_IMAGES)
def test_norms_look_at_no_image(name: Norm, env: PruningEnv) -> None:
    found = PRUNING_RULES[name](task_of(env, unread()))
    scores = channel_norms(env.task.model, env.plan.decisions, name)
    assert (found.n_evaluations, found.n_probes) == (0, 0)
    assert found.values == rank_channels(scores, env.plan, env.budgets) == env.allocate(name)


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_gradients_are_of_the_images_given(name: str, env: PruningEnv) -> None:
    batches = [
        (torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(s)), torch.arange(8) % 3)
        for s in (0, 1)
    ]
    found = PRUNING_RULES[name](task_of(env, batches)).values
    assert len(found) == len(env.walk) and env.plan.meets(found, env.budgets)
    with pytest.raises(AssertionError, match="images were read"):
        PRUNING_RULES[name](task_of(env, unread()))


def test_bits_lose_the_least_that_the_bytes_allow() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [scale * torch.randn(2, 3, generator=generator) ** 3 for scale in (1.0, 2.0)]
    sizes = (5, 11)

    def most_bytes(bits: Sequence[int]) -> int:
        given = [*bits, *[5] * (2 - len(bits))]
        return 7 + sum(n * size for n, size in zip(given, sizes, strict=True))

    source = Source(nn.Identity(), unread(), Probes(unused, unused), unused)
    task = BitTask(source, ["a", "b"], weights, fit_scale, 5, most_bytes, 7 + 6 * 16)
    found = BIT_RULES["relative_error"](task).values
    losses = relative_errors(weights, range(5, 9), fit_scale)
    options = [
        (losses[0, a - 5] + losses[1, b - 5], [a, b])
        for a, b in itertools.product(range(5, 9), repeat=2)
        if most_bytes([a, b]) <= task.budget_bytes
    ]
    np.testing.assert_array_equal(found, min(options)[1])


@pytest.fixture(scope="module")
def bits() -> QuantizationEnv:
    return QuantizationEnv(
        seeded(BranchedNet), make_data(), size_budget=0.5, min_bits=2, device="cpu", store=None
    )


def test_bits_of_each_rule_are_those_of_its_losses(bits: QuantizationEnv) -> None:
    source, names = bits._source(), [layer.name for layer in bits.walk]
    batches = list(source.batches)
    layers = compute_layers(bits.task.model)
    options = list(range(2, 9))
    changes = [weight_changes(layers[n].weight, options, rounded_scale) for n in names]
    energy = [[float(c.double().square().sum()) for c in each] for each in changes]
    losses = {
        "relative_error": relative_errors(
            [layers[n].weight for n in names], options, rounded_scale
        ),
        "hawq_v2": hessian_traces(bits.task.model, names, batches)[:, None] * np.array(energy),
        "fisher_bits": fisher_losses(bits.task.model, names, changes, batches),
        "kl_bits": np.array(kl_curves(source.probes, [[float(n) for n in options]] * len(names))),
    }
    assert set(losses) == set(BIT_RULES)
    for name, loss in losses.items():
        chosen = [int(n) for n in bits.allocate(name)]
        assert bits.most_bytes(chosen) <= bits.budget_bytes
        own = loss[np.arange(len(names)), np.array(chosen) - 2].sum()
        uniform = int(bits.uniform_value()) - 2
        assert own <= loss[:, uniform].sum()
        for t, n in enumerate(chosen):  # one bit more does not fit, or helps nothing
            more = [*chosen[:t], min(8, n + 1), *chosen[t + 1 :]]
            assert bits.most_bytes(more) > bits.budget_bytes or (
                loss[t, min(8, n + 1) - 2] >= loss[t, n - 2] - 1e-4 * loss.max()
            )


def test_what_is_looked_at_is_counted(env: PruningEnv, bits: QuantizationEnv) -> None:
    # Three decisions of 4, 6 and 8 channels: all but the rung of nothing, and that once each.
    found = env.apply_rule("kl_curve")
    assert (found.n_evaluations, found.n_probes) == (0, 4 + 6 + 8)
    found = env.apply_rule("sbpf")
    assert (found.n_evaluations, found.n_probes) == (1 + 3 * 5, 0)
    found = bits.apply_rule("kl_bits")
    assert (found.n_evaluations, found.n_probes) == (0, len(bits.walk) * (1 + 7))
    for name in ("l1", "fisher", "afie"):
        assert env.apply_rule(name)[1:] == (0, 0)


def test_kl_curves_need_no_labels_and_lose_less_than_uniform_rates(env: PruningEnv) -> None:
    source = env._source()._replace(batches=unread())
    found = PRUNING_RULES["kl_curve"](PruningTask(source, env.plan, env.budgets)).values
    assert found == env.allocate("kl_curve")
    assert env.plan.meets(found, env.budgets)
    uniform = [env.uniform_value()] * len(found)
    losses = [
        sum(float(curve[0]) for curve in kl_curves(source.probes, [[rate] for rate in rates]))
        for rates in (found, uniform)
    ]
    assert losses[0] <= losses[1]


def test_names_are_those_of_the_environment(env: PruningEnv) -> None:
    assert env.rules() == tuple(PRUNING_RULES)
    with pytest.raises(ValueError, match="unknown rule 'fishr', did you mean 'fisher'"):
        env.allocate("fishr")
