"""One policy for several budgets: a wrapper that draws the budget of each episode and shows it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from compress_env.counts import check_number
from compress_env.envs.options import noise_seed_of
from compress_env.envs.stage import Action, Observation
from compress_env.envs.wrappers.context import stage_of

__all__ = ["SeveralBudgets"]


class SeveralBudgets(gym.Wrapper[Observation, Action, Observation, Action], RecordConstructorArgs):
    """Gives each episode one of several budgets, which is part of what is observed **(ours)**.

    `reset` draws the budget: all of them come once, in random order, before any comes again.
    `reset(options={"budget": b})` takes b, one of them or any other that can be met. It is the
    `flops_budget` or `size_budget`, or whichever the environment has; of several budgets the first
    changes, and the others hold too. The prior is that of the budget: a rule is applied for each
    of them when the wrapper is made, and once for any other. `info["budget"]` tells the budget.

    ## Added to the observation

    After all that the environment, or a `LayerContext` within, shows:

    | Num | Name | Min | Max | Meaning |
    | --- | --- | --- | --- | --- |
    | last | `budget` | 0 | 1 | what the episode may cost, a fraction of the uncompressed network |

    What a step does to the network does not depend on budgets, so all share one transition store.
    Rewards of different budgets are not comparable: an agent that keeps its best episodes of all
    keeps those of the loosest budget.
    """

    def __init__(self, env: gym.Env[Observation, Action], budgets: Iterable[float]) -> None:
        """Allocate the prior for each budget; until a `reset` the environment keeps its own.

        Args:
            env: A pruning or quantization environment with a budget, with or without wrappers.
            budgets: Fractions of what the uncompressed network costs, at least one, all different.

        Raises:
            TypeError: If it is of neither stage, its observations are no vectors, or the budgets
                are no real numbers.
            ValueError: If it has no budget, or the budgets are not different or cannot be met.
            FloatingPointError: If a rule meets gradients that are not finite.
        """
        self.budgets = _as_numbers(budgets)
        RecordConstructorArgs.__init__(self, budgets=self.budgets)
        super().__init__(env)
        self.stage = stage_of(env)
        if not self.budgets or len(set(self.budgets)) < len(self.budgets):
            raise ValueError(f"expected budgets that differ, at least one, got {self.budgets}")
        inner = env.observation_space
        if not isinstance(inner, spaces.Box) or len(inner.shape) != 1:
            raise TypeError(f"expected observations that are vectors, got {inner}")
        ends = ((inner.low, np.float32(0.0)), (inner.high, np.float32(1.0)))
        low, high = (np.append(bound, end) for bound, end in ends)
        self.observation_space = spaces.Box(low, high, dtype=np.float32)
        self._left: list[float] = []  # to come before any comes again, the next one last
        self.stage.allocate_budgets(self.budgets)

    @property
    def budget(self) -> float:
        """That of the present episode."""
        budget = self.stage.budget_fraction
        assert budget is not None  # or there would be no wrapper
        return budget

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode with a budget that is drawn, or given.

        Args:
            seed: As of the environment; the order of the budgets follows from it too.
            options: Those of the environment, and `{"budget": b}`.

        Raises:
            TypeError: If the budget is no real number, or a seed no integer.
            ValueError: If the budget cannot be met, there is no such option, or a seed is out of
                range.
        """
        noise_seed_of(options, "budget")  # before anything is changed
        given = dict(options or {})
        budget = given.pop("budget", None)
        if seed is not None:
            self.env.reset(seed=seed)
            self._left = []
        self.stage.take_budget(self._draw() if budget is None else budget)
        observation, info = self.env.reset(options=given)
        return self._with_budget(observation), info | {"budget": self.budget}

    def step(self, action: Action) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take a step of the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        info = info | {"budget": self.budget}
        return self._with_budget(observation), reward, terminated, truncated, info

    def episode_state(self) -> dict[str, Any]:
        """Return what `restore_episode` needs to go on from here, in plain Python values."""
        state: dict[str, Any] = self.env.get_wrapper_attr("episode_state")()
        generator = self.np_random.bit_generator.state
        return state | {"budget": self.budget, "left": list(self._left), "np_random": generator}

    def restore_episode(self, state: dict[str, Any]) -> Observation:
        """Take the actions of an episode again, and return the observation that followed them."""
        self.stage.take_budget(state["budget"])
        self._left = list(state["left"])
        restore = self.env.get_wrapper_attr("restore_episode")
        return self._with_budget(restore(state))

    def _draw(self) -> float:
        if not self._left:
            self._left = self.np_random.permutation(self.budgets).tolist()
        return self._left.pop()

    def _with_budget(self, observation: Observation) -> Observation:
        return np.append(observation, np.float32(self.budget))


def _as_numbers(budgets: Iterable[float]) -> tuple[float, ...]:
    if isinstance(budgets, str) or not isinstance(budgets, Iterable):
        raise TypeError(f"budgets must be a sequence of real numbers, got {budgets!r}")
    return tuple(check_number("budget", budget) for budget in budgets)
