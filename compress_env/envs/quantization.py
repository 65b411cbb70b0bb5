"""The quantization environment: one action per layer, the bits that its weights keep."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import torch
from gymnasium.utils import EzPickle
from torch import Tensor, nn

from compress_env.counts import check_count, check_number
from compress_env.data.bundle import DataBundle
from compress_env.envs.base import LayerwiseCompressionEnv, TaskOptions
from compress_env.envs.priors import shift_bits
from compress_env.envs.state import replace_weight, share_of_room
from compress_env.networks.checkpoints import checkpoint_bytes
from compress_env.quantization.activations import (
    ACTIVATION_BITS,
    attach_input,
    detach_input,
    measure_input_range,
)
from compress_env.quantization.bounds import size_bounds
from compress_env.quantization.fake_quant import (
    MAX_BITS,
    attach,
    bake,
    float_weight,
    is_computed,
)
from compress_env.quantization.packing import pack
from compress_env.quantization.scales import fit_scale, rounded_scale
from compress_env.quantization.skipped import find_skipped
from compress_env.store.snapshots import Network
from compress_env.store.store import Executed, Prefix, Transition, flatten
from compress_env.task.layers import compute_layers, format_minimum, largest_bits_within, layer_at

if TYPE_CHECKING:
    from compress_env.allocation.rules import Allocation

__all__ = ["QuantizationEnv"]

SCALES = {"rounded": rounded_scale, "best": fit_scale}
"""How the scales of a layer's channels are found, by name."""


@dataclass
class _Quantized:
    """Quantized layers carry all that must be known of them."""

    model: nn.Module


