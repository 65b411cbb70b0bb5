"""What an agent may know beyond the layer's shape: a wrapper that adds it to the observation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from compress_env.envs.base import LayerState, LayerwiseCompressionEnv
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import SCALES, QuantizationEnv
from compress_env.envs.stage import Action, Observation
from compress_env.seeding import derive_generator
from compress_env.task.layers import layer_at

__all__ = [
    "BITS",
    "RATES",
    "LayerContext",
    "PruningContext",
    "QuantizationContext",
    "curves_of",
    "share_lost",
    "stage_of",
]

RATES = (0.25, 0.5, 0.75)
"""Fractions of a layer's channels that curves of saliency are read at."""
BITS = (1, 2, 4, 8)
"""Bit-widths that the curve of errors is read at."""
N_IMAGES = 256
"""Training images whose gradients the Fisher information is of."""
_GRADIENTS = (0, 4)
"""Derives the generator that draws them, the one that rules draw with."""


class PruningContext(NamedTuple):
    """What `LayerContext` adds where pruning rates are decided."""

    prior: float
    slack: float
    last_value: float
    last_spent: float
    last_loss: float
    fisher_lost_25: float
    fisher_lost_50: float
    fisher_lost_75: float
    l1_lost_25: float
    l1_lost_50: float
    l1_lost_75: float


class QuantizationContext(NamedTuple):
    """What `LayerContext` adds where bits are decided."""

    prior: float
    slack: float
    last_value: float
    last_spent: float
    last_loss: float
    error_1: float
    error_2: float
    error_4: float
    error_8: float


CONTEXTS: dict[type[LayerwiseCompressionEnv], type[PruningContext | QuantizationContext]] = {
    PruningEnv: PruningContext,
    QuantizationEnv: QuantizationContext,
}
_CURVES: WeakKeyDictionary[LayerwiseCompressionEnv, NDArray[np.float32]] = WeakKeyDictionary()


class LayerContext(gym.ObservationWrapper[Observation, Action, Observation], RecordConstructorArgs):
    """Adds to a `LayerState` what a layer has learned and what decisions have come to **(ours)**.

    The nine entries of the environment come first, as they are. All are float32 in [0, 1] and
    follow from the environment's own state, so that an episode that goes on elsewhere, or again, is
    observed alike; agents that look at the nine work as before.

    ## Added to the observation

    | Num | Name | Min | Max | Meaning |
    | --- | --- | --- | --- | --- |
    | 9 | `prior` | 0 | 1 | value of action 0: pruning rate, or bits divided by 8 |
    | 10 | `slack` | 0 | 1 | share of the budget's room that is left |
    | 11 | `last_value` | 0 | 1 | the previous decision, as `prior`; 0 for the first layer |
    | 12 | `last_spent` | 0 | 1 | share of the budget's room that the previous decision took |
    | 13 | `last_loss` | 0 | 1 | accuracy that it lost, where it was scored; otherwise 0 |

    The room of a budget is what it allows beyond the least that any episode costs; without a budget
    all of it is left. For pruning there follows how much of its saliency the layer loses with the
    given percentage of its channels, the least salient ones: of the Fisher information of their
    gates, and of the L1 norms of their weights (`compress_env.allocation`).

    | Num | Name | Min | Max | Meaning |
    | --- | --- | --- | --- | --- |
    | 14 | `fisher_lost_25` | 0 | 1 | of the Fisher information, with 25 % of the channels |
    | 15 | `fisher_lost_50` | 0 | 1 | with 50 % |
    | 16 | `fisher_lost_75` | 0 | 1 | with 75 % |
    | 17 | `l1_lost_25` | 0 | 1 | of the L1 norms, with 25 % of the channels |
    | 18 | `l1_lost_50` | 0 | 1 | with 50 % |
    | 19 | `l1_lost_75` | 0 | 1 | with 75 % |

    For quantization there follows the error of the layer's weights, |dW| / |W|:

    | Num | Name | Min | Max | Meaning |
    | --- | --- | --- | --- | --- |
    | 14 | `error_1` | 0 | 1 | at 1 bit |
    | 15 | `error_2` | 0 | 1 | at 2 bits |
    | 16 | `error_4` | 0 | 1 | at 4 bits |
    | 17 | `error_8` | 0 | 1 | at 8 bits |

    These curves are of the network before compression. They are computed once for an environment,
    in seconds, and ask for no score; where a network has no gradients, all channels count alike.
    With `reward_at="layer"` the network is scored once, for what the first decision loses.
    """

    def __init__(self, env: gym.Env[Observation, Action]) -> None:
        """Look at the network, unless that was done before.

        Args:
            env: A pruning or quantization environment, with or without wrappers that leave its
                observation as it is.

        Raises:
            TypeError: If it is of neither stage.
            ValueError: If a wrapper has changed the observation.
        """
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.stage = stage_of(env)
        n_own = len(LayerState._fields)
        if env.observation_space != self.stage.observation_space:
            raise ValueError(
                f"expected the observations of the environment, (9,) in [0, 1], got "
                f"{env.observation_space}"
            )
        self.context = next(c for kind, c in CONTEXTS.items() if isinstance(self.stage, kind))
        n_entries = n_own + len(self.context._fields)
        self.observation_space = spaces.Box(0.0, 1.0, (n_entries,), np.float32)
        self._curves = curves_of(self.stage)
        is_scored = self.stage.reward_at == "layer"
        self._accuracy = self.stage.task.score(self.stage.task.model) if is_scored else 0.0

    def observation(self, observation: Observation) -> Observation:
        """Return the nine entries and the context, (20,) or (18,) float32."""
        env, n_done = self.stage, len(self.stage.decided)
        t = min(n_done, len(env.walk) - 1)
        last = env.decided[-1] if n_done else None
        slack = env.budget_left(n_done)
        changing = (
            env.prior_value / env.value_scale,
            slack,
            last.value / env.value_scale if last else 0.0,
            env.budget_left(n_done - 1) - slack if last else 0.0,
            self._last_loss(),
        )
        context = self.context._make((*changing, *self._curves[t].tolist()))
        added = np.clip(np.array(context, np.float32), 0.0, 1.0)
        return np.concatenate([observation, added])

    def _last_loss(self) -> float:
        accuracies = [each.accuracy for each in self.stage.decided[-2:]]
        if not accuracies or accuracies[-1] is None:
            return 0.0
        before = accuracies[0] if len(accuracies) == 2 else self._accuracy
        return 0.0 if before is None else before - accuracies[-1]

    def restore_episode(self, state: dict[str, Any]) -> Observation:
        """Take the actions of an episode again, and return the observation that followed them."""
        return self.observation(self.stage.restore_episode(state))


