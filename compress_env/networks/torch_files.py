"""Reading files of tensors that may come from anybody: no code is run, and memory is bounded."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

__all__ = ["is_plain", "open_regular", "read_safetensors", "read_torch"]

_SMALL_BYTES = 2**24  # what a tensor may take in memory whatever its file holds
_EXPECTED = "expected safetensors or torch.save(model.state_dict(), path)"
_NUMPY = ("dtype", "ndarray", *(f"{c}.multiarray.{f}" for c in ("core", "_core") for f in (
    "_reconstruct", "scalar"
)))  # fmt: skip
_BESIDE = (
    "argparse.Namespace",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "types.SimpleNamespace",
    *(f"numpy.{name}" for name in _NUMPY),
)
"""What checkpoints hold beside weights: options, paths, and the best accuracy so far."""


class _Ignored:
    """Stands for an object that a file holds beside its tensors; nothing of it is kept."""

    def __init__(self, *_: object) -> None:
        """Take what would have made the object."""

    def __setstate__(self, _: object) -> None:
        """Take what would have been its state."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, never waiting for one that is a pipe or a device.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be opened.
        ValueError: If it is something else.
    """
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise ValueError(f"{path} is not a regular file")
    return open(number, "rb")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors in a safetensors file; of a tensor of several names, under all of them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read.
    """
    open_regular(path).close()
    try:
        tensors = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            names: dict[str, str] = file.metadata() or {}
    except Exception as error:  # it fails in too many ways on arbitrary bytes to list
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a readable safetensors file: {reason}") from error
    shared = {name: tensors[kept] for name, kept in names.items() if kept in tensors}
    return shared | tensors


def read_torch(path: Path) -> Any:
    """Read what `torch.save` wrote: containers, numbers and tensors, other objects as blanks.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or would take more memory than it has bytes.
    """
    blanks: list[Any] = [(_Ignored, name) for name in _BESIDE]
    with open_regular(path) as file, torch.serialization.safe_globals(blanks):
        try:
            _check_archive(file)
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # it fails in too many ways on arbitrary bytes to list
            raise ValueError(
                f"{path} is not a readable file of tensors ({type(error).__name__}); {_EXPECTED}"
            ) from error


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor from a file is an ordinary one that the file really holds.

    A few bytes can claim to be a large tensor, all of whose elements lie in the same place.
    """
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.nbytes <= max(_SMALL_BYTES, tensor.untyped_storage().nbytes())
    )


def _check_archive(file: BinaryIO) -> None:
    """Check that an archive, if it is one, holds all its bytes as they are."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            n_bytes = sum(entry.file_size for entry in entries)
            is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not is_stored or n_bytes > os.fstat(file.fileno()).st_size:
                raise ValueError("it holds less than it claims")
            # PyTorch can be told to write none, which are 0 then.
            has_checksums = any(entry.CRC for entry in entries)
            if has_checksums and archive.testzip() is not None:
                raise ValueError("it is damaged")
    file.seek(0)
