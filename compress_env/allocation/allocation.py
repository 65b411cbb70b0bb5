"""From scores of layers to pruning rates that meet a target.

A score is about the filters of the layer that has it; a decision of the pruning environment is
about the channels that a layer reads. `PruningPlan.producers` says whose filters those are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from compress_env.pruning.cost import Unit
from compress_env.pruning.plan import PruningPlan

__all__ = ["MAX_RATE", "allocate", "allocate_in_rounds", "decision_scores"]

MAX_RATE = 0.99
"""Highest rate that a score leads to; the plan may have a lower one."""
LOWEST_SHARE = 1e-3
"""A score below this share of the highest counts as that share."""
RATE_MARGIN = 1e-6
"""Distance to the rate at which a channel goes; less would be lost in float32."""
N_BISECTIONS = 100

Rates = NDArray[np.float64]


def decision_scores(scores: pd.Series, plan: PruningPlan) -> pd.Series:
    """Return one score per decision: the mean over the layers that produce its channels **(ours)**.

    Args:
        scores: By layer, each finite and 0 or more; layers that produce nothing are ignored.
        plan: Of the network's pruning environment.

    Returns:
        (T,) scores, indexed by the deciding layer, in the order of the walk.

    Raises:
        ValueError: If a producing layer has no score, or one that is negative or not finite.
    """
    for name in dict.fromkeys(name for each in plan.producers for name in each):
        if name not in scores:
            raise ValueError(f"expected a score for {name!r}, got them for {list(scores.index)}")
        if not 0.0 <= scores[name] < math.inf:
            raise ValueError(f"scores must be finite and 0 or more, got {scores[name]} of {name!r}")
    means = [float(scores[list(each)].mean()) for each in plan.producers]
    names = [decision.layer.name for decision in plan.decisions]
    return pd.Series(means, index=pd.Index(names, name="layer"), name="score")


def allocate(
    scores: pd.Series,
    target: float | Mapping[Unit, float],
    unit: Unit = "filters",
    *,
    plan: PruningPlan,
    start: Sequence[float] | None = None,
) -> pd.DataFrame:
    """Turn scores into pruning rates: the lower the score, the higher the rate.

    Decision t gets the rate (Lu et al., arXiv 2208.06660; `start` is **(ours)**)

        rate_t = min(cap, start_t + kappa * max(score) / score_t) ,     cap = 0.99 ,

    or the plan's `max_pruning_rate` if that is lower. Scores below a thousandth of the highest
    count as that, and if all are 0 they count as equal **(ours)**. At least one channel of each
    group stays. kappa is found by bisection on the exact cost of whole channels: the least that is
    enough to remove the target. Where several layers would lose a channel at this very kappa, only
    as many of them do, in the order of the walk, as are needed.

    Args:
        scores: By layer (`afie(model)["afie"]`, `sensitivity(...)["sensitivity"]`).
        target: Fraction to be removed, in [0, 1): of the filters that can go, of the unpruned MACs
            or of the unpruned parameters; or several such by unit, all of which are met.
        unit: What is counted, where the target is a number.
        plan: Of the network's pruning environment, `PruningEnv.plan`.
        start: (T,) rates to go on from; 0 when None.

    Returns:
        One row per decision, indexed by the deciding layer: `producers` (names, joined by a
        space), `score` (mean over them) and `pruning_rate`.

    Raises:
        ValueError: If the unit is unknown, the target cannot be met, or a score is not valid.
    """
    by_decision = decision_scores(scores, plan)
    cap = min(MAX_RATE, plan.max_pruning_rate)
    targets = target if isinstance(target, Mapping) else {unit: target}
    limits = {unit: _limit(plan, each, unit, cap) for unit, each in targets.items()}
    first = np.zeros(len(by_decision)) if start is None else np.asarray(start, np.float64)
    slopes = _slopes(by_decision.to_numpy())

    def rates_at(kappa: float) -> Rates:
        return np.minimum(cap, first + kappa * slopes)

    def meets(rates: Rates) -> bool:
        return plan.meets(rates.tolist(), limits)

    low, high = 0.0, 1.0  # every slope is at least 1: at kappa = 1 every rate is at its cap
    if meets(rates_at(low)):
        rates = rates_at(low)
    else:
        for _ in range(N_BISECTIONS):
            middle = (low + high) / 2.0
            low, high = (low, middle) if meets(rates_at(middle)) else (middle, high)
        before = np.maximum(first, rates_at(low) - RATE_MARGIN)
        rates = _fewest(before, np.minimum(cap, rates_at(high) + RATE_MARGIN), meets)
    producers = [" ".join(each) for each in plan.producers]
    columns = {"producers": producers, "score": by_decision, "pruning_rate": rates}
    return pd.DataFrame(columns, index=by_decision.index)


def allocate_in_rounds(
    model: nn.Module,
    measure: Callable[[nn.Module], pd.Series],
    prune: Callable[[list[float]], nn.Module],
    target: float | Mapping[Unit, float],
    unit: Unit = "filters",
    *,
    plan: PruningPlan,
    n_rounds: int,
) -> pd.DataFrame:
    """Measure scores, prune a share, fine-tune, and measure again (SBPF, arXiv 2208.04588).

    Round r of R measures the network as it has become and raises the rates until r / R of the
    target is removed. What a round adds to a rate goes by that round's scores.

    Args:
        model: The unpruned network.
        measure: Scores the layers of a network, by the names that they have in `model`.
        prune: Returns the network at the given rates (T,), fine-tuned.
        target: As in `allocate`.
        unit: As in `allocate`.
        plan: As in `allocate`.
        n_rounds: R, at least 1.

    Returns:
        As `allocate`, with the scores of the last round, and a column `rate_1`, `rate_2` ... for
        each round before it.

    Raises:
        ValueError: If `n_rounds` is below 1; see `allocate`.
    """
    if n_rounds < 1:
        raise ValueError(f"n_rounds must be at least 1, got {n_rounds}")
    targets = target if isinstance(target, Mapping) else {unit: target}

    def after(number: int) -> dict[Unit, float]:
        return {unit: each * number / n_rounds for unit, each in targets.items()}

    table = allocate(measure(model), after(1), plan=plan)
    earlier: dict[str, pd.Series] = {}
    for number in range(2, n_rounds + 1):
        rates = table["pruning_rate"]
        earlier[f"rate_{number - 1}"] = rates
        scores = measure(prune(rates.tolist()))
        table = allocate(scores, after(number), plan=plan, start=rates.tolist())
    return table.assign(**earlier)


def _limit(plan: PruningPlan, target: float, unit: Unit, cap: float) -> float:
    """Return what may stay at most."""
    if unit not in get_args(Unit):
        raise ValueError(f"unknown unit {unit!r}; valid: {', '.join(get_args(Unit))}")
    full = plan.full(unit)
    least = plan.count([cap] * len(plan.decisions), unit)
    most = 1.0 - least / full
    if not 0.0 <= target <= most:
        raise ValueError(
            f"target must be in [0, {most:.4f}]: rates of {cap} everywhere remove {most:.4f} of "
            f"the {unit}, got {target}"
        )
    return max((1.0 - target) * full * (1.0 + 1e-12), least)  # rounding asks for no channel more


def _slopes(scores: Rates) -> Rates:
    """Return the highest score divided by each, in [1, 1 / LOWEST_SHARE]."""
    highest = scores.max()
    if highest == 0.0:
        return np.ones(len(scores))
    slopes: Rates = highest / np.maximum(scores, LOWEST_SHARE * highest)
    return slopes


def _fewest(low: Rates, high: Rates, meets: Callable[[Rates], bool]) -> Rates:
    """Return `low` with as few of its first rates raised to `high` as meet the target."""
    rates = low.copy()
    for t in range(len(rates)):
        rates[t] = high[t]
        if meets(rates):
            break
    return rates