class QuantizationEnv(LayerwiseCompressionEnv):
    """Allocate bits to every convolution and linear layer, in execution order.

    These are the `Conv2d` and `Linear` modules that the forward pass calls. All else stays float32:
    `env.unwrapped.skipped_layers` says which other weights there are, and why.

    ## Observation

    `Box(0, 1, (9,), float32)`, a `LayerState` of the layer about to be decided. Counts are divided
    by their maximum over the walk of the uncompressed network, bits by 8.

    | Num | Name | Min | Max | Unit |
    | --- | --- | --- | --- | --- |
    | 0 | `index` | 0 | 1 | position in the walk |
    | 1 | `out_channels` | 0 | 1 | channels |
    | 2 | `in_channels` | 0 | 1 | channels |
    | 3 | `kernel_height` | 0 | 1 | elements |
    | 4 | `kernel_width` | 0 | 1 | elements |
    | 5 | `stride` | 0 | 1 | elements |
    | 6 | `action_low` | 0 | 1 | fewest bits of this layer |
    | 7 | `action_high` | 0 | 1 | most bits that still let the budget be met |
    | 8 | `flops` | 0 | 1 | multiply-accumulates |

    ## Action

    `Box(-1, 1, (1,), float32)`: -1 stands for `action_low`, 0 for the prior, clipped to the
    interval, and 1 for `action_high`; in between the map is affine, and the value is rounded:
    `info["bits"]`, an integer in 1..8. Every action is feasible. `env.unwrapped.action_for(bits)`
    is the action for some bits.

    | `prior` | The bits of action 0 |
    | --- | --- |
    | `"middle"` | the middle of the interval |
    | `"uniform"` | the most that, for this and all later layers, fit what is left of the budget |
    | a name in `env.unwrapped.rules()` | what the rule gives, see `compress_env.allocation.rules` |
    | an array (T,) | the whole number of the layer |

    A prior stays as it is while decisions come to what it says. After one that departs from it, the
    bits of all later layers are raised or lowered by as much, as high as the budget allows; then,
    unless it is `"uniform"`, each of them in the order of the walk gets one more if that fits
    **(ours)**. One that exceeds the budget is lowered at once. Without a budget `"uniform"` is the
    middle, rules are refused, and values stay as they are.

    ## Transition

    The layer's weights are fake-quantized per output channel (`compress_env.quantization`), with
    `activation_bits` its input as well, to levels that span what it is on the calibration images.
    The network is fine-tuned with straight-through gradients, batch-norm statistics are estimated
    anew and validation accuracy is measured. Layers not yet decided are float32.

    ## Reward

    `reward` of (accuracy, cost), see `compress_env.task.rewards`. Here F is the size in bytes
    of the packed file that `compress_env.save` writes of the live network, which is also
    `info["size_bytes"]`; steps that are not scored pack nothing, and give neither. F_high is the
    size of the float32 network as safetensors, and F_low the most that `min_bits` everywhere can
    take.
    Every term is in `info["reward_terms"]`.

    ## Start and end

    An episode starts from the uncompressed network and ends, `terminated`, after the last layer,
    or when a step fails (loss not finite, CUDA out of memory): then with the reward's lower bound
    for this and every later step that would have been scored, and `info["error"]`.

    ## Arguments

    | Name | Default | Meaning |
    | --- | --- | --- |
    | `model` | `"lenet5"` | a name or a trained module |
    | `data` | `"digits"` | a name or a `DataBundle` |
    | `size_budget` | None | highest size allowed, a fraction of the float32 safetensors file |
    | `min_bits` | 1 | fewest bits of any layer |
    | `activation_bits` | None | 8: inputs of decided layers are rounded to 256 levels |
    | `scales` | `"rounded"` | `"best"`: the best scales, not the best clips' scales rounded |
    | `prior` | `"middle"` | what action 0 stands for |
    | others | | see `LayerwiseCompressionEnv` |

    Without a budget the reward `err` is best served by 8 bits everywhere. With one, what counts is
    the most that the packed file can take (`compress_env.quantization.bounds`), so that the file
    meets it whatever later fine-tuning does; most files are 5 to 15 % smaller **(ours)**.

    ## Version history

    v0: first version. `scales="rounded"` and `prior="middle"` are what it does; `"best"` errs less
    in channels of few weights, such as depthwise filters.
    """

    value_name = "bits"
    value_scale = float(MAX_BITS)
    values_are_whole = True
    _budget_keyword = "size_budget"

    def __init__(
        self,
        model: str | nn.Module = "lenet5",
        data: str | DataBundle = "digits",
        *,
        size_budget: float | None = None,
        min_bits: int = 1,
        activation_bits: int | None = None,
        scales: Literal["rounded", "best"] = "rounded",
        **options: Unpack[TaskOptions],
    ) -> None:
        """Load the task and check that the budget can be met.

        Args:
            model: A name in `compress_env.networks.models.MODELS` or a trained module.
            data: A name in `compress_env.data.bundle.DATASETS` or a bundle.
            size_budget: Highest size in bytes, as a fraction of that of the float32 network as
                safetensors; in (0, 1].
            min_bits: Fewest bits of any layer, 1..8.
            activation_bits: Bits of the inputs of decided layers: 8, or None for float32.
            scales: How the scale of a channel is found: `rounded_scale` or `fit_scale` of
                `compress_env.quantization.scales`.
            options: See `LayerwiseCompressionEnv`.

        Raises:
            TypeError: If a count is not an int.
            ValueError: If an argument is out of range, a name unknown or the budget unreachable.
            FileNotFoundError: If data or checkpoint are not there.
        """
        min_bits, activation_bits = _check_bits(min_bits, activation_bits)
        EzPickle.__init__(
            self,
            model,
            data,
            size_budget=size_budget,
            min_bits=min_bits,
            activation_bits=activation_bits,
            scales=scales,
            **options,
        )
        if scales not in SCALES:
            raise ValueError(f"scales must be one of {', '.join(SCALES)}, got {scales!r}")
        super().__init__(model, data, **options)
        if not self.table:
            raise ValueError("model has no Conv2d or Linear layer to quantize")
        _check_weights(self.task.model)
        self.min_bits = min_bits
        self.activation_bits = activation_bits
        self.scales = scales
        self.runs_network = activation_bits is not None
        self._names = [layer.name for layer in self.table]
        self.skipped_layers = find_skipped(self.task.model, self._names)
        self._sizes = size_bounds(self.task.model, self._names, inputs=activation_bits is not None)
        self._full_bytes = _float_bytes(self.task.model)
        self._min_bytes = self.most_bytes([])
        self.budget_bytes = self._budget(size_budget)
        self._fitted: dict[tuple[int, int], Tensor] = {}
        self._start(self.table)

    def most_bytes(self, bits: Sequence[int]) -> int:
        """Return the most bytes that the packed file can take, whatever fine-tuning does.

        Args:
            bits: Bits of the first layers of the walk; the others take `min_bits`.
        """
        later = [self.min_bits] * (len(self._names) - len(bits))
        return self._sizes.total(dict(zip(self._names, [*bits, *later], strict=True)))

    def _budget(self, size_budget: float | None) -> float:
        if size_budget is None:
            return float("inf")
        size_budget = check_number("size_budget", size_budget)
        lowest = self._min_bytes / self._full_bytes
        if not lowest <= size_budget <= 1.0:
            raise ValueError(
                f"size_budget must be in [{format_minimum(lowest)}, 1]: {self.min_bits} bit(s) "
                f"everywhere take up to {lowest:.4f} of the float32 size, got {size_budget}"
            )
        return max(size_budget * self._full_bytes, self._min_bytes)

    def _set_budget(self, budget: float) -> None:
        self.budget_bytes = self._budget(budget)

    def uniform_value(self) -> float:
        """Return the most bits that, used for every layer, meet the budget."""

        def fits(bits: float) -> bool:
            return self.most_bytes([int(bits)] * len(self.table)) <= self.budget_bytes

        return float(largest_bits_within(self.min_bits, MAX_BITS, fits))

    def budget_left(self, n_done: int) -> float:
        """Return the share of the budget's room that the first `n_done` decisions leave."""
        if not self._has_budget:
            return 1.0
        spent = self.most_bytes(list(flatten(self._executed[:n_done])))
        return share_of_room(spent, self._min_bytes, self.budget_bytes)

    @property
    def _settings(self) -> dict[str, Any]:
        return {"activation_bits": self.activation_bits, "scales": self.scales}

    def _forget_computed(self) -> None:
        super()._forget_computed()
        self._fitted.clear()

    def _fresh(self) -> Network:
        return _Quantized(self.task.copy_model())

    def _bounds(self, executed: Prefix, result: Transition) -> tuple[float, float]:
        def fits(bits: float) -> bool:
            return self._meets(executed, [bits], result)

        return self.min_bits, largest_bits_within(self.min_bits, MAX_BITS, fits)

    def _rules(self) -> dict[str, Callable[[], Allocation]]:
        from compress_env.allocation.rules import BIT_RULES, BitTask  # which takes time to import

        source, names = self._source(), self._names
        weights = [layer_at(self.task.model, name).weight for name in names]
        budget = self.min_bits, self.most_bytes, self.budget_bytes
        task = BitTask(source, names, weights, SCALES[self.scales], *budget)
        return {name: partial(rule, task) for name, rule in BIT_RULES.items()}

    @property
    def _has_budget(self) -> bool:
        return self.budget_bytes != float("inf")

    @property
    def _range(self) -> tuple[float, float]:
        return self.min_bits, MAX_BITS

    def _meets(self, executed: Prefix, values: Sequence[float], result: Transition) -> bool:
        bits = [*flatten(executed), *(int(value) for value in values)]
        return self.most_bytes(bits) <= self.budget_bytes

    def _rescale(
        self, executed: Prefix, values: Sequence[float], result: Transition
    ) -> list[float]:
        def meets(bits: Sequence[int]) -> bool:
            return self._meets(executed, bits, result)

        bits = [int(value) for value in values]
        bounds = self.min_bits, MAX_BITS
        return [float(n) for n in shift_bits(bits, bounds, meets, fills=self.prior != "uniform")]

    def _decide(self, before: Prefix, value: float) -> tuple[int, int]:
        bits = int(np.floor(value + 0.5))
        return bits, bits

    def _compress(self, network: Network, seed: int, t: int, executed: Executed) -> None:
        assert isinstance(executed, int)
        model, name = network.model, self.table[t].name
        with self._timed("quantization"):
            layer = layer_at(model, name)
            self._attach(layer, t, executed)
            if self.activation_bits is not None:
                batches = self.task.calibration_batches()
                attach_input(layer, measure_input_range(model, name, batches))

    def _attach(self, layer: nn.Conv2d | nn.Linear, t: int, bits: int) -> None:
        """Quantize layer `t`; what fits its weight before compression is found once."""
        before = layer_at(self.task.model, self.table[t].name)
        fit = SCALES[self.scales]
        if not torch.equal(float_weight(layer), float_weight(before)):
            attach(layer, bits, fit(float_weight(layer), bits))
            return
        if (t, bits) not in self._fitted:
            self._fitted[t, bits] = fit(float_weight(before), bits)
        attach(layer, bits, self._fitted[t, bits].clone())

    def _describe(self, model: nn.Module, executed: Prefix, accuracy: float | None) -> Transition:
        n_done = len(executed)
        if n_done > 0 and not self._is_scored(n_done):
            if self.finetune_at == "layer" or self._lent:
                return super()._describe(model, executed, accuracy)
            # No other weight has changed since the step before.
            weight = layer_at(model, self.table[n_done - 1].name).weight
            n_left = int(torch.count_nonzero(weight.detach()))
            return replace_weight(self._current, self.table, n_done - 1, n_left)
        result = super()._describe(model, executed, accuracy)
        with self._timed("packing"):
            return result._replace(size_bytes=len(pack(model)))

    def _cost(self, result: Transition, executed: Prefix) -> tuple[float, float, float]:
        return result.size_bytes, self._min_bytes, self._full_bytes

    def _get_info(self) -> dict[str, Any]:
        size = self._current.size_bytes
        return super()._get_info() | ({"size_bytes": size} if size else {})

    def _get_reward(self) -> tuple[float, dict[str, float]]:
        reward, terms = super()._get_reward()
        if not self._current.size_bytes:
            terms.pop("cost")
        return reward, terms


