"""The walk over the layers: what pruning and quantization have in common."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from compress_env.counts import check_count
from compress_env.data.bundle import DataBundle
from compress_env.envs.options import (
    DRAWN,
    SNAPSHOT_BYTES,
    FinetuneAt,
    PriorOption,
    RewardAt,
    StoreOption,
    TaskOptions,
    check_options,
    config_of,
    fingerprints_of,
    noise_seed_of,
    open_store,
)
from compress_env.envs.priors import PriorActions, copied_prior
from compress_env.envs.rendering import draw_bars, format_table
from compress_env.envs.stage import Action, Observation
from compress_env.envs.state import (
    LayerDecision,
    LayerState,
    action_to_value,
    describe_costs,
    failed_transition,
    live_layer,
    reward_input,
    scale_layer,
    scales_of,
)
from compress_env.seeding import derive_generator
from compress_env.store.process import describe_process
from compress_env.store.snapshots import PrefixNetworks
from compress_env.store.store import Prefix, TransitionStore
from compress_env.task.counting import total_macs
from compress_env.task.layers import Layer, layer_table
from compress_env.task.rewards import Reward, RewardInput, get_reward, lower_bound
from compress_env.task.task import CompressionTask, FinetuneConfig, Finetuner, Scorer

__all__ = ["LayerState", "LayerwiseCompressionEnv", "RewardAt", "TaskOptions"]


class LayerwiseCompressionEnv(PriorActions):
    """Compress a network layer by layer; subclasses say what is decided and how it is done.

    A step compresses one layer, fine-tunes for `finetune_steps` minibatches, estimates the running
    statistics of batch-norm layers anew and scores the network. Where nothing is scored and nothing
    else reads these statistics, they are left for later. A step is a deterministic function of
    (`seed`, the values executed so far), so an episode can be replayed bit for bit on CPU, and a
    step that `store` knows is not computed again. A step that raises, or is interrupted, has not
    happened. A copy stands at the same place of the episode (`EpisodePlace`).

    Args:
        model: A name in `compress_env.networks.models.MODELS` or a trained module, which is copied.
        data: A name in `compress_env.data.bundle.DATASETS` or a bundle (`make_data_bundle`).
        checkpoint: Weights for `model` (safetensors, or a plain `state_dict`).
        data_root: Where a named data set lies.
        download: Whether a missing data set may be downloaded.
        device: `"auto"` (CUDA when there is one), `"cuda:auto"` (another one in each worker
            process) or any PyTorch device.
        scorer: Called with the network instead of measuring validation accuracy. Results are
            stored only if it has an attribute `fingerprint`, a string that names what it does.
        finetuner: Called with the network and `finetune_steps` instead of fine-tuning it, under
            seeded global random states: it trains the network in place, or returns a trained copy
            (`run_finetuner`). As for a scorer, results are stored only with a `fingerprint`.
        finetune_steps: Minibatches of fine-tuning, 0 or more.
        finetune_at: `"layer"` fine-tunes for so many after every layer; `"episode"` after the last
            one only.
        finetune_config: Batch size, learning rate and the like, as a `FinetuneConfig` or a dict of
            some of its fields.
        reward: A name in `compress_env.task.rewards.REWARDS` or a callable of a `RewardInput`.
        reward_at: `"layer"` scores after every layer; `"episode"` after the last one only, and
            earlier rewards are 0.
        seed: The task's seed: minibatch order and sampled positions. Independent of
            `reset(seed=...)`.
        transition_noise: Draw a new seed of the minibatches at each `reset` instead; one that
            `reset(options={"noise_seed": n})` is given counts for its episode in any case.
        prior: What action 0 stands for (`PriorActions`): `"middle"`, the middle of the interval;
            `"uniform"`, the one value that, used for this and all later layers, just meets what is
            left of the budget, or the middle without one; a rule by name (`rules()`); or (T,)
            values, one for each decision. Rules and values are rescaled to what is left of the
            budget after every decision that departs from them. Transitions do not depend on it.
        render_mode: None, `"ansi"` or `"rgb_array"`.
        store: Where the results of steps are kept: `"memory"` for this environment alone, a file
            for all processes and runs that name it, a `TransitionStore`, or None to compute every
            step. What is observed does not depend on it.
        snapshot_bytes: Bound of the partly compressed networks that are kept to start from.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # noqa: RUF012  # gymnasium's own form
    unpruned: RewardInput
    """What the network costs before compression."""

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
        finetuner: Finetuner | None = None,
        finetune_steps: int = 20,
        finetune_at: FinetuneAt = "layer",
        finetune_config: FinetuneConfig | Mapping[str, Any] | None = None,
        reward: str | Reward = "err",
        reward_at: RewardAt = "layer",
        seed: int = 0,
        transition_noise: bool = False,
        prior: PriorOption = "middle",
        render_mode: str | None = None,
        store: StoreOption = "memory",
        snapshot_bytes: int = SNAPSHOT_BYTES,
    ) -> None:
        """Load the task; see the class for the arguments.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument is out of range or a name is unknown.
            FileNotFoundError: If data or checkpoint are not there.
        """
        self.finetune_steps = check_count("finetune_steps", finetune_steps)
        self.task_seed = check_count("seed", seed)
        self.snapshot_bytes = check_count("snapshot_bytes", snapshot_bytes)
        moments = {"finetune_at": finetune_at, "reward_at": reward_at}
        check_options(moments, render_mode, self.metadata["render_modes"])
        self.reward_fn = get_reward(reward)
        self.task = CompressionTask(
            model,
            data,
            checkpoint=checkpoint,
            data_root=data_root,
            download=download,
            device=device,
            config=config_of(FinetuneConfig, finetune_config, "finetune_config"),
            scorer=scorer,
            finetuner=finetuner,
        )
        self.finetune_at = finetune_at
        self.reward_at = reward_at
        self.render_mode = render_mode
        self.transition_noise = transition_noise
        self.prior = copied_prior(prior)
        functions = {"scorer": scorer, "finetuner": finetuner}
        self._fingerprints = fingerprints_of(functions)
        self.store = open_store(store, functions)
        self._own_store = None if isinstance(store, TransitionStore) else self.store
        # Nobody else reads an own store in memory.
        self._described = "" if store == "memory" else None
        self._process = describe_process(self.task.device)
        self.n_lookups = self.n_hits = 0
        self.table = layer_table(self.task.model, self.task.example_image())
        self.positions = {layer.name: layer.positions for layer in self.table}
        self.other_macs = total_macs(self.task.model, self.task.example_image()) - sum(
            layer.macs for layer in self.table
        )
        self.skipped_layers: dict[str, str] = {}
        self.step_seconds = {}
        self._evaluated, self._allocations = set(), {}
        self._noise_seed = self.task_seed
        self.observation_space = spaces.Box(0.0, 1.0, (len(LayerState._fields),), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def _start(self, walk: Sequence[Layer]) -> None:
        """Finish construction, once the subclass knows its walk and its cost model."""
        self.walk = tuple(walk)
        self._scales = scales_of(self.walk)
        max_bytes = 0 if self.store is None else self.snapshot_bytes
        self._networks = PrefixNetworks(self._fresh, self._advance, len(self.walk), max_bytes)
        self._uncompressed = self._describe(self.task.model, (), None)
        self.unpruned = reward_input(self._uncompressed, self._cost(self._uncompressed, ()))
        self._reward_low = lower_bound(self.reward_fn, self.unpruned)
        self._allocation = self._allocated(self.budget_fraction)
        self._own_arguments()
        self._restart(self._noise_seed)

    def step(self, action: Action) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Compress the layer about to be decided.

        Args:
            action: (1,) float32 in [-1, 1], mapped onto [`action_low`, `action_high`], 0 onto the
                prior.

        Returns:
            Observation (9,) float32, reward, terminated, truncated (always False) and info, with
            `layer`, the executed `pruning_rate` or `bits`, `accuracy` (where the network was
            scored; NaN if the step fails), `reward_terms`, the live costs, `n_evaluations` and
            `noise_seed`.

        Raises:
            ValueError: If the action has the wrong shape, is not finite or is out of bounds.
            gymnasium.error.ResetNeeded: If the episode has ended.
        """
        if self._ended:
            raise gym.error.ResetNeeded("the episode has ended, call reset()")
        value = action_to_value(action, self._interval, self._clipped_prior())
        with self._all_or_nothing():
            return self._take(float(action[0]), value)

    def _take(
        self, action: float, value: float
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Carry out a decision; an action is only remembered."""
        layer, (executed, value) = self.walk[self._t].name, self._decide(self._executed, value)
        prefix = (*self._executed, executed)
        self._actions = (*self._actions, action)
        result = self._transition(prefix)
        if result.error is not None:
            return self._fail(prefix, value, result.error)
        self._executed, self._current = prefix, result
        reward, terms = self._get_reward()
        decision = LayerDecision(layer, value, result.accuracy, terms.get("cost"))
        self._history = (*self._history, decision)
        self._t += 1
        self._ended = self._t == len(self.walk)
        if not self._ended:
            self._look_ahead(result)
        self._count(prefix)
        info = self._get_info() | {"layer": layer, self.value_name: value, "reward_terms": terms}
        if result.accuracy is not None:
            info["accuracy"] = result.accuracy
        return self._get_obs(), reward, self._ended, False, info

    def _count(self, executed: Prefix) -> None:
        """Remember that a network has been evaluated."""
        if self._is_scored(len(executed)):
            self._evaluated.add((self._noise_seed, executed))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start again from the uncompressed network.

        Args:
            seed: Seeds `np_random`, which only `transition_noise` draws from.
            options: `{"noise_seed": n}` fixes the minibatches of this episode, n in [0, 2**32);
                those that `transition_noise` draws are below 2**31.

        Returns:
            Observation (9,) float32 of the first layer, and info, whose `noise_seed` is that of
            the episode.

        Raises:
            TypeError: If a seed is no integer.
            ValueError: If there is no such option, or the noise seed is out of range.
        """
        noise_seed = noise_seed_of(options)
        super().reset(seed=None if seed is None else check_count("seed", seed, None))
        if noise_seed is None:
            is_drawn = self.transition_noise
            noise_seed = int(self.np_random.integers(DRAWN)) if is_drawn else self.task_seed
        self._restart(noise_seed)
        return self._get_obs(), self._get_info()

    def render(self) -> Any:
        """Return the layers decided so far as a table (`ansi`) or bars (`rgb_array`, uint8)."""
        name, history = self.value_name, self._history
        if self.render_mode == "ansi":
            return format_table(name, history, self.unpruned.cost_high)
        if self.render_mode == "rgb_array":
            return draw_bars(name, [x.name for x in self.walk], history, self.value_scale)
        gym.logger.warn("render() needs render_mode='ansi' or 'rgb_array' at construction")
        return None

    def close(self) -> None:
        """Close the store, unless it was given; steps taken from now on are computed."""
        if self._own_store is not None:
            self._own_store.close()
            self.store = self._own_store = None

    def compressed_model(self) -> nn.Module:
        """Return a copy of the current network as an ordinary module in evaluation mode.

        Quantizers are still attached, for `compress_env.save`, `compress_env.export_onnx` and
        further training; `compress_env.bake` turns quantized weights into plain parameters.
        """
        model = copy.deepcopy(self._network_after(self._executed).model)
        self._estimate_if_due(model)
        return model.eval()

    def live_model(self) -> nn.Module:
        """Return the current network itself; changing it changes the episode.

        The rest of the episode is then computed, neither read from the store nor kept there.
        """
        model = self._network_after(self._executed).model
        self._estimate_if_due(model)
        self._lent = True
        return model

    def compress_layer(self, t: int, value: float) -> nn.Module:
        """Return the uncompressed network with decision `t` alone carried out at a value.

        Batch-norm statistics are estimated anew; nothing is fine-tuned, no budget is heeded.
        """
        before: Prefix = ()
        for _ in range(t):  # rate 0 leaves a layer as it is; bits are decided without a look back
            before = (*before, self._decide(before, 0.0)[0])
        network, seed = self._fresh(), self.task_seed
        self._compress(network, seed, t, self._decide(before, value)[0])
        self.task.reestimate_batch_norm(network.model, derive_generator(seed, t, 1))
        return network.model

    def forget_evaluations(self) -> None:
        """Start counting `info["n_evaluations"]` anew, for the next search on this environment."""
        self._evaluated.clear()

    def episode_state(self) -> dict[str, Any]:
        """Return what `restore_episode` needs to go on from here, in plain Python values."""
        return {
            "actions": list(self._actions),
            "noise_seed": self._noise_seed,
            "np_random": self.np_random.bit_generator.state if self.transition_noise else None,
        }

    def restore_episode(self, state: dict[str, Any]) -> Observation:
        """Take the actions of an episode again, and return the observation that followed them."""
        if state["np_random"] is not None:
            self.np_random.bit_generator.state = state["np_random"]
        self._restart(state["noise_seed"])
        for action in state["actions"]:
            self.step(np.array([action]))  # float64, should the agent have given that
        return self._get_obs()

    def _restart(self, noise_seed: int) -> None:
        interval = self._bounds((), self._uncompressed)
        self._networks.forget_last()
        self._lent = self._ended = False
        self._noise_seed, self._interval, self._current = noise_seed, interval, self._uncompressed
        self._t, self._executed, self._actions, self._history = 0, (), (), ()
        self._planned = self._allocation

    def _fail(
        self, executed: Prefix, value: float, error: str
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """End the episode with the reward's lower bound for every step that is still scored."""
        n_left = len(self.walk) - self._t if self.reward_at == "layer" else 1
        reward = n_left * self._reward_low
        self._count(executed)
        self._ended = True
        # The failed network may not even run.
        self._networks.forget_last()
        self._executed = ()
        self._current = failed_transition(self._uncompressed, self.walk[self._t])
        info = self._get_info() | {
            "layer": self.walk[self._t].name,
            self.value_name: value,
            "accuracy": math.nan,
            "reward_terms": {"reward": reward},
            "error": error,
        }
        return self._get_obs(), reward, True, False, info

    def _get_obs(self) -> Observation:
        """Describe the layer about to be decided; after the last decision, the last layer."""
        t = min(self._t, len(self.walk) - 1)
        low, high = self._interval
        return scale_layer(
            live_layer(self.walk[t], self._current),
            t / max(1, len(self.walk) - 1),
            (low / self.value_scale, high / self.value_scale),
            self._scales,
        )

    def _get_info(self) -> dict[str, Any]:
        counts = {"n_evaluations": len(self._evaluated), "noise_seed": self._noise_seed}
        return describe_costs(self._current) | counts

    def _get_reward(self) -> tuple[float, dict[str, float]]:
        """Return the reward and its terms; 0 for a step that is not scored."""
        measured = reward_input(self._current, self._cost(self._current, self._executed))
        terms = measured._asdict()
        if self._current.accuracy is None:
            terms.pop("accuracy")
            return 0.0, terms | {"reward": 0.0}
        reward = float(self.reward_fn(measured))
        if not math.isfinite(reward):
            raise ValueError(f"the reward must be finite, got {reward} of {measured}")
        return reward, terms | {"reward": reward}
