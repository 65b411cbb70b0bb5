"""What a run of `experiments.control` notes while an agent learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from agents.penalty_ppo import PenaltyPPO
from experiments.common.run_folder import RunFolder

__all__ = ["CurveRecorder", "UpdateRecorder", "surrogate_improvement"]

Rows = list[dict[str, Any]]
LOGGED = ("kl_old_new", "kl_new_old", "clip_fraction")


class _ReturnRecorder(BaseCallback):
    """Collects the returns of the training episodes, and keeps `rows`."""

    def __init__(self) -> None:
        super().__init__()
        self._returns: list[float] = []
        self.rows: Rows = []

    def _on_step(self) -> bool:
        infos: list[dict[str, Any]] = self.locals["infos"]
        self._returns += [float(info["episode"]["r"]) for info in infos if "episode" in info]
        return True

    def _mean_return(self) -> float:
        """Return the mean of the episodes that have ended since the last call; NaN if none has."""
        mean = float(np.mean(self._returns)) if self._returns else float("nan")
        self._returns.clear()
        return mean


class CurveRecorder(_ReturnRecorder):
    """Evaluates the policy at the start, at equal distances, and when training has ended.

    Every evaluation is of the deterministic policy from the same start states. `rows` holds the
    steps, the mean return, and that of the training episodes since the row before, which has the
    policy's noise in it; NaN if none has ended.

    Args:
        env: Environments to evaluate in.
        folder: Where `curve.csv` and `progress.json` go.
        total_timesteps: Environment steps of the training.
        n_points: Evaluations after the first one.
        n_episodes: Episodes of each.
        seed: Of the start states.
    """

    def __init__(
        self,
        env: VecEnv,
        folder: RunFolder,
        *,
        total_timesteps: int,
        n_points: int,
        n_episodes: int,
        seed: int,
    ) -> None:
        """Note nothing yet; the class's docstring lists the arguments."""
        super().__init__()
        self._env, self._folder = env, folder
        marks = np.linspace(0, total_timesteps, n_points + 1)
        self._marks = [round(mark) for mark in marks]
        self._n_episodes, self._seed = n_episodes, seed

    def _on_training_start(self) -> None:
        self._evaluate(0)

    def _on_step(self) -> bool:
        super()._on_step()
        mark = self._marks[len(self.rows)]
        # The last evaluation is of the policy after the last update.
        if mark < self._marks[-1] and self.num_timesteps >= mark:
            self._evaluate(mark)
        return True

    def _on_training_end(self) -> None:
        self._evaluate(self._marks[-1])

    def _evaluate(self, mark: int) -> None:
        self._env.seed(self._seed)
        mean, _ = evaluate_policy(self.model, self._env, n_eval_episodes=self._n_episodes)
        row = {"timesteps": mark, "mean_return": mean, "train_return": self._mean_return()}
        self.rows.append(row)
        self._folder.write_rows("curve.csv", self.rows)
        progress = {"label": "learning", "episode": mark, "episodes": self._marks[-1]}
        self._folder.write_json("progress.json", progress | {"note": f"mean return {mean:.1f}"})


class UpdateRecorder(_ReturnRecorder):
    """Notes what each update of a `PenaltyPPO` does to the policy, in `rows`.

    A row: the update's number, the steps before it, what the agent has logged (both divergences in
    nats, the clip fraction), `surrogate_improvement`, the mean return of the training episodes that
    have ended in the rollout before the update (NaN if none has), and `return_change`: that of the
    next rollout minus this one (NaN for the last).
    """

    def __init__(self) -> None:
        """Note nothing yet."""
        super().__init__()
        self._rollout: tuple[NDArray[Any], ...] | None = None

    def _on_rollout_end(self) -> None:
        buffer = self._agent.rollout_buffer
        assert isinstance(buffer, RolloutBuffer)
        # Training flattens the buffer's arrays, and the next rollout replaces them.
        arrays = (buffer.observations, buffer.actions, buffer.log_probs, buffer.advantages)
        self._rollout = tuple(array.copy() for array in arrays)
        mean = self._mean_return()
        row = {"update": len(self.rows), "timesteps": self.num_timesteps, "mean_return": mean}
        if self.rows:
            self.rows[-1]["return_change"] = mean - self.rows[-1]["mean_return"]
        self.rows.append(row | {"return_change": float("nan")})

    def _on_rollout_start(self) -> None:
        self._note_update()

    def _on_training_end(self) -> None:
        self._note_update()

    @property
    def _agent(self) -> PenaltyPPO:
        assert isinstance(self.model, PenaltyPPO)
        return self.model

    def _note_update(self) -> None:
        """Complete the row of the update that has just been made, if any."""
        if self._rollout is None:
            return
        logged = self.logger.name_to_value
        self.rows[-1] |= {name: float(logged[f"train/{name}"]) for name in LOGGED}
        improvement = surrogate_improvement(self._agent, *self._rollout)
        self.rows[-1]["surrogate_improvement"] = improvement
        self._rollout = None


def surrogate_improvement(
    agent: PenaltyPPO,
    observations: NDArray[Any],
    actions: NDArray[Any],
    log_probs: NDArray[np.float32],
    advantages: NDArray[np.float32],
) -> float:
    """Return the surrogate of the present policy minus that of the one that has acted **(ours)**.

    It is ``mean((rho - 1) A)`` over a rollout, without a clip or a penalty, rho being the ratio of
    the probabilities of the action and A the advantage, standardised over the rollout: to first
    order, by how much an update has improved the policy.

    Args:
        agent: Has the present policy.
        observations: (n_steps, n_envs, *observation shape).
        actions: (n_steps, n_envs, D), as taken.
        log_probs: (n_steps, n_envs), of the policy that has acted, in nats.
        advantages: (n_steps, n_envs).
    """
    # (n_steps, n_envs, ...) -> (n_steps * n_envs, ...)
    flat = observations.reshape(-1, *observations.shape[2:])
    taken = torch.as_tensor(actions.reshape(-1, *actions.shape[2:]), device=agent.device)
    if isinstance(agent.action_space, spaces.Discrete):
        taken = taken.long().flatten()
    with torch.no_grad():
        distribution = agent.policy.get_distribution(torch.as_tensor(flat, device=agent.device))
        log_prob = distribution.log_prob(taken).cpu().numpy()
    standardised = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    return float(np.mean(np.expm1(log_prob - log_probs.reshape(-1)) * standardised.reshape(-1)))
