"""Overestimation of critics that have settled, and of those that have not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import DDPG, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback

from agents import OverestimationCallback, QCriticPPO
from agents.overestimation import OverestimationRecord, settled_overestimation
from tests.agents.test_overestimation import Chain, build, measure


class Steady(Chain):
    """Pays a quarter of a known return at each of four steps, whatever is done."""

    def __init__(self, total: float) -> None:
        super().__init__(4)
        self.total = total

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, self.total / 4, *rest


def records_of(total: float, tau: float) -> list[OverestimationRecord]:
    agent = build(
        DDPG,
        Steady(total),
        gamma=1.0,
        tau=tau,
        learning_rate=1e-2,
        batch_size=32,
        policy_kwargs={"net_arch": [32]},
    )
    return measure(agent, 400).records


@pytest.mark.parametrize("total", [3.5, pytest.param(-3.5, marks=pytest.mark.slow)])
def test_a_critic_that_has_settled_is_right_about_a_known_return(total: float) -> None:
    assert abs(settled_overestimation(records_of(total, tau=0.05))) < 0.1


@pytest.mark.parametrize("total", [pytest.param(3.5, marks=pytest.mark.slow), -3.5])
def test_a_target_network_on_its_way_says_nothing_of_its_method(total: float) -> None:
    """Its error has the sign that the return has not, and a settled critic has none."""
    records = records_of(total, tau=0.005)
    late = float(np.mean([record.overestimation for record in records[-25:]]))
    assert math.copysign(1.0, late) == -math.copysign(1.0, total) and abs(late) > 0.3
    assert math.isnan(settled_overestimation(records))


def made_up(
    n: int = 40, value: float = 1.1, target: float = 1.1, late: float = 0.5, early: float = 0.5
) -> list[OverestimationRecord]:
    """Returns of 1, and losses that change where the last quarter begins."""
    losses = [early] * (n - n // 4) + [late] * (n // 4)
    return [OverestimationRecord(i, 4, value, 1.0, target, loss) for i, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("given", "is_settled"),
    [
        ({}, True),
        ({"value": 0.5, "target": 0.5}, True),
        ({"late": 0.4}, True),
        ({"late": 0.3}, False),
        ({"late": 0.8}, False),
        ({"early": 3e-4, "late": 1e-5}, True),
        ({"early": 4e-3, "late": 1e-5}, False),
        ({"target": 1.085}, True),
        ({"target": 1.05}, False),
        ({"target": 1.15}, False),
        ({"n": 3}, False),
        ({"late": math.nan}, False),
        ({"target": math.nan}, False),
    ],
    ids=str,
)
def test_settled_by_hand(given: dict[str, Any], is_settled: bool) -> None:
    records = made_up(**given)
    found = settled_overestimation(records)
    expected = records[0].overestimation if is_settled else math.nan
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("learner", [QCriticPPO, DDPG, SAC], ids=lambda learner: learner.__name__)
def test_records_have_the_targets_values_and_the_loss(learner: Any) -> None:
    agent = build(learner, Chain(2), tau=0.5)
    target: Any = agent.policy.critic_target
    for network in target.q_networks:
        network[-1].weight.data.zero_()
        network[-1].bias.data.fill_(7.0)
    losses: list[float] = []

    class Watch(BaseCallback):
        def _on_rollout_start(self) -> None:
            logged = self.logger.name_to_value
            name = "train/q_loss" if learner is QCriticPPO else "train/critic_loss"
            losses.append(logged.get(name, math.nan))

        def _on_step(self) -> bool:
            return True

    own = getattr(agent, "overestimation", OverestimationCallback())
    callbacks = [Watch()] if learner is QCriticPPO else [own, Watch()]
    records = agent.learn(8, callback=callbacks, log_interval=1000) and own.records
    assert records[0].mean_target == 7.0 and math.isnan(records[0].loss)
    assert records[-1].mean_target < 7.0  # it has followed
    known = [loss for loss in losses if not math.isnan(loss)]
    assert records[-1].loss in known and records[-1].loss > 0.0


def test_v_critics_have_no_target_but_a_loss() -> None:
    records = measure(build(PPO, Chain(2)), 16).records
    assert all(record.mean_target == record.mean_value for record in records)
    assert math.isnan(records[0].loss) and records[-1].loss > 0.0


def test_states_of_earlier_versions_are_read() -> None:
    callback = OverestimationCallback()
    callback.restore({"records": [(4, 2, 1.0, 0.5)], "running": [[(1.0, 0.5, 0.0)]]})
    assert callback.records[0].overestimation == 0.5 and math.isnan(callback.records[0].loss)
    assert callback.state()["records"][0][:4] == (4, 2, 1.0, 0.5)
