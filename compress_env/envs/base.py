"""The walk over the layers: what pruning and quantization have in common."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple, SupportsFloat, TypedDict

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import nn

from compress_env.data import DataBundle
from compress_env.envs.rendering import draw_bars, format_table
from compress_env.layers import (
    Layer,
    dense_macs,
    dense_params,
    describe_layer,
    layer_table,
    sparse_macs,
    sparse_params,
)
from compress_env.rewards import Reward, RewardInput, get_reward, lower_bound
from compress_env.seeding import derive_generator
from compress_env.task import CompressionTask, FinetuneConfig, Scorer

__all__ = ["LayerState", "LayerwiseCompressionEnv", "RewardAt", "TaskOptions"]

Action = NDArray[np.float32]
Observation = NDArray[np.float32]
RewardAt = Literal["layer", "episode"]


class LayerState(NamedTuple):
    """The layer about to be decided, each entry scaled into [0, 1]."""

    index: float  # type: ignore[assignment]  # the field's name hides tuple.index
    out_channels: float
    in_channels: float
    kernel_height: float
    kernel_width: float
    stride: float
    action_low: float
    action_high: float
    flops: float


class LayerDecision(NamedTuple):
    """One row of an episode: what was decided for a layer and what came of it."""

    layer: str
    value: float
    accuracy: float | None
    cost: float


class TaskOptions(TypedDict, total=False):
    """Keywords of every environment, described at `LayerwiseCompressionEnv`."""

    checkpoint: str | Path | None
    data_root: str | Path | None
    download: bool
    device: str | torch.device
    scorer: Scorer | None
    finetune_steps: int
    finetune_config: FinetuneConfig | None
    reward: str | Reward
    reward_at: RewardAt
    seed: int
    transition_noise: bool
    render_mode: str | None


class LayerwiseCompressionEnv(gym.Env[Observation, Action]):
    """Compress a network layer by layer; subclasses say what is decided and how it is done.

    A step compresses one layer, fine-tunes for `finetune_steps` minibatches, estimates the running
    statistics of batch-norm layers anew and scores the network. It is a deterministic function of
    (`seed`, the values executed so far), so an episode can be replayed bit for bit on CPU.

    Args:
        model: A name in `compress_env.models.MODELS` or a trained module, which is copied.
        data: A name in `compress_env.data.DATASETS` or a bundle (`make_data_bundle`).
        checkpoint: Weights for `model` (safetensors, or a plain `state_dict`).
        data_root: Where a named data set lies.
        download: Whether a missing data set may be downloaded.
        device: `"auto"` (CUDA when there is one) or any PyTorch device.
        scorer: Called with the network instead of measuring validation accuracy.
        finetune_steps: Minibatches of fine-tuning after each layer, 0 or more.
        finetune_config: Batch size, learning rate and the like.
        reward: A name in `compress_env.rewards.REWARDS` or a callable of a `RewardInput`.
        reward_at: `"layer"` scores after every layer; `"episode"` after the last one only, and
            earlier rewards are 0.
        seed: The task's seed: minibatch order and sampled positions. Independent of
            `reset(seed=...)`.
        transition_noise: Draw a new seed of the minibatches at each `reset` instead.
        render_mode: None, `"ansi"` or `"rgb_array"`.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # noqa: RUF012  # gymnasium's own form
    value_name: str
    """What `info` and files call the executed value."""
    value_scale: float
    """What `action_low` and `action_high` are divided by in the observation."""
    walk: tuple[Layer, ...]
    """The layers to decide, in execution order, as they are before compression."""
    unpruned: RewardInput
    """What the network costs before compression."""
    _live: nn.Module
    _t: int
    _ended: bool
    _interval: tuple[float, float]
    _executed: list[int | tuple[int, ...]]
    _executed_value: float
    _history: list[LayerDecision]

    def __init__(
        self,
        model: str | nn.Module = "lenet5",
        data: str | DataBundle = "digits",
        *,
        checkpoint: str | Path | None = None,
        data_root: str | Path | None = None,
        download: bool = False,
        device: str | torch.device = "auto",
        scorer: Scorer | None = None,
        finetune_steps: int = 20,
        finetune_config: FinetuneConfig | None = None,
        reward: str | Reward = "err",
        reward_at: RewardAt = "layer",
        seed: int = 0,
        transition_noise: bool = False,
        render_mode: str | None = None,
    ) -> None:
        """Load the task; see the class for the arguments.

        Raises:
            ValueError: If an argument is out of range or a name is unknown.
            FileNotFoundError: If data or checkpoint are not there.
        """
        _check_arguments(finetune_steps, reward_at, seed, render_mode, self.metadata)
        self.reward_fn = get_reward(reward)
        self.task = CompressionTask(
            model,
            data,
            checkpoint=checkpoint,
            data_root=data_root,
            download=download,
            device=device,
            config=finetune_config,
            scorer=scorer,
        )
        self.finetune_steps = finetune_steps
        self.reward_at = reward_at
        self.render_mode = render_mode
        self.task_seed = seed
        self.transition_noise = transition_noise
        self.table: tuple[Layer, ...] = layer_table(self.task.model, self.task.example_image())
        self.positions = {layer.name: layer.positions for layer in self.table}
        self.skipped_layers: dict[str, str] = {}
        self.step_seconds: dict[str, float] = {}
        self._evaluated: set[tuple[int, ...]] = set()
        self._noise_seed = seed
        self.observation_space = spaces.Box(0.0, 1.0, (len(LayerState._fields),), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def _start(self, walk: Sequence[Layer]) -> None:
        """Finish construction, once the subclass knows its walk and its cost model."""
        self.walk = tuple(walk)
        self._scale = {
            name: max(1, *(getattr(layer, name) for layer in self.walk))
            for name in ("out_channels", "in_channels", "kernel_height", "kernel_width", "stride")
        }
        self._scale["flops"] = max(layer.macs for layer in self.walk)
        self.unpruned = self._measure(self.task.model, None)
        self._reward_low = lower_bound(self.reward_fn, self.unpruned)
        self._restart()

    def step(self, action: Action) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Compress the layer about to be decided.

        Args:
            action: (1,) float32 in [-1, 1], mapped affinely onto [`action_low`, `action_high`].

        Returns:
            Observation (9,) float32, reward, terminated, truncated (always False) and info, with
            `layer`, the executed `pruning_rate` or `bits`, `accuracy` (NaN where the network was
            not scored), `reward_terms`, the live costs and `n_evaluations`.

        Raises:
            ValueError: If the action has the wrong shape, is not finite or is out of bounds.
            gymnasium.error.ResetNeeded: If the episode has ended.
        """
        if self._ended:
            raise gym.error.ResetNeeded("the episode has ended, call reset()")
        value = self._to_value(action)
        self.step_seconds = {}
        layer = self.walk[self._t].name
        try:
            accuracy = self._transition(value)
        except (FloatingPointError, torch.OutOfMemoryError) as failure:
            return self._fail(layer, value, failure)
        reward, terms = self._get_reward(accuracy)
        self._history.append(LayerDecision(layer, self._executed_value, accuracy, terms["cost"]))
        self._t += 1
        self._ended = self._t == len(self.walk)
        info = self._get_info() | {
            "layer": layer,
            self.value_name: self._executed_value,
            "accuracy": math.nan if accuracy is None else accuracy,
            "reward_terms": terms,
        }
        return self._get_obs(), reward, self._ended, False, info

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start again from the uncompressed network.

        Args:
            seed: Seeds `np_random`, which only `transition_noise` draws from.
            options: Not used.

        Returns:
            Observation (9,) float32 of the first layer, and info.
        """
        super().reset(seed=seed)
        if self.transition_noise:
            self._noise_seed = int(self.np_random.integers(2**31))
        self._restart()
        return self._get_obs(), self._get_info()

    def render(self) -> Any:
        """Return the layers decided so far as a table (`ansi`) or bars (`rgb_array`, uint8)."""
        if self.render_mode == "ansi":
            return format_table(self.value_name, self._history, self.unpruned.cost)
        if self.render_mode == "rgb_array":
            names = [layer.name for layer in self.walk]
            return draw_bars(self.value_name, names, self._history, self.value_scale)
        gym.logger.warn("render() needs render_mode='ansi' or 'rgb_array' at construction")
        return None

    def compressed_model(self) -> nn.Module:
        """Return a copy of the current network as an ordinary module in evaluation mode."""
        return copy.deepcopy(self._live).eval()

    def live_model(self) -> nn.Module:
        """Return the current network itself; changing it changes the episode."""
        return self._live

    def forget_evaluations(self) -> None:
        """Start counting `info["n_evaluations"]` anew, for the next search on this environment."""
        self._evaluated.clear()

    # What a subclass decides.

    @abstractmethod
    def _begin(self) -> None:
        """Set the subclass's own state of an episode; the live network is fresh."""

    @abstractmethod
    def _bounds(self, t: int) -> tuple[float, float]:
        """Return the interval of feasible values of decision `t`, given the executed ones."""

    @abstractmethod
    def _compress(self, value: float) -> int | tuple[int, ...]:
        """Compress layer `t` of the live network; return what was executed, exactly."""

    @abstractmethod
    def _cost(self, model: nn.Module) -> tuple[float, float, float]:
        """Return the live cost of `model`, and the lowest and highest cost there is."""

    @abstractmethod
    def uniform_value(self) -> float:
        """Return the one value that, used for every layer, just meets the budget."""

    # The transition.

    def _restart(self) -> None:
        self._live = copy.deepcopy(self.task.model)
        self._t = 0
        self._ended = False
        self._executed = []
        self._executed_value = 0.0
        self._history = []
        self._begin()
        self._interval = self._bounds(0)

    def _to_value(self, action: Action) -> float:
        """Map an action onto the interval of the layer about to be decided."""
        array = np.asarray(action, dtype=np.float64)
        if array.shape != (1,):
            raise ValueError(f"action must have shape (1,), got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"action must be finite and in [-1, 1], got {array[0]}")
        if abs(array[0]) > 1.0:
            raise ValueError(
                f"action must be in [-1, 1], got {array[0]}; gymnasium.wrappers.ClipAction clips"
            )
        low, high = self._interval
        return float(low + (array[0] + 1.0) / 2.0 * (high - low))

    def _transition(self, value: float) -> float | None:
        """Compress, fine-tune, estimate batch-norm statistics and score; None if not scored."""
        self._executed.append(self._compress(value))
        t, last = self._t, self._t + 1 == len(self.walk)
        with self._timed("finetune"):
            self.task.finetune(
                self._live, self.finetune_steps, derive_generator(self._noise_seed, t, 0)
            )
        with self._timed("batch_norm"):
            self.task.reestimate_batch_norm(self._live, derive_generator(self._noise_seed, t, 1))
        if not last:
            self._interval = self._bounds(t + 1)
        if self.reward_at == "episode" and not last:
            return None
        self._evaluated.add((self._noise_seed, *_flatten(self._executed)))
        with self._timed("evaluation"):
            return self.task.score(self._live)

    def _fail(
        self, layer: str, value: float, failure: Exception
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """End the episode with the reward's lower bound."""
        self._ended = True
        self._live = copy.deepcopy(self.task.model)  # the failed one may not even run
        reason = next(iter(str(failure).splitlines()), "no reason given")
        info = self._get_info() | {
            "layer": layer,
            self.value_name: value,
            "accuracy": math.nan,
            "reward_terms": {"reward": self._reward_low},
            "error": f"{type(failure).__name__}: {reason}",
        }
        return self._get_obs(), self._reward_low, True, False, info

    def _get_obs(self) -> Observation:
        """Describe the layer about to be decided; after the last decision, the last layer."""
        t = min(self._t, len(self.walk) - 1)
        planned = self.walk[t]
        live = describe_layer(
            planned.name, self._live.get_submodule(planned.name), planned.positions
        )
        low, high = (bound / self.value_scale for bound in self._interval)
        state = LayerState(
            index=t / max(1, len(self.walk) - 1),
            out_channels=live.out_channels / self._scale["out_channels"],
            in_channels=live.in_channels / self._scale["in_channels"],
            kernel_height=live.kernel_height / self._scale["kernel_height"],
            kernel_width=live.kernel_width / self._scale["kernel_width"],
            stride=live.stride / self._scale["stride"],
            action_low=low,
            action_high=high,
            flops=live.macs / self._scale["flops"],
        )
        return np.array(state, dtype=np.float32)

    def _get_info(self) -> dict[str, Any]:
        return {
            "dense_macs": dense_macs(self._live, self.positions),
            "dense_params": dense_params(self._live),
            "sparse_macs": sparse_macs(self._live, self.positions),
            "sparse_params": sparse_params(self._live),
            "n_evaluations": len(self._evaluated),
        }

    def _get_reward(self, accuracy: float | None) -> tuple[float, dict[str, float]]:
        """Return the reward and its terms; 0 for a step that is not scored."""
        measured = self._measure(self._live, accuracy)
        terms = measured._asdict()
        if accuracy is None:
            terms.pop("accuracy")
            return 0.0, terms | {"reward": 0.0}
        reward = float(self.reward_fn(measured))
        return reward, terms | {"reward": reward}

    def _measure(self, model: nn.Module, accuracy: float | None) -> RewardInput:
        cost, lowest, highest = self._cost(model)
        macs, params = dense_macs(model, self.positions), dense_params(model)
        return RewardInput(accuracy or 0.0, cost, lowest, highest, macs, params)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Add the seconds of a phase to `step_seconds`."""
        start = perf_counter()
        try:
            yield
        finally:
            elapsed = perf_counter() - start
            self.step_seconds[phase] = self.step_seconds.get(phase, 0.0) + elapsed


def _flatten(executed: Sequence[int | tuple[int, ...]]) -> Iterator[int]:
    for values in executed:
        yield from values if isinstance(values, tuple) else (values,)


def _check_arguments(
    finetune_steps: int,
    reward_at: str,
    seed: int,
    render_mode: str | None,
    metadata: dict[str, Any],
) -> None:
    for name, value in (("finetune_steps", finetune_steps), ("seed", seed)):
        if not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")
    if reward_at not in ("layer", "episode"):
        raise ValueError(f"unknown reward_at {reward_at!r}; valid: layer, episode")
    modes = metadata["render_modes"]
    if render_mode is not None and render_mode not in modes:
        raise ValueError(f"unknown render_mode {render_mode!r}; valid: None, {', '.join(modes)}")
