"""The pruning environment: one action per layer, the fraction of its input channels removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from gymnasium.utils import EzPickle
from torch import nn

from compress_env.counts import check_count
from compress_env.data.bundle import DataBundle
from compress_env.envs.base import LayerwiseCompressionEnv, TaskOptions
from compress_env.envs.options import config_of
from compress_env.envs.priors import rescale_rates
from compress_env.envs.state import share_of_room
from compress_env.pruning.budgets import budgets_of, keyword_of
from compress_env.pruning.channels.calibration import Calibration
from compress_env.pruning.channels.reconstruction import reconstruct
from compress_env.pruning.channels.selection import columns_of
from compress_env.pruning.channels.statistics import LayerStatistics, input_rms
from compress_env.pruning.cost import Unit
from compress_env.pruning.elements import PRESETS, ElementPruner, VariationalConfig
from compress_env.pruning.graph.surgery import ChannelGroup, LiveChannels, find_walk
from compress_env.pruning.methods import (
    CHANNEL_SHARES,
    MacsKind,
    PruningMethod,
    check_arguments,
    select_channels,
)
from compress_env.pruning.plan import PruningPlan
from compress_env.pruning.sizes import check_costs, sized_model, warn_of_little
from compress_env.quantization.activations import has_quantizers
from compress_env.seeding import derive_generator
from compress_env.store.snapshots import Network
from compress_env.store.store import Executed, Prefix, Transition
from compress_env.task.layers import Layer, layer_at
from compress_env.task.rehearsal import check_training_only

if TYPE_CHECKING:
    from compress_env.allocation.rules import Allocation

__all__ = ["MacsKind", "PruningEnv", "PruningMethod"]


class PruningEnv(LayerwiseCompressionEnv):
    """Remove input channels of every layer that allows it, in execution order.

    Channels that can only go together form one group, decided at its first consumer; the image's
    channels and the logits stay. Layers that cannot be pruned safely are left out of the walk:
    `env.unwrapped.skipped_layers` says which, and why.

    ## Observation

    `Box(0, 1, (9,), float32)`, a `LayerState` of the layer about to be decided. Counts are divided
    by their maximum over the walk of the unpruned network; rates are as they are.

    | Num | Name | Min | Max | Unit |
    | --- | --- | --- | --- | --- |
    | 0 | `index` | 0 | 1 | position in the walk |
    | 1 | `out_channels` | 0 | 1 | channels |
    | 2 | `in_channels` | 0 | 1 | channels |
    | 3 | `kernel_height` | 0 | 1 | elements |
    | 4 | `kernel_width` | 0 | 1 | elements |
    | 5 | `stride` | 0 | 1 | elements |
    | 6 | `action_low` | 0 | 1 | lowest pruning rate that still lets the budget be met |
    | 7 | `action_high` | 0 | 1 | highest pruning rate |
    | 8 | `flops` | 0 | 1 | multiply-accumulates |

    ## Action

    `Box(-1, 1, (1,), float32)`: the pruning rate a, the fraction of the layer that is removed. -1
    stands for `action_low`, 0 for the prior, clipped to the interval, and 1 for `action_high`; in
    between the map is affine. Every action is feasible. `info["pruning_rate"]` is the fraction
    really removed, after rounding. `env.unwrapped.action_for(rate)` is the action for a rate.

    | `prior` | The rate of action 0 |
    | --- | --- |
    | `"middle"` | the middle of the interval |
    | `"uniform"` | the one that, for this and all later layers, just meets what budgets are left |
    | a name in `env.unwrapped.rules()` | what the rule gives, see `compress_env.allocation.rules` |
    | an array (T,) | the value of the layer |

    A prior stays as it is while decisions come to what it says. After one that departs from it, the
    fractions that later layers keep by it are scaled by one factor, the largest that the budgets
    allow **(ours)**. One that exceeds the budgets is scaled at once. Without a budget `"uniform"`
    is the middle, rules are refused, and values stay as they are.

    ## Transition

    The channels are selected (`method`), removed physically from every tensor they touch, single
    elements are set to zero (`info["information_std"]` says how far the information of outputs
    differs, in nats), the network is fine-tuned, batch-norm statistics are estimated anew and
    validation accuracy is measured. Zeros stay zeros.

    - `magnitude`: the channels with the smallest L1 norm of the layer's weights go.
    - `magnitude+reconstruction`: so do they, and least squares fits the weights of those kept to
      the unpruned layer's responses, as in AMC (He et al., arXiv 1802.03494).
    - `channel`: LASSO selects channels that explain the unpruned layer's responses, and least
      squares fits the weights of those kept (He et al., arXiv 1707.06168).
    - `variational`: elements go, those first whose outputs keep little information under
      information dropout (`compress_env.pruning.variational`).
    - `channel+variational`: both (Zhan, Lin & Cao, arXiv 1912.02254). Of the layer's weights the
      fraction 1 - a stays: (1 - a)^s of its channels, and (1 - a)^(1 - s) of the elements in them,
      s being `channel_share`.
    - `random`: channels go at random, drawn from the seed of the transition.

    ## Reward

    `reward` of (accuracy, cost), see `compress_env.task.rewards`. F is multiply-accumulates per
    image: dense ones where only channels go, and where elements go those by non-zero weights,
    unless `macs` says otherwise. Zeros do not make a dense kernel faster. Every term is
    in `info["reward_terms"]`.

    ## Start and end

    An episode starts from the unpruned network and ends, `terminated`, after the last layer, or
    when a step fails (loss not finite, CUDA out of memory): then with the reward's lower bound
    for this and every later step that would have been scored, and `info["error"]`.

    ## Arguments

    | Name | Default | Meaning |
    | --- | --- | --- |
    | `model` | `"lenet5"` | a name or a trained module |
    | `data` | `"digits"` | a name or a `DataBundle` |
    | `method` | `"channel"` | how channels are selected |
    | `flops_budget` | None | highest MACs allowed, a fraction of the unpruned MACs |
    | `params_budget` | None | most parameters allowed, a fraction of the unpruned network's |
    | `filters_budget` | None | most filters that stay, a fraction of those that can go |
    | `max_pruning_rate` | 0.95 | highest pruning rate of any layer |
    | `channel_round` | 1 | kept channels are a multiple of this |
    | `channel_share` | by method | s: 1 removes channels only, 0 elements only |
    | `macs` | by method | what budgets and cost count: `"dense"` or `"sparse"` |
    | `variational` | None | a `VariationalConfig`, some of its fields by name, or `"paper"` |
    | `prior` | `"middle"` | what action 0 stands for |
    | others | | see `LayerwiseCompressionEnv` |

    Without a budget the reward `err` is best served by pruning nothing. With several budgets every
    episode meets all of them. Parameters are counted as multiply-accumulates are: those stored
    where only channels go, those that are not zero where elements go, unless `macs` says otherwise.

    ## Version history

    v0: first version. `prior="middle"` is what it does.
    """

    value_name = "pruning_rate"
    value_scale = 1.0

    def __init__(
        self,
        model: str | nn.Module = "lenet5",
        data: str | DataBundle = "digits",
        *,
        method: PruningMethod = "channel",
        flops_budget: float | None = None,
        params_budget: float | None = None,
        filters_budget: float | None = None,
        max_pruning_rate: float = 0.95,
        channel_round: int = 1,
        channel_share: float | None = None,
        macs: MacsKind | None = None,
        variational: VariationalConfig | Mapping[str, Any] | str | None = None,
        **options: Unpack[TaskOptions],
    ) -> None:
        """Load the task, find the walk and check that the budget can be met.

        Args:
            model: A name in `compress_env.networks.models.MODELS` or a trained module.
            data: A name in `compress_env.data.bundle.DATASETS` or a bundle.
            method: What is removed, and how it is selected.
            flops_budget: Highest MACs, as a fraction of the unpruned ones; in (0, 1].
            params_budget: Most parameters, as a fraction of the unpruned ones; in (0, 1].
            filters_budget: Most filters that stay, as a fraction of those of all layers whose
                filters can be removed (`plan.producers`); in (0, 1].
            max_pruning_rate: Highest pruning rate of any layer; in (0, 1].
            channel_round: Kept channels are rounded to a multiple of this, at least 1.
            channel_share: s, strictly between 0 and 1, for `channel+variational`; 0.5 when None.
            macs: What budgets and the cost count: everything dense, or only non-zero weights.
            variational: How elements are selected.
            options: See `LayerwiseCompressionEnv`.

        Raises:
            TypeError: If a count is not an int.
            ValueError: If an argument is out of range, a name unknown, no layer prunable or the
                budget unreachable.
            FileNotFoundError: If data or checkpoint are not there.
        """
        check_arguments(method, max_pruning_rate, channel_share, macs)
        channel_round = check_count("channel_round", channel_round, 1)
        elements = config_of(VariationalConfig, variational, "variational", PRESETS)
        EzPickle.__init__(
            self,
            model,
            data,
            method=method,
            flops_budget=flops_budget,
            params_budget=params_budget,
            filters_budget=filters_budget,
            max_pruning_rate=max_pruning_rate,
            channel_round=channel_round,
            channel_share=channel_share,
            macs=macs,
            variational=elements,
            **options,
        )
        super().__init__(model, data, **options)
        if has_quantizers(self.task.model):
            raise ValueError("the network is quantized: prune it before, or bake it")
        check_training_only(self.task.training_only)
        self.method: PruningMethod = method
        self.variational = elements
        self.elements = ElementPruner(self.task, elements)
        self._decisions, self.skipped_layers = find_walk(self.task.model, self.task.example_image())
        share = CHANNEL_SHARES[method] if channel_share is None else channel_share
        self.macs: MacsKind = macs or ("dense" if share == 1.0 else "sparse")
        self.plan = PruningPlan(
            self._decisions,
            self.table,
            self.task.model,
            channel_share=share,
            max_pruning_rate=max_pruning_rate,
            channel_round=channel_round,
            counts_zeros=self.macs == "dense",
            other_macs=self.other_macs,
        )
        check_costs(self.task.model, self.task.example_image(), self.plan)
        warn_of_little(self.plan, len(self.skipped_layers))
        self._full_macs, self._min_macs = self.plan.full("macs"), self.plan.highest((), "macs")
        self.budgets = budgets_of(self.plan, self._ezpickle_kwargs)
        self._budget_keyword = keyword_of(self.budget_unit)
        walk = [decision.layer for decision in self._decisions]
        self.runs_network = method not in ("magnitude", "random")
        self._calibration = self._calibrate(walk)
        self._start(walk)

    @property
    def budget_unit(self) -> Unit:
        """What the budget counts; of several, the first of MACs, parameters and filters."""
        return next(iter(self.budgets), "macs")

    @property
    def budget(self) -> float:
        """The most that is allowed, in `budget_unit`; infinite if all is. `budgets` has all."""
        return self.budgets.get(self.budget_unit, float("inf"))

    def uniform_value(self) -> float:
        """Return the lowest pruning rate that, used for every layer, meets the budgets."""
        plan, n_layers = self.plan, len(self._decisions)
        return plan.smallest_rate(None, lambda rate: plan.meets([rate] * n_layers, self.budgets))

    def _set_budget(self, budget: float) -> None:
        given = self._ezpickle_kwargs | {self._budget_keyword: budget}
        self.budgets = budgets_of(self.plan, given)

    def budget_left(self, n_done: int) -> float:
        """Return the share of the budgets' room that the first `n_done` decisions leave."""
        executed, highest = self._executed[:n_done], self.plan.highest
        return min(
            (
                share_of_room(highest(executed, unit), highest((), unit), limit)
                for unit, limit in self.budgets.items()
            ),
            default=1.0,
        )

    def smallest_model(self) -> nn.Module:
        """Return the network with every layer at `max_pruning_rate`; for its size, not its skill.

        Channels go by their number, and nothing is fine-tuned.
        """
        executed = self.plan.complete((), self.plan.max_pruning_rate)
        return sized_model(self.task.model, self.plan, tuple(executed))

    @property
    def _settings(self) -> dict[str, Any]:
        elements = {"variational": asdict(self.variational)} if self.plan.removes_elements else {}
        return {"method": self.method} | elements

    def _calibrate(self, walk: Sequence[Layer]) -> Calibration | None:
        return Calibration(self.task, walk, self.task_seed) if self.runs_network else None

    def _forget_computed(self) -> None:
        super()._forget_computed()
        self.elements.forget()
        self._calibration = self._calibrate(self.walk)

    def _fresh(self) -> LiveChannels:
        return LiveChannels(self.task.copy_model())

    def _bounds(self, executed: Prefix, result: Transition) -> tuple[float, float]:
        plan = self.plan
        lowest = plan.smallest_rate(
            len(executed), lambda rate: self._meets(executed, [rate], result)
        )
        return lowest, plan.max_pruning_rate

    def _rules(self) -> dict[str, Callable[[], Allocation]]:
        from compress_env.allocation.rules import PRUNING_RULES, PruningTask  # slow to import

        task = PruningTask(self._source(), self.plan, self.budgets)
        return {name: partial(rule, task) for name, rule in PRUNING_RULES.items()}

    @property
    def _has_budget(self) -> bool:
        return bool(self.budgets)

    @property
    def _range(self) -> tuple[float, float]:
        return 0.0, self.plan.max_pruning_rate

    def _meets(self, executed: Prefix, values: Sequence[float], result: Transition) -> bool:
        return self.plan.can_meet(executed, values, self.budgets, result.nonzeros)

    def _rescale(
        self, executed: Prefix, values: Sequence[float], result: Transition
    ) -> list[float]:
        highest = self.plan.max_pruning_rate
        return rescale_rates(values, highest, lambda rates: self._meets(executed, rates, result))

    def _decide(self, before: Prefix, value: float) -> tuple[tuple[int, ...], float]:
        executed = self.plan.decide(before, value)
        return executed, self.plan.rate_of(before, executed)

    def _compress(self, network: Network, seed: int, t: int, executed: Executed) -> None:
        assert isinstance(network, LiveChannels) and isinstance(executed, tuple)
        decision, name = self._decisions[t], self.walk[t].name
        n_weights = layer_at(network.model, name).weight.numel()
        kept = self.plan.channels(t, executed)
        if sum(kept) < decision.n_channels:
            self._prune(network, name, decision.groups, kept, derive_generator(seed, t, 3))
        network.information_std = None
        if self.plan.removes_elements and executed[-1] < n_weights:
            with self._timed("elements"):
                network.information_std = self.elements.prune(
                    network.model,
                    name,
                    executed[-1],
                    lambda: input_rms(self._statistics(network, name)),
                    derive_generator(seed, t, 2),
                ).spread

    def _prune(
        self,
        network: LiveChannels,
        name: str,
        groups: tuple[ChannelGroup, ...],
        kept: tuple[int, ...],
        generator: torch.Generator,
    ) -> None:
        """Select and remove channels, then fit the layer's weights to those kept."""
        layer = layer_at(network.model, name)
        weight = layer.weight.detach().flatten(1)  # (N, C, H, W) -> (N, D)
        statistics = self._statistics(network, name)
        outputs, alive = network.positions(name, "out"), network.positions(name, "in")
        columns = [columns_of(alive, group.columns(name), weight.shape[1]) for group in groups]
        stay = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
        pruned_weight = weight.clone()
        for group, group_columns, n_keep in zip(groups, columns, kept, strict=True):
            with self._timed("selection"):
                keep = select_channels(
                    self.method, statistics, pruned_weight, group_columns, n_keep, generator
                )
            gone = np.setdiff1d(np.arange(group.n_channels), keep)
            gone_columns = group_columns[torch.from_numpy(gone)].flatten()
            stay[gone_columns] = False
            pruned_weight[:, gone_columns] = 0.0
            with self._timed("surgery"):
                network.remove(group, gone)
        if statistics is not None:
            with self._timed("reconstruction"):
                columns_left = stay.nonzero().flatten()
                fitted = reconstruct(statistics, columns_left, weight[:, columns_left])
                # A layer that writes what it reads has lost outputs as well.
                rows = torch.from_numpy(np.isin(outputs, network.positions(name, "out")))
                layer.weight.data.copy_(fitted[rows.to(fitted.device)].view_as(layer.weight))

    def _statistics(self, network: LiveChannels, name: str) -> LayerStatistics | None:
        if self._calibration is None:
            return None
        with self._timed("statistics"):
            alive = network.positions(name, "out")
            statistics = self._calibration.statistics(network.model, name, alive)
        if not bool(torch.isfinite(statistics.input_energy).all()):
            raise FloatingPointError(f"inputs of {name!r} are not finite")
        return statistics

    def _noted(self, network: Network) -> dict[str, Any]:
        assert isinstance(network, LiveChannels)
        return {"information_std": network.information_std}

    def _cost(self, result: Transition, executed: Prefix) -> tuple[float, float, float]:
        macs = result.dense_macs if self.macs == "dense" else result.sparse_macs
        return macs, self._min_macs, self._full_macs
