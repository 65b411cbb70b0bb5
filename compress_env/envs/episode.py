"""The place in an episode: what goes back after an error, and what a copy goes on from."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gymnasium.utils import EzPickle

from compress_env.envs.state import LayerDecision
from compress_env.envs.transitions import StoredTransitions
from compress_env.store.store import Prefix, Transition, TransitionStore

__all__ = ["EpisodePlace"]

_PLACE = (
    "_t",
    "_ended",
    "_interval",
    "_planned",
    "_executed",
    "_actions",
    "_current",
    "_history",
    "_noise_seed",
    "_lent",
)
_RANDOM = ("_np_random", "_np_random_seed", "action_space", "observation_space")


class EpisodePlace(StoredTransitions, EzPickle):
    """An episode that can be left and taken up again.

    A copy, deep, shallow or pickled, is built from the arguments of the original, with the network
    and the settings that this has, whatever has become of what the caller gave; images and a
    `scorer` are the caller's own. It stands where the original stood in its episode, and goes on
    in the same way.
    """

    _t: int
    _ended: bool
    _interval: tuple[float, float]
    prior: str | tuple[float, ...]
    """The name of the prior, or its values."""
    _allocation: tuple[float, ...] | None
    """The prior's value of every decision; None for the middle of each interval."""
    _allocations: dict[float | None, tuple[float, ...] | None]
    """The same by budget, of those that it was allocated for; None for none."""
    prior_evaluations: int
    prior_seconds: float
    _planned: tuple[float, ...] | None
    """The same from the next decision on."""
    _actions: tuple[float, ...]
    _current: Transition
    _history: tuple[LayerDecision, ...]
    _evaluated: set[tuple[int, Prefix]]
    _own_store: TransitionStore | None

    @property
    def decided(self) -> tuple[LayerDecision, ...]:
        """The decisions of this episode so far, and what came of each."""
        return self._history

    def _own_arguments(self) -> None:
        """Make copies from what this environment has, not from what the caller may change."""
        _, data = self._ezpickle_args
        on_cpu = self.task.device.type == "cpu"
        model = self.task.model if on_cpu else self.task.copy_model().cpu()
        self._ezpickle_args = (model, data)
        self._own({"checkpoint": None, "finetune_config": self.task.config})

    def _own(self, arguments: dict[str, Any]) -> None:
        """Make copies with these keyword arguments, and with the present allocation."""
        if self.prior not in ("middle", "uniform"):  # a rule need not be applied again
            arguments = arguments | {"prior": self._allocation}
        self._ezpickle_kwargs = {**self._ezpickle_kwargs, **arguments}

    def __getstate__(self) -> dict[str, Any]:
        """Return the arguments, and the place in the episode."""
        is_under_way = self._t > 0 and not self._ended
        return {
            "_ezpickle_args": self._ezpickle_args,
            "_ezpickle_kwargs": self._ezpickle_kwargs,
            "place": self._place(),
            "random": {name: copy.deepcopy(getattr(self, name)) for name in _RANDOM},
            "network": copy.deepcopy(self._networks.last) if self._lent else None,
            "evaluated": set(self._evaluated) if is_under_way else set(),
            "is_closed": self.store is None,
            "prior": self.prior,
            "allocations": dict(self._allocations),
            "prior_spent": (self.prior_evaluations, self.prior_seconds),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build the environment anew, from its arguments, and go to its place."""
        # As it is, EzPickle would leave `_networks` with the methods of another instance.
        type(self).__init__(self, *state["_ezpickle_args"], **state["_ezpickle_kwargs"])
        vars(self).update(state["random"])
        self._go_to(state["place"])
        self._networks.last = state["network"]
        self._evaluated = state["evaluated"]
        self.prior, self._allocations = state["prior"], state["allocations"]
        self.prior_evaluations, self.prior_seconds = state["prior_spent"]
        if state["is_closed"]:
            self.close()

    def _place(self) -> dict[str, Any]:
        """Return what tells one place in an episode from another; nothing of it ever changes."""
        return {name: getattr(self, name) for name in _PLACE}

    def _go_to(self, place: dict[str, Any]) -> None:
        vars(self).update(place)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Go back to where the block began, should it raise."""
        place = self._place()
        network = copy.deepcopy(self._networks.last) if self._lent else None
        try:
            yield
        except BaseException:
            self._go_to(place)
            self._networks.last = network  # what is not lent can be computed again
            raise
