"""Learning rates that follow rollouts."""

from __future__ import annotations

import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from agents.common.schedules import RolloutSchedule
from tests.agents.fakes import TargetEnv


def test_rate_is_divided_by_ten_after_given_rollouts_and_decays_after_each() -> None:
    rate = RolloutSchedule(0.5, n_rollouts=10, drops=(3, 7), decay=0.99)
    seen = [rate(1.0 - n / 10) for n in range(11)]
    drops = [0] * 3 + [1] * 4 + [2] * 4
    assert seen == pytest.approx([0.5 * 0.99**n / 10**k for n, k in enumerate(drops)])
    # Within a rollout nothing changes.
    assert rate(1.0 - 0.29) == seen[2] and rate(1.0 - 0.3) == seen[3]


def test_without_drops_and_decay_the_rate_stays() -> None:
    rate = RolloutSchedule(0.5, n_rollouts=10)
    assert {rate(progress) for progress in (1.0, 0.5, 0.0)} == {0.5}


class Rates(BaseCallback):
    """Keeps the optimizer's rate before each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def _on_rollout_start(self) -> None:
        self.seen.append(self.model.policy.optimizer.param_groups[0]["lr"])

    def _on_step(self) -> bool:
        return True


def test_an_agent_of_stable_baselines3_follows_it() -> None:
    rate, rates = RolloutSchedule(0.01, n_rollouts=4, drops=(2,), decay=0.9), Rates()
    agent = PPO("MlpPolicy", TargetEnv(n_steps=4), rate, n_steps=4, batch_size=4, device="cpu")
    agent.learn(4 * 4, callback=rates)
    # The rate before a rollout is that of the update before.
    assert rates.seen == pytest.approx([0.01, 0.009, 0.00081, 0.000729])


@pytest.mark.parametrize(
    ("drops", "decay", "message"),
    [
        ((0, 3), 1.0, "drops must be ascending numbers .*, got 0, 3"),
        ((5, 3), 1.0, "got 5, 3"),
        ((3, 3), 1.0, "got 3, 3"),
        ((), 0.0, r"decay must be in \(0, 1\], got 0.0"),
        ((), 1.01, "got 1.01"),
        ((), float("nan"), "got nan"),
    ],
)
def test_wrong_rollouts_are_refused(drops: tuple[int, ...], decay: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutSchedule(0.1, 10, drops, decay)