def curves_of(env: LayerwiseCompressionEnv) -> NDArray[np.float32]:
    """Return the curves of an environment's layers, (T, 6) or (T, 4) in [0, 1].

    Raises:
        ValueError: If a weight is not finite.
    """
    if env not in _CURVES:
        rows = _saliency_lost(env) if isinstance(env, PruningEnv) else _errors(env)
        _CURVES[env] = np.array(rows, np.float32)
    return _CURVES[env]


def share_lost(scores: NDArray[np.float64], rates: Sequence[float] = RATES) -> list[float]:
    """Return the share of all scores that goes with the lowest of them, at each rate.

    Between two whole numbers of scores the share is interpolated; if all are 0 they count as equal.

    Args:
        scores: (n,), 0 or more.
        rates: Fractions of the n that go.
    """
    rising = np.sort(scores) if scores.sum() > 0 else np.ones_like(scores)
    lost = np.concatenate([[0.0], np.cumsum(rising) / rising.sum()])
    shares: list[float] = np.interp(rates, np.linspace(0.0, 1.0, len(lost)), lost).tolist()
    return shares


def _saliency_lost(env: PruningEnv) -> list[list[float]]:
    from compress_env.allocation.scores.saliency import channel_norms  # which takes time to import

    norms = channel_norms(env.task.model, env.plan.decisions, "l1")
    pairs = zip(_fisher(env), norms, strict=True)
    return [[*share_lost(fisher), *share_lost(norm)] for fisher, norm in pairs]


def _fisher(env: PruningEnv) -> list[NDArray[np.float64]]:
    """Return the Fisher information of all channels of each decision; alike without gradients."""
    from compress_env.allocation.scores.gates import fisher_scores, gate_gradients

    n_batches = -(-N_IMAGES // env.task.config.batch_size)
    batches = env.task.train_batches(n_batches, derive_generator(env.task_seed, *_GRADIENTS))
    try:
        return fisher_scores(gate_gradients(env.task.model, env.plan.decisions, batches, N_IMAGES))
    except (FloatingPointError, RuntimeError, ValueError):
        return [np.ones(decision.n_channels) for decision in env.plan.decisions]


def _errors(env: LayerwiseCompressionEnv) -> NDArray[np.float64]:
    """Return |dW| / |W| of each layer at each of `BITS`, (T, 4)."""
    from compress_env.allocation.bits import relative_errors

    assert isinstance(env, QuantizationEnv)
    weights = [layer_at(env.task.model, layer.name).weight for layer in env.walk]
    errors: NDArray[np.float64] = np.sqrt(relative_errors(weights, BITS, SCALES[env.scales]))
    return errors


def stage_of(env: gym.Env[Any, Any]) -> LayerwiseCompressionEnv:
    """Return the environment inside of wrappers.

    Raises:
        TypeError: If it is of neither stage.
    """
    stage = env.unwrapped
    if not isinstance(stage, tuple(CONTEXTS)):
        raise TypeError(f"expected a PruningEnv or a QuantizationEnv, got a {type(stage).__name__}")
    assert isinstance(stage, LayerwiseCompressionEnv)
    return stage
