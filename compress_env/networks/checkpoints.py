"""Files that outlive a process: checkpoints, read without running code from them, and the cache."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import platformdirs
import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor, nn

from compress_env.files import replacing
from compress_env.networks.intake import unwrapped
from compress_env.networks.state_dicts import find_weights, load_weights, shared_names
from compress_env.networks.torch_files import is_plain, read_safetensors, read_torch

__all__ = [
    "cache_dir",
    "cache_lock",
    "checkpoint_bytes",
    "default_data_root",
    "load_checkpoint",
    "read_safetensors",
    "same_weights",
    "save_checkpoint",
    "state_bytes",
    "write_to_cache",
]

_logger = logging.getLogger(__name__)

_MAX_NAMES = 4  # names listed in an error


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Copy the weights in a file into `model`.

    Args:
        model: The network, also a wrapped one; left untouched if anything is wrong with the file.
        path: A safetensors file (suffix `.safetensors`), or a PyTorch file that holds a state dict,
            alone, beside other entries, or under a name such as "state_dict", "model_state_dict",
            "model" or "net". What `DataParallel`, `torch.compile` and training frameworks put into
            names ("module.", "_orig_mod.", "model.") is removed. Counters of the batches that a
            norm has seen may be missing. Only tensors are read: a file that needs code to be run is
            refused, and so is one that claims to hold more than it does.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read or does not fit the network: the message names the
            weights that are missing, unexpected or of another shape.
    """
    path, model = Path(path), unwrapped(model)
    try:
        is_safe = path.suffix == ".safetensors"
        weights = find_weights(read_safetensors(path) if is_safe else read_torch(path), model)
    except FileNotFoundError:
        raise FileNotFoundError(f"no checkpoint at {path}") from None
    if weights is None:
        raise ValueError(
            f"{path} holds no state dict; expected a dict of tensors by name, alone or under "
            '"state_dict", "model_state_dict", "model" or "net"'
        )
    _check_fit(model, weights.tensors, path)
    load_weights(model, weights)


def save_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Write the weights of `model` as safetensors; the file is complete or not there at all.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If a tensor is of a kind that such a file cannot hold.
    """
    content = state_bytes(unwrapped(model).state_dict())
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(content)


def same_weights(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Tell whether two state dicts hold the same weights, to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def checkpoint_bytes(model: nn.Module) -> int:
    """Return the size of the file that `save_checkpoint` writes, in bytes."""
    return len(state_bytes(unwrapped(model).state_dict()))


def state_bytes(state: Mapping[str, Tensor]) -> bytes:
    """Return a state dict as safetensors, where a tensor of several names is kept once."""
    shared = shared_names(state)
    # Clones, because safetensors refuses tensors that share memory or have gaps.
    weights = {
        name: tensor.cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
        if name not in shared
    }
    return safetensors.torch.save(weights, shared or None)


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


def _check_fit(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    wanted = [name for name in expected if not name.endswith("num_batches_tracked")]
    problems = [
        _listed("missing", [name for name in wanted if name not in weights]),
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
            "wrong type",
            [
                f"{name} {weights[name].dtype} instead of {tensor.dtype}"
                for name, tensor in expected.items()
                if name in weights and not _can_be(weights[name], tensor)
            ],
        ),
        _listed("not in the file", [k for k, t in weights.items() if not is_plain(t)]),
    ]
    if not any(problems):  # or what is looked at may be of any size
        problems = [_listed("not finite", [k for k, t in weights.items() if not _is_finite(t)])]
    found = "; ".join(problem for problem in problems if problem)
    if found:
        raise ValueError(
            f"{path} does not fit the network: {found}; the network has {len(expected)} tensors, "
            f"{_listed('expected', list(expected))}"
        )


def _can_be(given: Tensor, wanted: Tensor) -> bool:
    """Whether values can be taken over in the type that is wanted, to its precision."""
    return given.dtype == wanted.dtype or (
        not given.is_complex() and (given.is_floating_point() or not wanted.is_floating_point())
    )


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _listed(label: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{label}: {', '.join(names[:_MAX_NAMES])}{more}"
