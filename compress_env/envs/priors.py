"""Where the middle of the actions lies: the interval of a decision, and the prior's value in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress_env.counts import check_number
from compress_env.envs.episode import EpisodePlace
from compress_env.envs.options import PriorOption
from compress_env.envs.stage import Action
from compress_env.envs.state import action_to_value, value_to_action
from compress_env.names import check_name
from compress_env.seeding import derive_generator
from compress_env.store.store import Transition
from compress_env.task.finetune import compute_logits
from compress_env.task.layers import largest_bits_within

if TYPE_CHECKING:
    from compress_env.allocation.rules import Allocation, Source

__all__ = ["PriorActions", "copied_prior", "rescale_rates", "shift_bits"]

N_BISECTIONS = 24
N_CALIBRATION = 512
"""Calibration images at most whose answers rules look at."""
LEAST_KEPT = 1e-3
"""A rate of 1 counts as keeping this fraction, or no factor would change it."""


class PriorActions(EpisodePlace):
    """Actions are about a prior: 0 stands for its value, clipped into the decision's interval.

    [-1, 0] is mapped affinely onto [`action_low`, prior], [0, 1] onto [prior, `action_high`].
    While decisions come to what the prior has planned, the plan stays as it is; after any other the
    stage makes a new one for the later decisions from what is left of the budget **(ours)**. So the
    map follows from the decisions executed so far.
    """

    prior_evaluations: int = 0
    """Networks that were scored to arrive at the prior, of all budgets that it was allocated for.

    A copy has what the original had: what both have in common was spent once."""
    prior_seconds: float = 0.0
    """Wall-clock time of its rule, likewise."""

    @property
    def budget_fraction(self) -> float | None:
        """What the budget allows, a fraction of what the uncompressed network costs, if any.

        Of several budgets it is the first (`PruningEnv.budget_unit`).
        """
        given: Any = self._ezpickle_kwargs[self._budget_keyword]
        return None if given is None else float(given)

    @property
    def prior_value(self) -> float:
        """What action 0 stands for at the layer about to be decided: a pruning rate or bits."""
        return action_to_value(np.zeros(1), self._interval, self._clipped_prior())

    def action_for(self, value: float, observation: NDArray[Any] | None = None) -> Action:
        """Return the action that stands for a value of the layer about to be decided.

        Args:
            value: A pruning rate or bits, clipped to what is feasible; not NaN.
            observation: (9,) or more entries, the first nine the `LayerState` that the action is
                for: it is checked to be the present one.

        Returns:
            (1,) float32 in [-1, 1]; 0 for the prior's own value.

        Raises:
            ValueError: If the value is NaN, or the observation is of another moment.
        """
        here = self._get_obs()
        if observation is not None and not np.array_equal(observation[: len(here)], here):
            raise ValueError(
                "expected the present observation of the environment, whose prior says what "
                "actions stand for, got another"
            )
        if np.isnan(value):
            raise ValueError("the value must be a number, got nan")
        return value_to_action(value, self._interval, self._clipped_prior())

    def take_budget(self, budget: float) -> None:
        """End the episode; those from the next `reset` on have this budget in place of the present.

        The prior is allocated for it: a rule is applied again, at the first time for each budget,
        and values are rescaled if they exceed it. Transitions do not depend on budgets.

        Args:
            budget: A fraction of what the uncompressed network costs; of several budgets it takes
                the place of the first (`PruningEnv.budget_unit`).

        Raises:
            TypeError: If it is no real number.
            ValueError: If there is no budget, or it cannot be met.
            FloatingPointError: As `allocate`.
        """
        (budget,) = self.allocate_budgets([budget])
        self._set_budget(budget)
        self._ended = True
        self._allocation = self._allocated(budget)
        self._own({self._budget_keyword: budget})

    def allocate_budgets(self, budgets: Sequence[float]) -> tuple[float, ...]:
        """Allocate the prior for budgets that `take_budget` may be given; the present one stays.

        So does the episode, and the others are not allocated if one of them cannot be met.

        Args:
            budgets: As of `take_budget`.

        Returns:
            The budgets as floats.

        Raises:
            TypeError: If one is no real number.
            ValueError: If there is no budget, or one cannot be met.
            FloatingPointError: As `allocate`.
        """
        own = self.budget_fraction
        if own is None:
            raise ValueError("expected an environment with a budget, got none")
        checked = tuple(check_number("budget", budget) for budget in budgets)
        try:
            for budget in checked:
                self._set_budget(budget)
            for budget in checked:
                self._set_budget(budget)
                self._allocated(budget)
        finally:
            self._set_budget(own)
        return checked

    def rules(self) -> tuple[str, ...]:
        """Return the names of the rules that `allocate` knows, `compress_env.allocation.rules`."""
        return tuple(self._rules())

    def allocate(self, rule: str) -> list[float]:
        """Return the value that a rule gives each decision, (T,) pruning rates or bits.

        Raises:
            ValueError: If there is no rule of that name, no budget, or the rule cannot be used on
                this network.
            FloatingPointError: If a gradient, an answer or a score is not finite.
        """
        return self.apply_rule(rule).values

    def apply_rule(self, rule: str) -> Allocation:
        """Return what `allocate` does, with the number of networks looked at for it."""
        rules = self._rules()
        check_name("rule", rule, rules)
        if not self._has_budget:
            raise ValueError("expected an environment with a budget, got none")
        return rules[rule]()

    def _source(self) -> Source:
        """Return what rules look at."""
        from compress_env.allocation.rules import N_IMAGES, Source
        from compress_env.allocation.scores.curves import Probes  # which takes time to import

        task, seed = self.task, self.task_seed
        n_batches = -(-N_IMAGES // min(task.config.batch_size, len(task.data.train)))
        batches = task.train_batches(n_batches, derive_generator(seed, 0, 4))
        probes = Probes(self._probe, self._answers)
        return Source(task.model, batches, probes, task.score, seed)

    def _probe(self, t: int, value: float | None) -> nn.Module:
        """Return the network with decision `t` alone carried out, or with none."""
        if value is not None:
            return self.compress_layer(t, value)
        model = self.task.copy_model()
        self.task.reestimate_batch_norm(model, derive_generator(self.task_seed, t, 1))
        return model

    @torch.inference_mode()
    def _answers(self, model: nn.Module) -> Tensor:
        """Return the logits of a network on the first calibration images, (B, K)."""
        bf16, seen, n_left = self.task.config.bf16, [], N_CALIBRATION
        for images, _ in self.task.calibration_batches():
            seen.append(compute_logits(model.eval(), images[:n_left], bf16=bf16))
            n_left -= len(images)
            if n_left <= 0:
                break
        return torch.cat(seen)

    def _clipped_prior(self) -> float | None:
        if self._planned is None:
            return None
        low, high = self._interval
        return min(max(self._planned[0], low), high)

    def _look_ahead(self, result: Transition) -> None:
        """Set what the next action stands for."""
        self._planned = self._plan_on(result)
        self._interval = self._bounds(self._executed, result)

    def _plan_on(self, result: Transition) -> tuple[float, ...] | None:
        """Return the prior's values of the later decisions, after the last of `_executed`."""
        if self._planned is None:
            return None
        *before, last = self._executed
        first, *later = self._planned
        if self._decide(tuple(before), first)[0] == last or not self._has_budget:
            return tuple(later)
        return tuple(self._rescale(self._executed, later, result))

    def _allocated(self, budget: float | None) -> tuple[float, ...] | None:
        """Return the prior's value of every decision, at the first time for a budget allocated.

        Args:
            budget: The present one.
        """
        if budget not in self._allocations:
            self._allocations[budget] = self._allocate_prior()
        return self._allocations[budget]

    def _allocate_prior(self) -> tuple[float, ...] | None:
        """Return the prior's value of every decision, None for the middle of each interval.

        Raises:
            ValueError: If the prior is unknown, of another length, out of range or needs a budget.
            FloatingPointError: If a rule meets gradients that are not finite.
        """
        prior = self.prior
        if prior == "middle" or (prior == "uniform" and not self._has_budget):
            return None
        if prior == "uniform":
            return (self.uniform_value(),) * len(self.walk)
        values = self._by_rule(prior) if isinstance(prior, str) else self._checked(prior)
        if self._has_budget and not self._meets((), values, self._uncompressed):
            values = self._rescale((), values, self._uncompressed)
        return tuple(values)

    def _by_rule(self, name: str) -> Sequence[float]:
        check_name("prior", name, ("middle", "uniform", *self.rules()))
        if not self._has_budget:
            raise ValueError(f"prior {name!r} needs a budget, got none")
        start = perf_counter()
        found = self.apply_rule(name)
        self.prior_evaluations += found.n_evaluations
        self.prior_seconds += perf_counter() - start
        return found.values

    def _checked(self, values: tuple[float, ...]) -> tuple[float, ...]:
        low, high = self._range
        if len(values) != len(self.walk):
            raise ValueError(
                f"prior must have {len(self.walk)} values, one for each decision, got {len(values)}"
            )
        for value in values:
            if not low <= value <= high or (self.values_are_whole and value % 1.0):
                kind = "whole numbers" if self.values_are_whole else "numbers"
                raise ValueError(
                    f"prior must hold {kind} in [{low:g}, {high:g}], what {self.value_name} may be "
                    f"here, got {value:g}"
                )
        return values


