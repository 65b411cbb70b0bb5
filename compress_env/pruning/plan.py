"""What pruning rates come to, in whole channels and elements, and what the network then costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import nn

from compress_env.pruning.cost import PruningCost, Unit
from compress_env.pruning.graph.surgery import Decision
from compress_env.store.store import Prefix
from compress_env.task.layers import Layer, round_channels, smallest_rate_within

__all__ = ["PruningPlan"]

BISECTIONS = 40


class PruningPlan:
    """Turns rates into what is executed, and any sequence of decisions into its cost.

    At rate a the fraction (1 - a) of a layer's weights is kept: (1 - a)^s of its input channels and
    (1 - a)^(1 - s) of the elements in them, s being the channel share **(ours)**. What is executed
    is one count of channels for each group, followed, where s < 1, by the count of elements.
    """

    def __init__(
        self,
        decisions: Sequence[Decision],
        table: Sequence[Layer],
        model: nn.Module,
        *,
        channel_share: float,
        max_pruning_rate: float,
        channel_round: int,
        counts_zeros: bool,
        other_macs: int = 0,
    ) -> None:
        """Set up the cost model.

        Args:
            decisions: The walk.
            table: Every layer, in execution order.
            model: The unpruned network.
            channel_share: s, in [0, 1].
            max_pruning_rate: Highest rate of any layer.
            channel_round: As in `round_channels`.
            counts_zeros: Whether multiply-accumulates and parameters are dense ones, or those of
                non-zero weights.
            other_macs: Multiply-accumulates per image of operations outside of layers.
        """
        self.decisions = decisions
        self.channel_share = channel_share
        self.max_pruning_rate = max_pruning_rate
        self.counts_zeros = counts_zeros
        self.channel_round = channel_round
        groups = [group for decision in decisions for group in decision.groups]
        self._cost = PruningCost(table, groups, model, other_macs)
        self._table = table
        self._positions = np.array([layer.positions for layer in table], np.int64)
        columns = {layer.name: column for column, layer in enumerate(table)}
        self._columns = [columns[decision.layer.name] for decision in decisions]

    @property
    def removes_elements(self) -> bool:
        """Whether single elements go, not only channels."""
        return self.channel_share < 1.0

    @property
    def producers(self) -> tuple[tuple[str, ...], ...]:
        """The layers whose filters each decision removes; depthwise ones follow, and are left out.

        The filters of a layer are the channels of the groups that it produces, and these groups are
        decided at the layer that is first to read them. Layers that add to one stream share one.
        """
        whole = {layer.name for layer in self._table if layer.groups == 1}
        members = ([m for g in d.groups for m in g.members] for d in self.decisions)
        return tuple(
            tuple(dict.fromkeys(m.module for m in each if m.side == "out" and m.module in whole))
            for each in members
        )

    def full(self, unit: Unit) -> int:
        """Return what the unpruned network costs."""
        return self._cost.count(unit, self._cost.sizes)

    def count(self, rates: Sequence[float], unit: Unit) -> int:
        """Return what the network costs at most with the given rate for each decision."""
        return self._count(self.at_rates(rates), unit)

    def meets(self, rates: Sequence[float], budgets: Mapping[Unit, float]) -> bool:
        """Return whether the given rate for each decision meets all budgets, for certain."""
        return all(self.count(rates, unit) <= limit for unit, limit in budgets.items())

    def can_meet(
        self,
        executed: Prefix,
        rates: Sequence[float],
        budgets: Mapping[Unit, float],
        nonzeros: Sequence[int] = (),
    ) -> bool:
        """Return whether all budgets can be met with the given rates for the next decisions.

        Args:
            executed: The decisions so far, all of them carried out.
            rates: Of some or all of the later ones.
            budgets: The most that is allowed, by unit.
            nonzeros: Non-zero weights of every layer of the table after those carried out.
        """
        whole = executed
        for rate in rates:
            whole = (*whole, self.decide(whole, rate))
        return all(
            self.highest(whole, unit, len(executed), nonzeros) <= limit
            for unit, limit in budgets.items()
        )

    def worst(self, rates: Sequence[float], budgets: Mapping[Unit, float]) -> float:
        """Return the largest cost at the given rates, as a fraction of its budget; 0 of none."""
        return max((self.count(rates, unit) / most for unit, most in budgets.items()), default=0.0)

    def at_rates(self, rates: Sequence[float]) -> list[tuple[int, ...]]:
        """Return the decisions that the given rates come to, one for each."""
        whole: list[tuple[int, ...]] = []
        for rate in rates:
            whole.append(self.decide(tuple(whole), rate))
        return whole

    def macs_by_layer(self, executed: Prefix) -> dict[str, int]:
        """Return the dense multiply-accumulates per image of each layer after decisions."""
        macs = self._cost.macs_by_layer(self._kept(tuple(executed)))
        return dict(zip((layer.name for layer in self._table), macs.tolist(), strict=True))

    def channels(self, t: int, executed: Sequence[int]) -> tuple[int, ...]:
        """Return the channels that each group of decision `t` keeps."""
        return tuple(executed[: len(self.decisions[t].groups)])

    def decide(self, before: Prefix, rate: float) -> tuple[int, ...]:
        """Return what a rate comes to for the layer after the decided ones."""
        groups = self.decisions[len(before)].groups
        channel_rate = 1.0 - (1.0 - rate) ** self.channel_share
        kept = tuple(round_channels(g.n_channels, channel_rate, self.channel_round) for g in groups)
        if not self.removes_elements:
            return kept
        n_before, n_left = self._n_weights(before), self._n_weights(before, kept)
        return (*kept, max(1, min(n_left, round((1.0 - rate) * n_before))))

    def complete(self, executed: Prefix, rate: float) -> list[tuple[int, ...]]:
        """Return all decisions, those not yet made at the same rate."""
        whole = [values for values in executed if isinstance(values, tuple)]
        while len(whole) < len(self.decisions):
            whole.append(self.decide(tuple(whole), rate))
        return whole

    def rate_of(self, before: Prefix, executed: tuple[int, ...]) -> float:
        """Return the fraction removed: of the weights, or of the channels if only these go."""
        if self.removes_elements:
            return 1.0 - executed[-1] / self._n_weights(before)
        return 1.0 - sum(executed) / self.decisions[len(before)].n_channels

    def highest(
        self, executed: Prefix, unit: Unit, n_done: int = 0, nonzeros: Sequence[int] = ()
    ) -> int:
        """Return what the network costs at most once every later layer is at its extreme.

        Dense costs are exact. Of an already sparse layer it is not known how many zeros go with the
        outputs that it will lose: none is assumed.

        Args:
            executed: The decisions so far.
            unit: What is counted.
            n_done: How many of them have been carried out.
            nonzeros: Non-zero weights of every layer of the table after those.
        """
        return self._count(self.complete(executed, self.max_pruning_rate), unit, n_done, nonzeros)

    def _count(
        self,
        whole: Sequence[tuple[int, ...]],
        unit: Unit,
        n_done: int = 0,
        nonzeros: Sequence[int] = (),
    ) -> int:
        kept = self._kept(tuple(whole))
        total = self._cost.count(unit, kept)
        if unit == "filters" or self.counts_zeros or not self.removes_elements:
            return total
        per_weight = self._positions if unit == "macs" else np.ones_like(self._positions)
        weights = self._cost.weights_by_layer(kept)
        for t, column in enumerate(self._columns):
            n_left = nonzeros[column] if t < n_done else whole[t][-1]
            total -= int(per_weight[column]) * max(0, int(weights[column]) - n_left)
        return total

    def _kept(self, executed: Prefix, last: Sequence[int] = ()) -> list[int]:
        """Return the channels that every group keeps; all of those not yet decided."""
        kept: list[int] = []
        for t, values in enumerate((*executed, tuple(last)) if last else executed):
            assert isinstance(values, tuple)
            kept += self.channels(t, values)
        sizes = [group.n_channels for d in self.decisions for group in d.groups]
        return kept + sizes[len(kept) :]

    def _n_weights(self, before: Prefix, kept: Sequence[int] = ()) -> int:
        """Return the weights of the layer about to be decided, or those that `kept` leaves it."""
        column = self._columns[len(before)]
        return int(self._cost.weights_by_layer(self._kept(before, kept))[column])

    def smallest_rate(self, t: int | None, meets: Callable[[float], bool]) -> float:
        """Return the smallest rate at which `meets` holds, which it does at the highest.

        Args:
            t: The decision that the rate is for; all of them when None.
            meets: Whether a rate meets the budget; once true it stays true for higher rates.
        """
        if not self.removes_elements:
            decisions = self.decisions if t is None else [self.decisions[t]]
            sizes = [group.n_channels for decision in decisions for group in decision.groups]
            return smallest_rate_within(sizes, self.max_pruning_rate, meets, self.channel_round)
        low, high = 0.0, self.max_pruning_rate
        if meets(low):
            return low
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if meets(middle) else (middle, high)
        return high
