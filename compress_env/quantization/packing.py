"""Packed files: a quantized network as one safetensors file, read back bit for bit.

A quantized weight is stored as unsigned integers of a few bits each, packed without gaps (least
significant bit first) into a uint8 tensor, with one float32 scale per output channel. Everything
else is stored as it is, floating tensors as float32. The header's JSON records bits and shapes.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress_env.files import replacing
from compress_env.quantization.fake_quant import (
    MAX_BITS,
    dequantize,
    largest_integer,
    quantize_to_integers,
    quantizer_of,
)

__all__ = ["load_into", "load_packed", "pack", "save_packed"]

StrPath: TypeAlias = str | os.PathLike[str]
ByteArray: TypeAlias = NDArray[np.uint8]

_HEADER_KEY = "compress_env"
_VERSION = 1
_SCALE_SUFFIX = ".scale"


class _PackedWeight(NamedTuple):
    """What the header says about one packed weight."""

    bits: int
    """Bits per stored integer, which stand for -Q..Q with Q = 2^(bits-1) - 1; 1 for signs."""
    shape: tuple[int, ...]
    """Shape of the weight, (N, ...)."""


def save_packed(path: StrPath, model: nn.Module) -> int:
    """Write a model, with its quantized weights packed, into a single file.

    The file appears complete or not at all: it is written beside its place and then moved there.

    Args:
        path: File to write; an existing one is replaced.
        model: The model; weights quantized by ``fake_quant.attach`` are packed at their bits.
            One-bit weights among which there are zeros take two bits each.

    Returns:
        Size of the file in bytes.

    Raises:
        OSError: If the file cannot be written.
    """
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(pack(model))
    return os.path.getsize(path)


def pack(model: nn.Module) -> bytes:
    """Return what :func:`save_packed` writes.

    Args:
        model: As there.
    """
    tensors, records = _pack_model(model)
    header = {"version": _VERSION, "weights": records}
    text = {_HEADER_KEY: json.dumps(header, sort_keys=True)}
    return safetensors.torch.save(tensors, text)


def load_packed(path: StrPath) -> dict[str, Tensor]:
    """Read a packed file back into the state of the baked model.

    Args:
        path: A file that :func:`save_packed` wrote.

    Returns:
        The state dict of the baked model, bit for bit: float32 on the CPU, integer buffers as they
        were.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or is not a packed network.
    """
    data = Path(path).read_bytes()
    try:
        return _unpack_model(data)
    except (SafetensorError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def load_into(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Shrink a model's layers to the shapes of a pruned network's state, and load it.

    ``Conv2d`` (depthwise ones too), ``Linear`` and batch-norm layers take the stored numbers of
    channels; everything else must fit as it is. On an error the model is unchanged.

    Args:
        model: The unpruned architecture, changed in place.
        state: State of the pruned network, as from :func:`load_packed`.

    Raises:
        ValueError: If a name is missing or left over, or a shape is not a shrunk one; the message
            names the first.
    """
    _check_names(set(model.state_dict()), set(state))
    for name, module in model.named_modules():
        _check_module(module, name, _own_state(module, name, state))
    for name, module in model.named_modules():
        _shrink(module, _own_state(module, name, state))
    model.load_state_dict(state, strict=True)