def _check_bits(min_bits: int, activation_bits: int | None) -> tuple[int, int | None]:
    min_bits = check_count("min_bits", min_bits, None)
    if not 1 <= min_bits <= MAX_BITS:
        raise ValueError(f"min_bits must be in 1..{MAX_BITS}, got {min_bits}")
    if activation_bits is not None:
        activation_bits = check_count("activation_bits", activation_bits, None)
    if activation_bits not in (None, ACTIVATION_BITS):
        raise ValueError(
            f"activation_bits must be None or {ACTIVATION_BITS}, got {activation_bits}"
        )
    return min_bits, activation_bits


def _check_weights(model: nn.Module) -> None:
    """Check that every layer has a weight of its own, that nothing else computes."""
    owners: dict[int, str] = {}
    for name, layer in compute_layers(model).items():
        if is_computed(layer):
            raise ValueError(
                f"the weight of {name!r} is computed from others, as by weight_norm: remove that "
                "(torch.nn.utils.parametrize.remove_parametrizations) before quantizing"
            )
        other = owners.setdefault(id(float_weight(layer)), name)
        if other != name:
            raise ValueError(
                f"{other!r} and {name!r} share one weight: give each its own before quantizing"
            )


def _float_bytes(model: nn.Module) -> int:
    """Return the bytes of the network as float32 safetensors, whatever is quantized in it."""
    plain = copy.deepcopy(model)
    bake(plain)
    for layer in compute_layers(plain).values():
        detach_input(layer)
    return checkpoint_bytes(plain)
