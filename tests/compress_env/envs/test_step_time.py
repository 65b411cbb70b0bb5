"""What a step costs: choosing channels by magnitude against choosing them by LASSO."""

from __future__ import annotations

from time import process_time
from typing import Any

import numpy as np
import pytest

from compress_env.envs.pruning import PruningEnv
from tests.compress_env.allocation.networks import SHAPES, network
from tests.fakes import make_data

N_STEPS = 4


def make(method: Any) -> PruningEnv:
    channels, side, _ = SHAPES["mobilenet_v2_narrow"]
    return PruningEnv(
        network("mobilenet_v2_narrow"),
        make_data(n_classes=10, side=side, channels=channels),
        method=method,
        finetune_steps=0,
        finetune_config={"batch_norm_batches": 1},
        reward_at="episode",
        scorer=lambda _: 0.5,
        device="cpu",
        store=None,
    )


def step_seconds(env: PruningEnv) -> float:
    """Return the processor's time for the first steps of an episode."""
    env.reset()
    start = process_time()
    for _ in range(N_STEPS):
        env.step(np.zeros(1, np.float32))
    return process_time() - start


@pytest.mark.slow
def test_magnitude_takes_at_most_half_as_long_as_lasso_on_a_mobilenet() -> None:
    by_magnitude, by_lasso = make("magnitude"), make("channel")
    # Taken by turns, as a busy machine slows both; the least of each is hardly disturbed.
    pairs = [(step_seconds(by_magnitude), step_seconds(by_lasso)) for _ in range(3)]
    magnitude, lasso = map(min, zip(*pairs, strict=True))
    assert magnitude <= 0.5 * lasso
