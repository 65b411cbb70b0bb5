"""Whether a critic promises more than was earned: its values minus observed discounted returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from agents.common.arguments import Range, checked

__all__ = [
    "OverestimationCallback",
    "OverestimationRecord",
    "discounted_returns",
    "settled_overestimation",
]

Values = NDArray[np.float64]
LOSSES = ("train/q_loss", "train/critic_loss", "train/value_loss")
"""What `QCriticPPO`, off-policy algorithms and on-policy ones call their critic's loss."""
LOSS_CHANGE = 0.25
"""Most by which the loss of a settled critic may change from a quarter of the episodes to the next,
relative to the larger of the two."""
MOST_LAG = 0.02
"""Most by which a settled critic may be ahead of its target network, relative to the returns; the
square of a loss that is less does not count either."""


class OverestimationRecord(NamedTuple):
    """Means over those transitions of one episode whose return is known."""

    timestep: int
    """Environment steps that the agent had taken when the episode ended."""
    n_transitions: int
    """Transitions averaged, at least 1."""
    mean_value: float
    """Of the critic's values, each from when its action was taken."""
    mean_return: float
    """Of the discounted returns that were observed from the same transitions on."""
    mean_target: float = math.nan
    """Of what the target network said of them; the values again where there is none."""
    loss: float = math.nan
    """Of the critic, in the last update before the episode ended; NaN before the first."""

    @property
    def overestimation(self) -> float:
        """Mean value minus mean return; above 0 the critic has promised too much."""
        return self.mean_value - self.mean_return


class _Step(NamedTuple):
    """What is kept of a step until its episode ends."""

    value: float
    reward: float
    bonus: float
    target: float = math.nan


