"""What makes two tasks the same: the part of the transition store's key that is not a decision."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress_env.digests import Code, digest
from compress_env.models import Architecture
from compress_env.task import CompressionTask

__all__ = ["code_version", "task_fingerprint"]

_PACKAGES = ("torch", "torch-pruning", "numpy", "scipy", "scikit-learn")
_VERSIONED = {"gymnasium", "compress_env", *sys.stdlib_module_names}
"""Packages whose classes need not be read."""
_logger = logging.getLogger(__name__)
_OF_EVERY_MODULE = set(vars(nn.Module()))


def task_fingerprint(task: CompressionTask, kind: type, settings: Mapping[str, Any]) -> str:
    """Return a name that only tasks with the same transitions share.

    It follows from the network (architecture, code, weights and its logits on the calibration
    images), the images, the settings of fine-tuning, the device and its number of threads (sums in
    floating point depend on it), this package's own code, that of an environment derived from it,
    and the packages that it computes with.

    Args:
        task: The task.
        kind: The environment's class.
        settings: Whatever else a transition follows from.

    Returns:
        64 hexadecimal digits. Where something cannot be identified, such as the code of a class
        that cannot be read, they are random, and a warning says so.
    """
    name = _name(task, kind, settings)
    if _name(task, kind, settings) != name:
        _logger.warning(
            "results are not shared: the code of the network, its data or its environment cannot "
            "be identified; define them in a file"
        )
    return name


def _name(task: CompressionTask, kind: type, settings: Mapping[str, Any]) -> str:
    parts = {
        "network": _network_digest(task),
        "data": task.data.digest(),
        "finetuning": asdict(task.config),
        "settings": dict(settings),
        "machine": _describe_machine(task.device),
        "code": [code_version(), kind.__qualname__, *_sources(kind)],
        "packages": {name: version(name) for name in _PACKAGES},
    }
    return digest(parts)


@functools.cache
def code_version() -> str:
    """Return a hash of this package's source files: changed code makes new transitions."""
    root = Path(__file__).parent
    files = sorted(root.rglob("*.py"))
    return digest({path.relative_to(root).as_posix(): path.read_bytes() for path in files})


code_version()  # read at once: a file that changes later is not the code that runs


def _network_digest(task: CompressionTask) -> str:
    model = task.model
    kinds = dict.fromkeys(type(module) for module in model.modules())
    # What modules have been told, such as a rate of dropout that they do not print; but not what
    # `build_model` made the network from, which the network itself shows.
    told = [
        {
            key: value
            for key, value in vars(module).items()
            if key not in _OF_EVERY_MODULE and not isinstance(value, Architecture)
        }
        for module in model.modules()
    ]
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    images, _ = next(task.calibration_batches())
    with torch.no_grad():
        logits = model(images)
    return digest(
        repr(model),
        Code([kind for kind in kinds if _package(kind) != "compress_env"]),
        Code(told),
        Code([dict(model.state_dict()), logits]),
        frozen,
    )


def _sources(kind: type) -> Iterator[str]:
    """Yield the code of a class, and of those it derives from, that has no version."""
    for base in kind.__mro__:
        if _package(base) in _VERSIONED:
            continue
        try:
            yield inspect.getsource(base)
        except (OSError, TypeError):
            yield uuid.uuid4().hex


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _describe_machine(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    threads = torch.get_num_threads()
    return {
        "device": device.type,
        "threads": threads,
        "simd": torch.backends.cpu.get_cpu_capability(),
    }
