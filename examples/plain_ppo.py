"""PPO (arXiv 1707.06347) in one file of plain PyTorch, on a compression environment.

    python examples/plain_ppo.py --env-id compress_env/PruneLeNet5Digits-v1 --n-envs 2

Shapes: T steps of N environments, D entries of an observation, B of the T N transitions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.distributions import Normal

import compress_env  # noqa: F401  # registers the ids


@dataclass(frozen=True)
class Config:
    """What the command line takes."""

    env_id: str = "compress_env/PruneLeNet5Digits-v1"
    """A registered environment."""
    n_envs: int = 2
    """Environments side by side."""
    vectorization_mode: Literal["sync", "async"] = "sync"
    """In one process, or one process each."""
    finetune_steps: int = 5
    """Minibatches of fine-tuning after each layer."""
    store: str = "memory"
    """Where the results of steps are kept; a file shares them between environments and runs."""
    total_timesteps: int = 400
    """Steps, over all environments."""
    n_steps: int = 16
    """Steps of each environment per update, T."""
    n_epochs: int = 10
    """Passes over them per update."""
    batch_size: int = 16
    """Transitions per minibatch."""
    learning_rate: float = 1e-3
    """Step size of Adam."""
    gae_lambda: float = 0.95
    """Weight of longer advantages."""
    clip_range: float = 0.2
    """How far a ratio of probabilities may profit from leaving 1."""
    seed: int = 0
    """Of weights and actions."""


class Best(NamedTuple):
    """The network of the episode with the highest reward; each meets the budget."""

    reward: float = -math.inf  # sum over the episode; of equal ones the more accurate counts
    accuracy: float = math.nan  # on the validation images
    rates: tuple[float, ...] = ()  # fraction of each layer that was removed, or its bits


class Agent(nn.Module):
    """A Gaussian actor with a standard deviation of its own, and a critic V(s)."""

    def __init__(self, n_entries: int, n_actions: int) -> None:
        """Build both networks; the first mean is close to 0 everywhere."""
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(n_entries, 64), nn.Tanh(), nn.Linear(64, n_actions))
        self.critic = nn.Sequential(nn.Linear(n_entries, 64), nn.Tanh(), nn.Linear(64, 1))
        self.log_std = nn.Parameter(torch.full((n_actions,), -0.5))
        nn.init.orthogonal_(self.actor[-1].weight, 0.01)  # type: ignore[arg-type]

    def policy(self, observations: Tensor) -> Normal:
        """Return the distribution of actions, (B, actions), not clipped to their bounds."""
        return Normal(self.actor(observations), self.log_std.exp())

    def value(self, observations: Tensor) -> Tensor:
        """Return V(s), (B,)."""
        return self.critic(observations).squeeze(-1)  # type: ignore[no-any-return]


class Rollout(NamedTuple):
    """T steps of N environments: (T, N, D), (T, N, actions), and (T, N) each."""

    observations: Tensor
    actions: Tensor  # not clipped
    log_prob: Tensor
    values: Tensor
    rewards: Tensor
    dones: Tensor  # 1 where a step ended its episode


def make_envs(config: Config) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Build the environments; a step that ends an episode also resets its environment."""
    kwargs: dict[str, Any] = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    if config.vectorization_mode == "async":
        kwargs["context"] = "spawn"
    return gym.make_vec(
        config.env_id,
        num_envs=config.n_envs,
        vectorization_mode=config.vectorization_mode,
        vector_kwargs=kwargs,
        finetune_steps=config.finetune_steps,
        store=config.store,
        reward_at="episode",
    )


