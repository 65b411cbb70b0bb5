"""Files that outlive a process: checkpoints, read without running code from them, and the cache."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import platformdirs
import safetensors
import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor, nn

from compress_env.files import replacing

__all__ = [
    "cache_dir",
    "cache_lock",
    "checkpoint_bytes",
    "default_data_root",
    "load_checkpoint",
    "read_safetensors",
    "same_weights",
    "save_checkpoint",
    "write_to_cache",
]

_logger = logging.getLogger(__name__)

_MAX_NAMES = 4  # names listed in an error


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Copy the weights in a file into `model`.

    Args:
        model: The network; left untouched if anything is wrong with the file.
        path: A safetensors file (suffix `.safetensors`), or a PyTorch file that holds a state dict
            or a dict with one under "state_dict" or "model". A "module." in front of every name,
            as written by `DataParallel`, is removed. Only tensors are read: a file that needs
            code to be run is refused.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read or does not fit the network: the message names the
            weights that are missing, unexpected or of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    weights = read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    _check_fit(model, weights, path)
    model.load_state_dict(weights)


def save_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Write the weights of `model` as safetensors; the file is complete or not there at all.

    Raises:
        OSError: If the file cannot be written.
    """
    content = _serialize(model)
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(content)


def same_weights(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Tell whether two state dicts hold the same weights, to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the weights in a safetensors file.

    Raises:
        ValueError: If the file cannot be read.
    """
    try:
        return safetensors.torch.load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def checkpoint_bytes(model: nn.Module) -> int:
    """Return the size of the file that `save_checkpoint` writes, in bytes."""
    return len(_serialize(model))


def _serialize(model: nn.Module) -> bytes:
    # Clones, because safetensors refuses tensors that share memory.
    weights = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    return safetensors.torch.save(weights)


def cache_dir() -> Path:
    """Return the directory for trained networks and decoded images; it need not exist.

    Returns:
        The environment variable COMPRESS_ENV_CACHE if it is set, otherwise the user's cache
        directory for this package.
    """
    chosen = os.environ.get("COMPRESS_ENV_CACHE")
    return Path(chosen or platformdirs.user_cache_dir("compress-env")).expanduser()


def default_data_root() -> Path:
    """Return the directory for the files of data sets; it need not exist.

    Returns:
        The environment variable COMPRESS_ENV_DATA if it is set, otherwise a directory in the user's
        cache directory for this package.
    """
    chosen = os.environ.get("COMPRESS_ENV_DATA")
    if chosen:
        return Path(chosen).expanduser()
    return Path(platformdirs.user_cache_dir("compress-env")) / "data"


@contextmanager
def cache_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file in the cache, so that of several processes only one makes it.

    Where the cache is not writable, a warning is logged and no lock is held.

    Args:
        path: The file; its directory is made.
    """
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{path}.lock"))
        except OSError as error:
            _logger.warning("going on without the cache, which is not writable: %s", error)
        yield


def write_to_cache(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file completely or not at all; a failure is only logged, as a warning.

    Args:
        path: The file.
        write: Writes it to the temporary path that it is given.
    """
    try:
        with replacing(path) as temporary:
            write(temporary)
    except OSError as error:
        _logger.warning("could not write to the cache: %s", error)


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load fails in too many ways on arbitrary bytes to list
        raise ValueError(
            f"{path} is not a readable file of tensors ({type(error).__name__}); expected "
            "safetensors or torch.save(model.state_dict(), path)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    named = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )
    if not named:
        raise ValueError(
            f"{path} holds no state dict; expected a dict of tensors by name, alone or under "
            '"state_dict" or "model"'
        )
    return dict(content)


def _check_fit(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    problems = [
        _listed("missing", [name for name in expected if name not in weights]),
        _listed("unexpected", [name for name in weights if name not in expected]),
        _listed(
            "wrong shape",
            [
                f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
                for name, tensor in expected.items()
                if name in weights and weights[name].shape != tensor.shape
            ],
        ),
        _listed(
            "not finite",
            [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())],
        ),
    ]
    found = "; ".join(problem for problem in problems if problem)
    if found:
        raise ValueError(
            f"{path} does not fit the network: {found}; the network has {len(expected)} tensors, "
            f"{_listed('expected', list(expected))}"
        )


def _listed(label: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{label}: {', '.join(names[:_MAX_NAMES])}{more}"
