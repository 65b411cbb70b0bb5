"""How this process computes: what numbers follow from beside the task, read whenever it counts."""

from __future__ import annotations

import functools
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from compress_env.store.digests import digest, identify

__all__ = ["Process", "describe_process"]

# Attributes of `torch`; those that can be called are.
_SWITCHES = (
    "are_deterministic_algorithms_enabled",
    "is_deterministic_algorithms_warn_only_enabled",
    "utils.deterministic.fill_uninitialized_memory",
    "get_default_dtype",
    "is_anomaly_enabled",
    "is_anomaly_check_nan_enabled",
    "is_autocast_cache_enabled",
    "_C._get_float32_matmul_precision",
    "_C._get_nnpack_enabled",
    "_C._get_cpu_allow_fp16_reduced_precision_reduction",
    "backends.mkldnn.enabled",
    "backends.mkldnn.deterministic",
    "backends.mkldnn.allow_tf32",
    "backends.quantized.engine",
    "backends.opt_einsum.enabled",
    "backends.opt_einsum.strategy",
    "backends.mha.get_fastpath_enabled",
    "_C._get_mem_efficient_sdp_enabled",
    "_C._get_flash_sdp_enabled",
    "_C._get_math_sdp_enabled",
    "_C._get_math_sdp_allow_fp16_bf16_reduction",
)
_CUDA_SWITCHES = (
    "backends.cudnn.enabled",
    "backends.cudnn.benchmark",
    "backends.cudnn.benchmark_limit",
    "backends.cudnn.deterministic",
    "backends.cudnn.allow_tf32",
    "backends.cuda.matmul.allow_tf32",
    "_C._get_cublas_allow_fp16_reduced_precision_reduction",
    "_C._get_cublas_allow_bf16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_fp16_accumulation",
    "backends.cuda.preferred_blas_library",
    "backends.cuda.preferred_linalg_library",
    "backends.cuda.cudnn_sdp_enabled",
    "backends.cudnn.version",
    "version.cuda",
)
# Backends and operations whose precision in float32 is set by name.
_PRECISIONS = [
    *((backend, "all") for backend in ("generic", "cuda", "mkldnn")),
    *((b, operation) for b in ("cuda", "mkldnn") for operation in ("matmul", "conv", "rnn")),
]
# Environment variables that libraries heed.
_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_DYNAMIC",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
)
# Where whatever is called in every module or by every optimizer is registered.
_REGISTRIES = [
    (name, registry)
    for owner in (modules, optimizers)
    for name, registry in vars(owner).items()
    if name.startswith("_global_") and isinstance(registry, dict)
]
_GRAIN = 32768  # elements that PyTorch gives to one thread at least


class Process(NamedTuple):
    """How a process computes. Two that are equal give the same numbers on the same machine."""

    switches: dict[str, Any]
    """What is set, by name."""
    hooks: tuple[Any, ...]
    """Digests of what is called in every module; itself, where it cannot be identified."""

    def name(self) -> str:
        """Return a digest, a new one each time where something cannot be identified."""
        known = all(isinstance(hook, str) for hook in self.hooks)
        hooks = repr(self.hooks) if known else uuid.uuid4().hex
        return digest(repr(self.switches), hooks)


def describe_process(device: torch.device) -> Process:
    """Return how this process computes on a device from now on, in a tenth of a millisecond.

    What nobody can ask PyTorch for is tried, such as whether numbers next to 0 are flushed.
    """
    on_cuda = device.type == "cuda"
    names = (*_SWITCHES, *(_CUDA_SWITCHES if on_cuda else ()))
    switches = {name: _read(_GETTERS[name], torch) for name in names}
    switches |= {
        "machine": _cuda(device) if on_cuda else _cpu(device.type),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "autocast": [_read(_autocast, kind) for kind in dict.fromkeys(("cpu", device.type))],
        "precision": [_read(_precision, pair) for pair in _PRECISIONS],
        "flushes": _flushes(),
        "numpy": np.geterr(),
        "variables": _variables(),
    }
    return Process(switches, tuple(identify(hook) or hook for hook in _hooks()))


_GETTERS = {name: attrgetter(name) for name in (*_SWITCHES, *_CUDA_SWITCHES)}


def _read(getter: Callable[[Any], Any], source: Any) -> Any:
    """Return what a getter says; where PyTorch has no answer, the reason."""
    try:
        value = getter(source)
        return value() if callable(value) else value
    except (AttributeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def _autocast(kind: str) -> Any:
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)


def _precision(pair: tuple[str, str]) -> Any:
    return torch._C._get_fp32_precision_getter(*pair)


@functools.cache
def _cuda(device: torch.device) -> str:
    return repr(torch.cuda.get_device_properties(device))


@functools.cache
def _cpu(kind: str) -> str:
    features = sorted(torch.cpu.get_capabilities().items())
    return repr((kind, torch.backends.cpu.get_cpu_capability(), features))


@functools.cache
def _variables() -> str:
    """Return what libraries have read when they started."""
    return repr([os.environ.get(name) for name in _VARIABLES])


def _flushes() -> list[bool]:
    """Return whether each thread takes numbers below the smallest normal one for 0."""
    this, n_threads = sys.float_info.min / 2 == 0.0, torch.get_num_threads()
    if n_threads == 1:
        return [this]
    halves = _smallest(n_threads).mul(0.5)
    return [this, *(halves[_GRAIN // 2 :: _GRAIN] == 0.0).tolist()]


@functools.cache
def _smallest(n_threads: int) -> Tensor:
    """Return so many of the smallest normal number that each thread is given some."""
    tiny = torch.finfo(torch.float32).tiny
    return torch.full((n_threads * _GRAIN,), tiny, dtype=torch.float32, device="cpu")


def _hooks() -> Iterator[Any]:
    """Yield what is called in every module and optimizer, or changes every operation."""
    for name, registry in _REGISTRIES:
        if registry:
            yield [name, list(registry.values()), modules._global_is_full_backward_hook]
    yield from torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    yield from _get_current_dispatch_mode_stack()
    saved = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if saved is not None:
        yield list(saved)