class Collector:
    """Steps the environments, and remembers the best of their episodes."""

    def __init__(self, envs: Any, seed: int) -> None:
        """Reset the environments."""
        self.envs = envs
        self.name: str = envs.get_attr("value_name")[0]
        self.best = Best()
        self._rates: list[list[float]] = [[] for _ in range(envs.num_envs)]
        self._returns = np.zeros(envs.num_envs)
        self._observations = torch.as_tensor(envs.reset(seed=seed)[0])

    @torch.no_grad()
    def collect(self, agent: Agent, n_steps: int) -> tuple[Rollout, Tensor]:
        """Return T steps, and the value of what follows each environment's last, (N,)."""
        space, steps = self.envs.single_action_space, []
        for _ in range(n_steps):
            observations, policy = self._observations, agent.policy(self._observations)
            actions = policy.sample()  # type: ignore[no-untyped-call]
            executed = actions.numpy().clip(space.low, space.high)
            new, rewards, dones, _, info = self.envs.step(executed)  # nothing is ever truncated
            self._note(rewards, dones, info)
            log_prob = policy.log_prob(actions).sum(-1)  # type: ignore[no-untyped-call]
            numbers = (torch.as_tensor(each, dtype=torch.float32) for each in (rewards, dones))
            steps.append((observations, actions, log_prob, agent.value(observations), *numbers))
            self._observations = torch.as_tensor(new.copy())
        rollout = Rollout(*(torch.stack(column) for column in zip(*steps, strict=True)))
        return rollout, agent.value(self._observations)

    def _note(self, rewards: np.ndarray, dones: np.ndarray, info: dict[str, Any]) -> None:
        self._returns += rewards
        for number, done in enumerate(dones):
            last = info["final_info"] if done else info
            self._rates[number].append(float(last[self.name][number]))
            if done:
                reward, accuracy = float(self._returns[number]), float(last["accuracy"][number])
                # The accuracy of a failed episode is NaN.
                if not math.isnan(accuracy) and (reward, accuracy) > self.best[:2]:
                    self.best = Best(reward, accuracy, tuple(self._rates[number]))
                self._rates[number], self._returns[number] = [], 0.0


def advantages_of(rollout: Rollout, last_values: Tensor, config: Config) -> Tensor:
    """Return generalised advantages (arXiv 1506.02438), (T, N)."""
    advantages = torch.zeros_like(rollout.rewards)
    later, next_values = torch.zeros_like(last_values), last_values
    for t in reversed(range(len(advantages))):
        goes_on = 1.0 - rollout.dones[t]  # nothing is discounted: episodes are short
        delta = rollout.rewards[t] + goes_on * next_values - rollout.values[t]
        later = advantages[t] = delta + goes_on * config.gae_lambda * later
        next_values = rollout.values[t]
    return advantages


def update(
    agent: Agent, adam: torch.optim.Adam, rollout: Rollout, gae: Tensor, config: Config
) -> None:
    """Take `n_epochs` passes over a rollout with the clipped surrogate."""
    returns = (gae + rollout.values).flatten()
    observations, actions = (each.flatten(0, 1) for each in rollout[:2])  # (T, N, .) -> (B, .)
    old_log_prob, advantages = rollout.log_prob.flatten(), gae.flatten()
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    for _ in range(config.n_epochs):
        for batch in torch.randperm(len(returns)).split(config.batch_size):  # type: ignore[no-untyped-call]
            log_prob = agent.policy(observations[batch]).log_prob(actions[batch]).sum(-1)  # type: ignore[no-untyped-call]
            ratio = (log_prob - old_log_prob[batch]).exp()
            clipped = ratio.clamp(1.0 - config.clip_range, 1.0 + config.clip_range)
            gain = torch.min(ratio * advantages[batch], clipped * advantages[batch]).mean()
            value_loss = (returns[batch] - agent.value(observations[batch])).square().mean()
            adam.zero_grad()
            (0.5 * value_loss - gain).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            adam.step()


def train(config: Config) -> Best:
    """Train an agent; return the best network that it has come by."""
    torch.manual_seed(config.seed)
    collector = Collector(make_envs(config), config.seed)
    spaces = (collector.envs.single_observation_space, collector.envs.single_action_space)
    agent = Agent(*(math.prod(space.shape) for space in spaces))
    adam = torch.optim.Adam(agent.parameters(), config.learning_rate)
    for step in range(0, config.total_timesteps, config.n_steps * config.n_envs):
        rollout, last_values = collector.collect(agent, config.n_steps)
        update(agent, adam, rollout, advantages_of(rollout, last_values, config), config)
        print(f"{step + rollout.dones.numel()} steps, best accuracy {collector.best.accuracy:.4f}")
    collector.envs.close()
    return collector.best


if __name__ == "__main__":
    found = train(tyro.cli(Config))
    print(f"best episode: accuracy {found.accuracy:.1%}, rates", *map("{:.3f}".format, found.rates))
