"""Networks of the sizes that decisions lead to, and whether they cost what the plan says."""

from __future__ import annotations

import copy
import logging

import numpy as np
from torch import Tensor, nn

from compress_env.errors import reason_of
from compress_env.pruning.graph.surgery import LiveChannels
from compress_env.pruning.plan import PruningPlan
from compress_env.store.store import Prefix
from compress_env.task.counting import macs_by_module

__all__ = ["check_costs", "sized_model", "sized_network", "warn_of_little"]

_LITTLE = 0.9  # of the multiply-accumulates left at the least: more deserves a warning
_logger = logging.getLogger(__name__)


def sized_network(model: nn.Module, plan: PruningPlan, executed: Prefix) -> LiveChannels:
    """Return a copy of the unpruned network cut to size; channels go by their number.

    Args:
        model: The unpruned network.
        plan: Its plan.
        executed: Decisions, of which the elements that stay are not heeded.
    """
    channels = LiveChannels(copy.deepcopy(model))
    for t, values in enumerate(executed):
        assert isinstance(values, tuple)
        groups, kept = plan.decisions[t].groups, plan.channels(t, values)
        for group, n_keep in zip(groups, kept, strict=True):
            channels.remove(group, np.arange(n_keep, group.n_channels))
    return channels


def sized_model(model: nn.Module, plan: PruningPlan, executed: Prefix) -> nn.Module:
    """Return what `sized_network` does, as a module alone."""
    return sized_network(model, plan, executed).model


def check_costs(model: nn.Module, image: Tensor, plan: PruningPlan) -> None:
    """Check that pruned networks cost what the plan says, evenly pruned and unevenly.

    Args:
        model: The unpruned network.
        image: A batch of images, (b, C, H, W) float32, on the model's device.
        plan: Its plan.

    Raises:
        ValueError: If they do not, or do not run.
    """
    unpruned = macs_by_module(model, image)
    layers = plan.macs_by_layer(())
    outside = {name: n - layers.get(name, 0) for name, n in unpruned.items()}
    rates = np.random.default_rng(0).uniform(0.0, plan.max_pruning_rate, len(plan.decisions))
    for executed in (plan.complete((), plan.max_pruning_rate), plan.at_rates(rates.tolist())):
        try:
            found = macs_by_module(sized_model(model, plan, tuple(executed)), image)
        except Exception as error:  # any failure of foreign forward code is the answer itself
            message = reason_of(error)
            raise ValueError(f"the network does not run once it is pruned: {message}") from None
        planned = plan.macs_by_layer(tuple(executed))
        for name in unpruned | found:
            expected = planned.get(name, 0) + outside.get(name, 0)
            if found.get(name, 0) != expected:
                raise ValueError(
                    f"the multiply-accumulates of {name or 'the network'!r} do not follow from its "
                    f"channels: once pruned they are {found.get(name, 0)}, expected {expected}; "
                    "such networks cannot be pruned to a budget"
                )


def warn_of_little(plan: PruningPlan, n_skipped: int) -> None:
    """Warn where next to nothing can be pruned, whatever an agent does.

    Args:
        plan: The network's plan.
        n_skipped: Layers left out of the walk.
    """
    lowest = plan.highest((), "macs") / plan.full("macs")
    if lowest > _LITTLE:
        _logger.warning(
            "pruning every layer at max_pruning_rate=%s still leaves %.1f %% of the unpruned "
            "multiply-accumulates (layers left out: %d, see skipped_layers)",
            plan.max_pruning_rate,
            100 * lowest,
            n_skipped,
        )
