"""What makes two tasks the same: the part of the transition store's key that is not a decision."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress_env.task import CompressionTask

__all__ = ["code_version", "task_fingerprint"]

_PACKAGES = ("torch", "torch-pruning", "numpy", "scipy", "scikit-learn")


def task_fingerprint(task: CompressionTask, settings: Mapping[str, Any]) -> str:
    """Return a name that only tasks with the same transitions share.

    It follows from the network (architecture, code, weights and its logits on the calibration
    images), the images, the settings of fine-tuning, the device and its number of threads (sums in
    floating point depend on it), this package's own code and the packages that it computes with.

    Args:
        task: The task.
        settings: Whatever else a transition follows from.

    Returns:
        64 hexadecimal digits. Where the code of a network's class cannot be read, they are random.
    """
    parts = {
        "network": _network_digest(task),
        "data": task.data.digest(),
        "finetuning": asdict(task.config),
        "settings": dict(settings),
        "machine": _describe_machine(task.device),
        "code": code_version(),
        "packages": {name: version(name) for name in _PACKAGES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@functools.cache
def code_version() -> str:
    """Return a hash of this package's source files: changed code makes new transitions."""
    root = Path(__file__).parent
    files = sorted(root.rglob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _network_digest(task: CompressionTask) -> str:
    digest = hashlib.sha256(repr(task.model).encode())
    for source in _sources(task.model):
        digest.update(source.encode())
    for name, tensor in task.model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes_of(tensor))
    frozen = [name for name, p in task.model.named_parameters() if not p.requires_grad]
    digest.update(repr(frozen).encode())
    # Functions that the forward pass calls leave their mark on the logits.
    images, _ = next(task.calibration_batches())
    with torch.no_grad():
        digest.update(_bytes_of(task.model(images)))
    return digest.hexdigest()


def _sources(model: nn.Module) -> Iterable[str]:
    """Yield the code of every class of a network that is not PyTorch's."""
    for kind in dict.fromkeys(base for m in model.modules() for base in type(m).__mro__):
        if kind is object or kind.__module__.split(".")[0] == "torch":
            continue
        try:
            yield f"{kind.__module__}.{kind.__qualname__}\n{inspect.getsource(kind)}"
        except (OSError, TypeError):
            yield uuid.uuid4().hex


def _bytes_of(tensor: torch.Tensor) -> bytes:
    # (...) -> (n bytes,)
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _describe_machine(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    threads = torch.get_num_threads()
    return {
        "device": device.type,
        "threads": threads,
        "simd": torch.backends.cpu.get_cpu_capability(),
    }
