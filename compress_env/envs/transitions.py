"""What a step does to the network: read from the store, or computed and kept."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import nn

from compress_env.envs.options import FinetuneAt, RewardAt
from compress_env.envs.stage import CompressionStage
from compress_env.envs.state import describe_failure, describe_network, is_within, timed
from compress_env.seeding import derive_generator
from compress_env.store.fingerprint import describe_task, name_in_process
from compress_env.store.process import Process, describe_process
from compress_env.store.snapshots import Network, PrefixNetworks
from compress_env.store.store import Executed, Prefix, Transition, TransitionStore
from compress_env.task.layers import Layer
from compress_env.task.task import CompressionTask

__all__ = ["StoredTransitions"]


class StoredTransitions(CompressionStage):
    """A deterministic function of (seed, the values executed so far), and its store."""

    task: CompressionTask
    finetune_steps: int
    finetune_at: FinetuneAt
    reward_at: RewardAt
    task_seed: int
    store: TransitionStore | None
    table: tuple[Layer, ...]
    """Every convolution and linear layer, in execution order, as they are before compression."""
    other_macs: int
    """Multiply-accumulates per image of all other operations, the same whatever is decided."""
    positions: dict[str, int]
    """Output positions per image of every convolution and linear layer."""
    walk: tuple[Layer, ...]
    """The layers to decide, in execution order, as they are before compression."""
    n_lookups: int
    """Steps taken that the store could have known."""
    n_hits: int
    """Steps that it knew."""
    step_seconds: dict[str, float]
    """Seconds of the last step by what it spent them on."""
    _executed: Prefix
    _lent: bool
    _noise_seed: int
    _networks: PrefixNetworks[Network]
    _uncompressed: Transition
    _described: str | None
    _process: Process
    _scales: dict[str, int]
    _fingerprints: dict[str, str | None]
    """Names of what the caller's functions do, by option."""

    def _transition(self, executed: Prefix) -> Transition:
        """Return what the network is after `executed`: from the store, or computed and kept."""
        self.step_seconds = {}
        store = None if self._lent else self.store
        if store is None:
            return self._compute(executed)[0]
        task, key = self._task_name(), (self._noise_seed, *executed)
        with self._timed("store"):
            known = store.get(task, key, partial(self._can_be, len(executed)))
        result, is_final = (known, False) if known else self._compute(executed)
        if is_final:
            with self._timed("store"):
                store.put(task, key, result)
        self.n_lookups += 1
        self.n_hits += known is not None
        return result

    def _can_be(self, n_done: int, found: Transition) -> bool:
        """Return whether so many decisions can have led to what a store says."""
        bound = self._uncompressed._replace(
            out_channels=self._scales["out_channels"], in_channels=self._scales["in_channels"]
        )
        return is_within(found, bound, self._is_scored(n_done))

    def _compute(self, executed: Prefix) -> tuple[Transition, bool]:
        """Return what the network is after `executed`, and whether it would be so again."""
        try:
            network = self._network_after(executed)
            accuracy = None
            if self._is_scored(len(executed)):
                with self._timed("evaluation"):
                    accuracy = self.task.score(network.model)
            result = self._describe(network.model, executed, accuracy)
            return result._replace(**self._noted(network)), True
        except (FloatingPointError, torch.OutOfMemoryError) as failure:
            text = describe_failure(failure)
            is_memory = isinstance(failure, torch.OutOfMemoryError)
        if is_memory and self.task.device.type == "cuda":
            self._networks.snapshots.clear()
            torch.cuda.empty_cache()
        return self._uncompressed._replace(error=text), not is_memory

    def _advance(self, network: Network, seed: int, t: int, executed: Executed) -> None:
        """Compress layer `t`, fine-tune and estimate batch-norm statistics, in place."""
        self._compress(network, seed, t, executed)
        if self.finetune_at == "layer" or t + 1 == len(self.walk):
            with self._timed("finetune"):
                generator = derive_generator(seed, t, 0)
                self.task.finetune_step(network.model, self.finetune_steps, generator)
        if self._has_statistics(t + 1):
            self._estimate(network.model, seed, t)

    def _has_statistics(self, n_done: int) -> bool:
        """Whether something reads batch-norm statistics after so many decisions."""
        return self.runs_network or self._lent or self._is_scored(n_done)

    def _estimate(self, model: nn.Module, seed: int, t: int) -> None:
        with self._timed("batch_norm"):
            self.task.reestimate_batch_norm(model, derive_generator(seed, t, 1))

    def _estimate_if_due(self, model: nn.Module) -> None:
        """Estimate the statistics that the last step has spared itself."""
        n_done = len(self._executed)
        if n_done > 0 and not self._has_statistics(n_done):
            self._estimate(model, self._noise_seed, n_done - 1)

    @torch.inference_mode(False)  # a caller's `torch.no_grad()` would stop fine-tuning
    def _network_after(self, executed: Prefix) -> Network:
        """Return the network after `executed`, computed now if a store has spared that so far."""
        networks, seed = self._networks, self._noise_seed
        if self._lent:
            return networks.follow(seed, executed)
        self._heed_process()
        return networks.at(seed, executed)

    def _heed_process(self) -> None:
        """Start afresh where this process computes in another way than before."""
        now = describe_process(self.task.device)
        if now != self._process:
            self._process = now
            self._forget_computed()

    def _forget_computed(self) -> None:
        """Let go of what was computed while the process computed in another way."""
        self._networks.forget()

    def _is_scored(self, n_done: int) -> bool:
        return self.reward_at == "layer" or n_done == len(self.walk)

    def _task_name(self) -> str:
        """Return this task's name in the store, which follows what the process is set to now."""
        if self._described is None:
            settings = {
                "finetune_steps": self.finetune_steps,
                "finetune_at": self.finetune_at,
                "reward_at": self.reward_at,
                "seed": self.task_seed,
            } | self._fingerprints
            self._described = describe_task(self.task, type(self), settings | self._settings)
        self._heed_process()
        return name_in_process(self._described, self.task, self._process)

    def _describe(self, model: nn.Module, executed: Prefix, accuracy: float | None) -> Transition:
        next_layer = self.walk[min(len(executed), len(self.walk) - 1)].name
        return describe_network(model, self.positions, self.other_macs, next_layer, accuracy)

    def _timed(self, phase: str) -> AbstractContextManager[None]:
        return timed(self.step_seconds, phase)