class OverestimationCallback(BaseCallback):
    """Log `train/q_overestimation`, and keep one record per episode in `records`.

    A value is what the critic says of a transition, from when its action was taken: before
    anything was learnt from it.

    - `QCriticPPO`: Q(s, a) of the executed action.
    - `DDPG`, `TD3`, `SAC`: the smallest Q(s, a) of the critics, the value that targets are made
      of. `SAC`'s critics also promise the entropy bonus of later actions, so its returns include
      it: ``-ent_coef * log pi(a | s)`` of each action taken after the first **(ours)**.
    - `PPO`, `A2C` and their subclasses: V(s).

    Returns are made of the rewards that the agent gets, normalised ones under `VecNormalize`, and
    discounted by its `gamma`. They are those of the actions taken, exploration included, whereas a
    critic learns about the policy as it is now.

    After a truncation the rest of the return is unknown; it has the weight gamma^n at a transition
    that n rewards were observed from. Only transitions at which this is at most `max_tail`
    are counted **(ours)**. At 1 % and gamma = 0.99 these are all but the last 458, at gamma = 1
    none. A task that ends by its time limit alone needs a lower gamma: `Pendulum-v1` with its 200
    steps logs nothing at 0.99, but the first 157 transitions of each episode at 0.9.

    Each record also has what the target network said of the same transitions, and the critic's
    loss: by these `settled_overestimation` judges whether the critic has learnt enough for its
    error to mean anything.

    What is logged is the mean over the episodes that ended since the last dump. Nothing is drawn at
    random and nothing is trained: the weights are the same with and without it. `QCriticPPO` has
    one of its own, `agent.overestimation`.

    Args:
        max_tail: Weight that the unknown rest of a return may have, in [0, 1].

    Raises:
        ValueError: If `max_tail` is out of range; when learning starts, if the agent is another.
    """

    records: list[OverestimationRecord]
    """One for each episode that had a transition whose return is known, in the order of ending."""

    def __init__(self, max_tail: float = 0.01) -> None:
        """Check the argument."""
        super().__init__()
        self.max_tail = checked("max_tail", max_tail, Range(0, 1))
        self.records = []
        self._running: list[list[_Step]] = []
        self._next_obs: Any = None
        self._is_restored = False
        self._loss = math.nan

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to go on from here, in plain Python values."""
        return {
            "records": [tuple(record) for record in self.records],
            "running": [[tuple(step) for step in steps] for steps in self._running],
            "loss": self._loss,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state, in the middle of the episodes that were running then."""
        self.records = [OverestimationRecord(*record) for record in state["records"]]
        self._running = [[_Step(*step) for step in steps] for steps in state["running"]]
        self._loss = state.get("loss", math.nan)
        self._is_restored = True

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the variables of a step, among them modules, which cannot be copied."""
        return vars(self) | {"locals": {}, "globals": {}}

    def _init_callback(self) -> None:
        if not isinstance(self.model, OnPolicyAlgorithm | TD3 | SAC):
            name = type(self.model).__name__
            raise ValueError(f"expected QCriticPPO, PPO, A2C, DDPG, TD3 or SAC, got {name}")

    def _on_rollout_start(self) -> None:
        has_reset = self.model._last_obs is not self._next_obs and not self._is_restored
        if has_reset:
            self._running = [[] for _ in range(self.model.n_envs)]
        self._is_restored = False
        logged = self.logger.name_to_value  # of the last update, unless it has been dumped since
        self._loss = next((float(logged[name]) for name in LOSSES if name in logged), self._loss)

    def _on_step(self) -> bool:
        values, bonuses, targets = (array.tolist() for array in self._judge())
        columns = (values, self.locals["rewards"].tolist(), bonuses, targets)
        for steps, *step in zip(self._running, *columns, strict=True):
            steps.append(_Step(*step))
        for number in np.flatnonzero(self.locals["dones"]):
            truncated = self.locals["infos"][number].get("TimeLimit.truncated", False)
            self._finish(self._running[number], truncated)
            self._running[number] = []
        self._next_obs = self.locals["new_obs"]
        return True

    def _judge(self) -> tuple[Values, Values, Values]:
        """Return the critic's values, entropy bonuses and the target's values, (n_envs,) each."""
        if isinstance(self.model, OnPolicyAlgorithm):
            values = _array(self.locals["values"])
            targets = self.locals.get("target_values")
            known = values if targets is None else _array(targets)
            return values, np.zeros_like(values), known
        assert isinstance(self.model, TD3 | SAC)
        with th.no_grad():
            # Off-policy algorithms advance their last observation after the callbacks.
            obs, _ = self.model.policy.obs_to_tensor(self.model._last_obs)  # type: ignore[arg-type]
            actions = th.as_tensor(self.locals["buffer_actions"], device=self.model.device)
            actions = actions.flatten(1)  # (n_envs, *shape) -> (n_envs, D)
            lowest, target = (
                _array(th.cat(critic(obs, actions), dim=1).min(dim=1).values)  # (n_envs, critics)
                for critic in (self.model.critic, self.model.critic_target)
            )
            if isinstance(self.model, SAC):
                return lowest, _array(_entropy_bonus(self.model, obs, actions)), target
        return lowest, np.zeros_like(lowest), target

    def _finish(self, steps: list[_Step], truncated: bool) -> None:
        """Compare what is known of an episode that has ended."""
        values, rewards, bonuses, targets = zip(*steps, strict=True)
        gamma = float(self.model.gamma)  # type: ignore[attr-defined]
        returns = discounted_returns(rewards, gamma, bonuses)
        n = len(steps)
        if truncated:
            n = sum(gamma**n_rewards <= self.max_tail for n_rewards in range(1, n + 1))
        if n == 0:
            return
        value, earned, target = (float(np.mean(x[:n])) for x in (values, returns, targets))
        record = OverestimationRecord(self.num_timesteps, n, value, earned, target, self._loss)
        self.records.append(record)
        self.logger.record_mean("train/q_overestimation", record.overestimation)


def discounted_returns(
    rewards: Sequence[float], gamma: float, bonuses: Sequence[float] | None = None
) -> Values:
    """Return ``G_t = r_t + sum over k > t of gamma^(k - t) (r_k + b_k)`` of each step, (T,).

    Args:
        rewards: r, T numbers, in the order of the steps.
        gamma: Discount factor in [0, 1].
        bonuses: b, T numbers which count at later steps only, as entropy does in SAC; None for 0.
    """
    returns = np.empty(len(rewards))
    later = 0.0
    for t in reversed(range(len(rewards))):
        returns[t] = rewards[t] + gamma * later
        later = returns[t] + (0.0 if bonuses is None else bonuses[t])
    return returns


def settled_overestimation(records: Sequence[OverestimationRecord]) -> float:
    """Return by how much a critic overestimates once it has settled; NaN if it has not.

    Before, its error tells what it has not learnt yet: a target network that follows slowly is at
    its initial 0 for long, so that values are too low where returns are positive, and too high
    where they are negative. What is taken is the mean over the last quarter of the episodes, if
    there **(ours)** the critic's smoothed loss has stopped to change, its median differing from
    that of the quarter before by `LOSS_CHANGE` at most, and the target network has caught up, its
    values differing from the critic's in the mean by `MOST_LAG` of the returns at most.

    Args:
        records: Of the episodes of a whole training, with losses and values of the target.
    """
    n_each = len(records) // 4
    if n_each == 0:
        return math.nan
    before, last = records[-2 * n_each : -n_each], records[-n_each:]
    scale = MOST_LAG * float(np.mean([abs(record.mean_return) for record in last]))
    losses = [float(np.median([record.loss for record in part])) for part in (before, last)]
    has_caught_up = abs(np.mean([r.mean_value - r.mean_target for r in last])) <= scale
    if not has_caught_up or not _is_steady(*losses, negligible=scale**2):
        return math.nan
    return float(np.mean([record.overestimation for record in last]))


def _is_steady(first: float, second: float, *, negligible: float) -> bool:
    """Return whether a loss has stopped to change, or is nothing; NaN is neither."""
    largest = max(first, second)
    return abs(first - second) <= LOSS_CHANGE * largest or largest <= negligible


def _entropy_bonus(model: SAC, obs: Any, actions: th.Tensor) -> th.Tensor:
    """Return ``-ent_coef * log pi(a | s)`` of actions in [-1, 1], (n_envs,)."""
    mean, log_std, rest = model.actor.get_action_dist_params(obs)
    log_prob = model.actor.action_dist.proba_distribution(mean, log_std, **rest).log_prob(actions)
    if model.log_ent_coef is None:
        return -model.ent_coef_tensor * log_prob
    return -model.log_ent_coef.exp() * log_prob


def _array(values: th.Tensor) -> Values:
    """Move (n_envs, 1) or (n_envs,) to an array, (n_envs,)."""
    return values.detach().cpu().numpy().astype(np.float64).reshape(-1)