def copied_prior(prior: PriorOption) -> str | tuple[float, ...]:
    """Return a prior as it was given, as a name or as values that nobody changes.

    Raises:
        TypeError: If it is neither a string nor a sequence of numbers.
    """
    if isinstance(prior, str):
        return prior
    try:
        array = np.asarray(prior, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(())
    if array.ndim != 1:
        got = " ".join(repr(prior).split())
        raise TypeError(f"prior must be a name or one value for each decision, got {got:.80}")
    return tuple(array.tolist())


def rescale_rates(
    rates: Sequence[float], highest: float, meets: Callable[[Sequence[float]], bool]
) -> list[float]:
    """Return rates that keep a common multiple of what the given ones keep, as much as is allowed.

    The rate a becomes 1 - c (1 - a), within [0, `highest`], with the largest c that meets the
    budget **(ours)**: equal rates stay equal, and c is what narrow networks call their width.

    Args:
        rates: (T,) in [0, 1].
        highest: Highest rate, at which `meets` holds for all.
        meets: Whether rates meet the budget; once true it stays true for higher rates.
    """
    kept = np.maximum(1.0 - np.asarray(rates, np.float64), LEAST_KEPT)

    def at(factor: float) -> list[float]:
        scaled: list[float] = np.clip(1.0 - factor * kept, 0.0, highest).tolist()
        return scaled

    low, high = 0.0, 1.0 / float(kept.min())
    if meets(at(high)):
        return at(high)
    for _ in range(N_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if meets(at(middle)) else (low, middle)
    return at(low)


def shift_bits(
    bits: Sequence[int],
    bounds: tuple[int, int],
    meets: Callable[[Sequence[int]], bool],
    *,
    fills: bool,
) -> list[int]:
    """Return bits all of which are raised or lowered by as much, as high as is allowed **(ours)**.

    Args:
        bits: (T,) within the bounds.
        bounds: Fewest and most bits; `meets` holds where all are the fewest.
        meets: Whether bits meet the budget.
        fills: Whether what is left is used by one more bit for each layer for which that fits, in
            the order of the walk.
    """
    lowest, highest = bounds

    def at(shift: float) -> list[int]:
        return [min(highest, max(lowest, n + int(shift))) for n in bits]

    span = highest - lowest
    chosen = at(largest_bits_within(-span, span, lambda shift: meets(at(shift))))
    for t, n in enumerate(chosen if fills else []):
        more = [*chosen[:t], min(highest, n + 1), *chosen[t + 1 :]]
        chosen = more if meets(more) else chosen
    return chosen
