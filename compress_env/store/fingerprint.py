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
from torch import Tensor, nn

from compress_env.networks.models import Architecture
from compress_env.store.digests import Code, digest
from compress_env.store.process import Process, describe_process
from compress_env.task.task import CompressionTask

__all__ = ["code_version", "describe_task", "name_in_process", "task_fingerprint"]

_PACKAGES = ("torch", "torch-pruning", "numpy", "scipy", "scikit-learn")
_VERSIONED = {"gymnasium", "compress_env", *sys.stdlib_module_names}
"""Packages whose classes need not be read."""
_logger = logging.getLogger(__name__)
_OF_EVERY_MODULE = set(vars(nn.Module()))
_HOOK_OPTIONS = ("with_kwargs", "always_called")


def task_fingerprint(task: CompressionTask, kind: type, settings: Mapping[str, Any]) -> str:
    """Return a name that only tasks with the same transitions share, computed in this process now.

    Args:
        task: The task.
        kind: The environment's class.
        settings: Whatever else a transition follows from.

    Returns:
        64 hexadecimal digits. Where something cannot be identified, such as the code of a class
        that cannot be read, they are random, and a warning says so.
    """
    described = describe_task(task, kind, settings)
    return name_in_process(described, task, describe_process(task.device))


def name_in_process(described: str, task: CompressionTask, process: Process) -> str:
    """Return the name of a task as it is computed now.

    Args:
        described: From `describe_task`, which need not be called again.
        task: The task.
        process: How the process computes now.

    Returns:
        64 hexadecimal digits; random ones where the process cannot be identified.
    """
    return digest(described, process.name(), task.scoring_batch_size)


def describe_task(task: CompressionTask, kind: type, settings: Mapping[str, Any]) -> str:
    """Return a name for all that a task's transitions follow from but the way of computing.

    It follows from the network (architecture, code, hooks, weights and its logits on the
    calibration images), the images, the settings of fine-tuning, this package's own code, that of
    an environment derived from it, and the packages that it computes with.

    Args:
        task: The task.
        kind: The environment's class.
        settings: Whatever else a transition follows from.

    Returns:
        64 hexadecimal digits, random ones where something cannot be identified.
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
        "code": [code_version(), kind.__qualname__, *_sources(kind)],
        "packages": {name: version(name) for name in _PACKAGES},
    }
    return digest(parts)


@functools.cache
def code_version() -> str:
    """Return a hash of this package's source files: changed code makes new transitions."""
    root = Path(__file__).parents[1]
    files = sorted(root.rglob("*.py"))
    return digest({path.relative_to(root).as_posix(): path.read_bytes() for path in files})


code_version()  # read at once: a file that changes later is not the code that runs


def _network_digest(task: CompressionTask) -> str:
    model = task.model
    kinds = list(dict.fromkeys(type(module) for module in model.modules()))
    images, _ = next(task.calibration_batches())
    with torch.no_grad():
        logits = model(images)
    return digest(
        repr(model),
        Code([kind for kind in kinds if _package(kind) != "compress_env"]),
        [_name_of(kind) for kind in kinds],
        Code(_describe_modules(model, kinds)),
        Code(_describe_tensors(model)),
        Code(logits),
    )


def _describe_modules(model: nn.Module, kinds: list[type]) -> list[Any]:
    """Return what each module is, has been told and calls: all but its tensors.

    A module's name stands for what is called by it too, should it have several. What it has been
    told may not show in `repr`, such as a rate of dropout or a `forward` of its own; but what
    `build_model` made the network from, the network itself shows.
    """
    numbers: dict[int, int] = {}
    return [
        [
            name,
            numbers.setdefault(id(module), len(numbers)),
            kinds.index(type(module)),
            {
                key: value
                for key, value in vars(module).items()
                if key not in _OF_EVERY_MODULE and not isinstance(value, Architecture)
            },
            _hooks_of(module),
        ]
        for name, module in model.named_modules(remove_duplicate=False)
    ]


def _hooks_of(module: nn.Module) -> list[Any]:
    """Return what a module calls beside `forward`, and whether with keywords.

    Hooks are numbered over all modules of a process: their numbers say nothing.
    """
    described: list[Any] = [getattr(module, "_is_full_backward_hook", None)]
    for kind in ("forward_pre", "forward", "backward_pre", "backward"):
        hooks = getattr(module, f"_{kind}_hooks", {})
        options = [getattr(module, f"_{kind}_hooks_{x}", {}) for x in _HOOK_OPTIONS]
        described.append([[hook, [n in x for x in options]] for n, hook in hooks.items()])
    return described


def _describe_tensors(model: nn.Module) -> list[Any]:
    """Return each parameter and buffer, with its place in memory, which others may share."""
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    numbers: dict[int, int] = {}
    return [
        [name, tensor, tensor.requires_grad, vars(tensor), _place(tensor, numbers)]
        for name, tensor in tensors
    ]


def _place(tensor: Tensor, numbers: dict[int, int]) -> tuple[Any, ...]:
    if tensor.layout is not torch.strided:
        return ()
    storage = tensor.untyped_storage().data_ptr()
    number = numbers.setdefault(storage, len(numbers))
    return number, tensor.storage_offset(), tensor.stride()


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


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
