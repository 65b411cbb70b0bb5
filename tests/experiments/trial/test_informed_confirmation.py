"""Informed agents on a task that draws orders: their policy is shown the context to the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.trial.trial import Config, run
from tests.fakes import NOISY, TINY, quiet, slow


@pytest.mark.parametrize("algo", ["cma_es+l1", *slow("q_critic_ppo+l1")])
def test_trial_of_an_informed_agent_is_confirmed(algo: str, tmp_path: Path) -> None:
    noise = '{"transition_noise": true}'
    config = Config(algo, TINY[0], evaluations=40, env_kwargs=noise, out=tmp_path / "out")
    row = run(config, quiet())
    for budget in (30, 40):
        assert 0.0 <= row[f"confirmed_{budget}"] <= 1.0


def test_what_the_rule_has_evaluated_counts(tmp_path: Path) -> None:
    single, informed = (
        run(Config(algo, NOISY[0], evaluations=40, out=tmp_path / algo), quiet())
        for algo in ("sbpf", "random+sbpf")
    )
    n_of_rule = single["n_evaluations"] - 1
    assert n_of_rule > 5 and informed["n_episodes"] == 32 - n_of_rule
    assert informed["n_evaluations"] == 32 + informed["n_fresh"]