def _pack_model(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Return the tensors to write, and the header's record of each packed weight."""
    tensors = {name: _plain(tensor) for name, tensor in model.state_dict().items()}
    records: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        quantizer = quantizer_of(module)
        if quantizer is None:
            continue
        prefix = f"{name}." if name else ""
        below = f"{prefix}parametrizations.weight."
        tensors = {key: t for key, t in tensors.items() if not key.startswith(below)}
        weight: Any = module.weight
        integers = quantize_to_integers(weight, quantizer.scale, quantizer.bits)
        packed, record = _pack_weight(integers.cpu().numpy(), quantizer.bits)
        tensors[f"{prefix}weight"] = torch.from_numpy(packed)
        tensors[f"{prefix}weight{_SCALE_SUFFIX}"] = _plain(quantizer.scale)
        records[f"{prefix}weight"] = record._asdict()
    return tensors, records


def _plain(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU that shares no memory; floating tensors as float32."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype).clone(memory_format=torch.contiguous_format)


def _pack_weight(integers: NDArray[np.int8], bits: int) -> tuple[ByteArray, _PackedWeight]:
    """Pack integers with the fewest bits that hold them all."""
    if bits == 1 and not integers.all():
        bits = 2
    flat = integers.reshape(-1).astype(np.int16)
    values = (flat > 0) if bits == 1 else flat + largest_integer(bits)
    return _pack_bits(values.astype(np.uint8), bits), _PackedWeight(bits, integers.shape)


def _unpack_weight(packed: ByteArray, record: _PackedWeight) -> NDArray[np.int8]:
    """Return the integers, in their shape."""
    values = _unpack_bits(packed, record.bits, math.prod(record.shape)).astype(np.int16)
    largest = largest_integer(record.bits)
    integers = 2 * values - 1 if record.bits == 1 else values - largest
    if (integers > largest).any():
        raise ValueError(f"an integer exceeds {largest}")
    return integers.astype(np.int8).reshape(record.shape)


def _pack_bits(values: ByteArray, bits: int) -> ByteArray:
    """Concatenate the lowest bits of each value, (n,) -> (ceil(n * bits / 8),)."""
    # (n,) -> (n, 1) -> (n, bits)
    rows = np.unpackbits(values[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(rows, bitorder="little")


def _unpack_bits(packed: ByteArray, bits: int, n_values: int) -> ByteArray:
    """Invert :func:`_pack_bits`."""
    expected = -(-n_values * bits // 8)
    if packed.shape != (expected,):
        raise ValueError(f"expected {expected} bytes of weights, got shape {packed.shape}")
    # (n * bits,) -> (n, bits) -> (n, 1) -> (n,)
    rows = np.unpackbits(packed, count=n_values * bits, bitorder="little").reshape(-1, bits)
    return np.packbits(rows, axis=1, bitorder="little")[:, 0]


def _unpack_model(data: bytes) -> dict[str, Tensor]:
    """Return the baked model's state from a file's content."""
    state = safetensors.torch.load(data)
    for name, raw in _read_header(data)["weights"].items():
        record = _checked_record(raw)
        scale = state.pop(name + _SCALE_SUFFIX)
        if scale.dtype != torch.float32 or scale.shape != record.shape[:1]:
            raise ValueError(f"the scales of {name} do not fit its shape {record.shape}")
        integers = _unpack_weight(state[name].numpy(), record)
        state[name] = dequantize(torch.from_numpy(integers), scale)
    return state


def _read_header(data: bytes) -> dict[str, Any]:
    """Return this module's part of a safetensors header."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    if _HEADER_KEY not in metadata:
        raise ValueError(f"no {_HEADER_KEY!r} entry in the header")
    header: dict[str, Any] = json.loads(metadata[_HEADER_KEY])
    if header["version"] != _VERSION:
        raise ValueError(f"expected version {_VERSION}, got {header['version']!r}")
    return header


def _checked_record(raw: dict[str, Any]) -> _PackedWeight:
    """Return a record of the header, after a check of its ranges."""
    record = _PackedWeight(int(raw["bits"]), tuple(int(size) for size in raw["shape"]))
    if not 1 <= record.bits <= MAX_BITS or not record.shape or min(record.shape) < 0:
        raise ValueError(f"expected bits in 1..{MAX_BITS} and a shape, got {tuple(record)}")
    return record


def _damaged(path: StrPath, error: Exception) -> ValueError:
    """Return the one-line error for a file that cannot be read."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{os.fspath(path)} is damaged or not a packed network: {reason}")


def _check_names(expected: set[str], got: set[str]) -> None:
    for name in sorted(expected ^ got):
        kind = "lacks" if name in expected else "has, but the model does not,"
        raise ValueError(f"the stored network {kind} {name!r}")


def _own_state(module: nn.Module, name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a state that a module owns itself, under its local names."""
    prefix = f"{name}." if name else ""
    return {key: state[prefix + key] for key in _own_tensors(module) if prefix + key in state}


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's own parameters and buffers."""
    parameters = module.named_parameters(recurse=False, remove_duplicate=False)
    buffers = module.named_buffers(recurse=False, remove_duplicate=False)
    return {**dict(parameters), **dict(buffers)}


def _check_module(module: nn.Module, name: str, stored: dict[str, Tensor]) -> None:
    """Raise unless each stored tensor is a shrunk version of the module's, all by one count."""
    own = _own_tensors(module)
    counts = {len(tensor) for tensor in stored.values() if tensor.dim()}
    for key, tensor in stored.items():
        free = _n_free_dims(module, key)
        fits = (
            tensor.dim() == own[key].dim()
            and tensor.shape[free:] == own[key].shape[free:]
            and all(0 < s <= o for s, o in zip(tensor.shape, own[key].shape, strict=True))
            and (not free or (len(counts) == 1 and _fits_groups(module, len(tensor))))
        )
        if not fits:
            full_name = f"{name}.{key}" if name else key
            raise ValueError(
                f"{full_name}: expected a shape that {tuple(own[key].shape)} can shrink to, "
                f"got {tuple(tensor.shape)}"
            )


def _n_free_dims(module: nn.Module, key: str) -> int:
    """Return how many leading dimensions of a module's tensor may shrink."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return {"weight": 2, "bias": 1}.get(key, 0)
    if isinstance(module, _BatchNorm):
        return 0 if key == "num_batches_tracked" else 1
    return 0


def _is_depthwise(module: nn.Conv2d) -> bool:
    return module.groups == module.in_channels > 1


def _fits_groups(module: nn.Module, n_outputs: int) -> bool:
    """Return whether a convolution can have that many output channels in its groups."""
    if not isinstance(module, nn.Conv2d):
        return True
    if _is_depthwise(module):
        return n_outputs % (module.out_channels // module.groups) == 0
    return n_outputs % module.groups == 0


def _shrink(module: nn.Module, stored: dict[str, Tensor]) -> None:
    """Give a module's tensors the stored shapes, and its attributes the stored counts."""
    if isinstance(module, nn.Conv2d) and "weight" in stored:
        _set_conv_counts(module, stored["weight"])
    elif isinstance(module, nn.Linear) and "weight" in stored:
        module.out_features, module.in_features = stored["weight"].shape
    elif isinstance(module, _BatchNorm) and stored:
        module.num_features = max(len(tensor) for tensor in stored.values() if tensor.dim())
    for key, tensor in _own_tensors(module).items():
        if key in stored and tensor.shape != stored[key].shape:
            empty = tensor.detach().new_empty(stored[key].shape)
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(
                module, key, nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
            )


def _set_conv_counts(module: nn.Conv2d, weight: Tensor) -> None:
    """Set channels and groups from a weight of shape (N, C / groups, kh, kw)."""
    if _is_depthwise(module):
        module.groups = len(weight) * module.groups // module.out_channels
    module.out_channels = len(weight)
    module.in_channels = weight.shape[1] * module.groups
