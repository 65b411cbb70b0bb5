"""Whether the chosen network would be faster with rounder numbers of channels, by measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from compress_env.envs.pruning import PruningEnv
from compress_env.pruning.plan import PruningPlan
from compress_env.pruning.sizes import sized_model
from compress_env.task.layers import round_channels
from experiments.common.latency import Latency, TorchNetwork, measure_latency

__all__ = ["Suggestion", "find_faster", "suggest_channel_round"]

ROUNDS = (8, 16)
LEAST_SAVED = 0.05

Sizes = Sequence[tuple[int, ...]]


class Suggestion(NamedTuple):
    """A multiple to which rounding channels saves time."""

    channel_round: int
    """The multiple."""
    batch_size: int
    """Images in a call."""
    saved: float
    """Fraction of the time of the chosen network."""

    def __str__(self) -> str:
        """Say it in a sentence."""
        one = self.batch_size == 1
        what = "one image take" if one else f"{self.batch_size} images take"
        return (
            f"With --channel-round {self.channel_round} {what}{'s' if one else ''} "
            f"{100 * self.saved:.0f} % less time in PyTorch: measured on the chosen network with "
            "its channels rounded, within the budget; its accuracy takes another search."
        )


def suggest_channel_round(
    env: PruningEnv, rates: Sequence[float], *, channel_round: int = 1
) -> Suggestion | None:
    """Time the pruned network as it is and with rounder numbers of channels.

    All that is timed are copies of the unpruned network cut to size, in PyTorch on the task's
    device. Channels are rounded to the nearest multiple where that meets the budget, else down.

    Args:
        env: The environment that the network was pruned in.
        rates: Its pruning rates, one for each decision.
        channel_round: What its channels are multiples of.

    Returns:
        What saves most, if that is at least 5 % of the time.
    """
    plan, task = env.plan, env.task
    sizes = plan.at_rates(rates)
    variants = {
        n: _rounded(env, sizes, n) for n in ROUNDS if n > channel_round and n % channel_round == 0
    }
    other = {n: each for n, each in variants.items() if each is not None and each != sizes}
    if not other:
        return None
    networks = [
        TorchNetwork(sized_model(task.model, plan, tuple(each)), task.device)
        for each in (sizes, *other.values())
    ]
    before, *after = measure_latency(networks, task.example_image().shape[1:])
    return find_faster(before, dict(zip(other, after, strict=True)))


def _rounded(env: PruningEnv, sizes: Sizes, multiple: int) -> list[tuple[int, ...]] | None:
    """Return numbers of channels that are multiples and meet the budget, the nearest if they do."""
    plan = env.plan
    for may_grow in (True, False):
        rounded = [_round(plan, t, each, multiple, may_grow) for t, each in enumerate(sizes)]
        budgets = env.budgets.items()
        if all(plan.highest(tuple(rounded), unit) <= limit for unit, limit in budgets):
            return rounded
    return None


def _round(
    plan: PruningPlan, t: int, sizes: tuple[int, ...], multiple: int, may_grow: bool
) -> tuple[int, ...]:
    """Round the channels of one decision; what else is decided stays."""
    kept = plan.channels(t, sizes)
    totals = [group.n_channels for group in plan.decisions[t].groups]
    rounded = []
    for n_keep, total in zip(kept, totals, strict=True):
        nearest = round_channels(total, 1.0 - n_keep / total, multiple)
        is_less = nearest <= n_keep or n_keep < multiple
        rounded.append(nearest if may_grow or is_less else n_keep // multiple * multiple)
    return (*rounded, *sizes[len(kept) :])


def find_faster(
    before: Sequence[Latency], after: Mapping[int, Sequence[Latency]]
) -> Suggestion | None:
    """Return the rounding that saves most time, one image first.

    Args:
        before: Times of the network as it is, one for each number of images.
        after: The same by what its channels are rounded to.

    Returns:
        None if nothing saves 5 % of the time, with quartiles that do not overlap.
    """
    for place, old in enumerate(before):
        found = [
            Suggestion(multiple, old.batch_size, 1.0 - times[place].median_ms / old.median_ms)
            for multiple, times in after.items()
            if times[place].high_ms < old.low_ms
        ]
        best = max(found, key=lambda each: each.saved, default=None)
        if best is not None and best.saved >= LEAST_SAVED:
            return best
    return None
