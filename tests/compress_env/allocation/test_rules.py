"""Rules by name: what they look at, and that they are the functions they are made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from compress_env.allocation import channel_norms, rank_channels, relative_errors
from compress_env.allocation.rules import BIT_RULES, PRUNING_RULES, BitTask, PruningTask
from compress_env.allocation.saliency import Norm
from compress_env.envs.pruning import PruningEnv
from compress_env.quantization.scales import fit_scale
from tests.fakes import PlainNet, make_data, seeded

NO_IMAGES: tuple[Norm, ...] = ("l1", "l2", "lamp")


def unread() -> Iterator[tuple[Tensor, Tensor]]:
    raise AssertionError("images were read")
    yield


@pytest.fixture(scope="module")
def env() -> PruningEnv:
    return PruningEnv(seeded(PlainNet), make_data(), flops_budget=0.5, device="cpu", store=None)


@pytest.mark.parametrize("name", NO_IMAGES)
def test_norms_look_at_no_image(name: Norm, env: PruningEnv) -> None:
    found = PRUNING_RULES[name](PruningTask(env.task.model, env.plan, env.budgets, unread()))
    scores = channel_norms(env.task.model, env.plan.decisions, name)
    assert found == rank_channels(scores, env.plan, env.budgets) == env.allocate(name)


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_gradients_are_of_the_images_given(name: str, env: PruningEnv) -> None:
    batches = [
        (torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(s)), torch.arange(8) % 3)
        for s in (0, 1)
    ]
    found = PRUNING_RULES[name](PruningTask(env.task.model, env.plan, env.budgets, batches))
    assert len(found) == len(env.walk) and env.plan.meets(found, env.budgets)
    with pytest.raises(AssertionError, match="images were read"):
        PRUNING_RULES[name](PruningTask(env.task.model, env.plan, env.budgets, unread()))


def test_bits_lose_the_least_that_the_bytes_allow() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [scale * torch.randn(2, 3, generator=generator) ** 3 for scale in (1.0, 2.0)]
    sizes = (5, 11)

    def most_bytes(bits: Sequence[int]) -> int:
        given = [*bits, *[5] * (2 - len(bits))]
        return 7 + sum(n * size for n, size in zip(given, sizes, strict=True))

    task = BitTask(weights, fit_scale, 5, most_bytes, 7 + 6 * 16)
    found = BIT_RULES["relative_error"](task)
    losses = relative_errors(weights, range(5, 9), fit_scale)
    options = [
        (losses[0, a - 5] + losses[1, b - 5], [a, b])
        for a, b in itertools.product(range(5, 9), repeat=2)
        if most_bytes([a, b]) <= task.budget_bytes
    ]
    np.testing.assert_array_equal(found, min(options)[1])


def test_names_are_those_of_the_environment(env: PruningEnv) -> None:
    assert env.rules() == tuple(PRUNING_RULES)
    with pytest.raises(ValueError, match="unknown rule 'fishr', did you mean 'fisher'"):
        env.allocate("fishr")
