"""Informed agents on a task that draws orders: their policy is shown the context to the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.trial.trial import Config, run
from tests.fakes import TINY, quiet, slow


@pytest.mark.parametrize("algo", ["cma_es+l1", *slow("q_critic_ppo+l1")])
def test_trial_of_an_informed_agent_is_confirmed(algo: str, tmp_path: Path) -> None:
    noise = '{"transition_noise": true}'
    config = Config(algo, TINY[0], evaluations=40, env_kwargs=noise, out=tmp_path / "out")
    row = run(config, quiet())
    for budget in (30, 40):
        assert 0.0 <= row[f"confirmed_{budget}"] <= 1.0
