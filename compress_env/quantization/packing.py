"""Packed networks: a quantized network as one small file, read back bit for bit.

The bytes are those of `compress_env.quantization.format`. Nothing in a file is ever executed: what
is read is a name of `build_model`, shapes, and numbers.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from compress_env.files import replacing
from compress_env.networks.intake import check_stored, unwrapped
from compress_env.networks.models import Architecture, build_model
from compress_env.networks.state_dicts import shared_names
from compress_env.networks.torch_files import open_regular
from compress_env.quantization.activations import (
    Range,
    attach_input,
    detach_input,
    has_quantizers,
    input_quantizer_of,
)
from compress_env.quantization.contents import Contents, InputLevels, QuantizedWeight
from compress_env.quantization.fake_quant import (
    FakeQuantize,
    attach,
    bake,
    dequantize,
    float_weight,
    quantize_to_integers,
    quantizer_of,
)
from compress_env.quantization.format import read, read_bytes, write
from compress_env.quantization.shrinking import load_into
from compress_env.task.layers import compute_layers

__all__ = ["load", "pack", "read_file", "save", "unpack"]

StrPath: TypeAlias = str | os.PathLike[str]

# Of a scale: rounds to level 0, and is no zero of pruning, which fine-tuning leaves alone.
_NEARLY_0 = 2.0**-20


def save(path: StrPath, model: nn.Module) -> int:
    """Write a network, with its quantized weights packed, into a single file.

    The file appears complete or not at all: it is written beside its place and then moved there.

    Args:
        path: File to write, by custom with the suffix `.cenv`; an existing one is replaced.
        model: The network, also a wrapped one. Quantized weights, as those of
            `QuantizationEnv.compressed_model`, take their bits; those that `bake` has made ordinary
            parameters take 32. All other floating tensors are stored as float32, also those of a
            network in another type. What has several names is stored once.

    Returns:
        Size of the file in bytes.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If the file could not be read again: if the network has state that is no tensor
            or a complex one, or weights that a hook computes, is no longer of the architecture that
            it names, or is a large one that is nearly all zeros (`format.max_tensor_bytes`).
    """
    model = unwrapped(model)
    check_stored(model)
    data = pack(model)
    _check_readable(data, model)
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(data)
    return os.path.getsize(path)


def load(path: StrPath, model: nn.Module | None = None) -> nn.Module:
    """Read a network from a file that :func:`save` wrote.

    Args:
        path: The file. It may come from anybody: memory and time are bounded by its size.
        model: The unpruned architecture, changed in place, where the network is of a class of the
            user's own; networks of `build_model` are built from what the file says.

    Returns:
        The network in evaluation mode, on the CPU unless `model` is elsewhere. Its logits are those
        of the network saved. Quantizers of weights and inputs are attached again, so that it can
        be trained, exported, or saved to the same bytes. The float weights below them are the
        levels themselves.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, is not a packed network, does not fit the architecture,
            or does not name one and `model` is not given.
    """
    contents = read_file(path)
    try:
        return unpack(contents, model)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def read_file(path: StrPath) -> Contents:
    """Return what a file says, without making a network of it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or is not a packed network.
    """
    with open_regular(Path(path)) as file:
        try:
            return read(read_bytes(file))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error


def pack(model: nn.Module) -> bytes:
    """Return what :func:`save` writes.

    Args:
        model: As there.
    """
    model = unwrapped(model)
    levels = _levels_of(model)
    state: dict[str, Any] = model.state_dict()
    floats = {k: x for k, x in state.items() if not k.startswith(tuple(levels.prefixes))}
    shared = shared_names(floats)
    architecture = getattr(model, "architecture", None)
    return write(
        Contents(
            architecture if isinstance(architecture, Architecture) else None,
            {name: _plain(x) for name, x in floats.items() if name not in shared},
            levels.weights,
            levels.inputs,
            {},
            levels.shared | shared,
        )
    )


class _Levels(NamedTuple):
    """The parts of a network that are stored as levels."""

    weights: dict[str, QuantizedWeight]
    """Quantized weights by the first name of each."""
    inputs: dict[str, InputLevels]
    """Levels of inputs by the name of the layer."""
    shared: dict[str, str]
    """First names of weights by their other names."""
    prefixes: list[str]
    """Of the state that these are made from."""


def _levels_of(model: nn.Module) -> _Levels:
    found = _Levels({}, {}, {}, [])
    first: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        if (levels := input_quantizer_of(module)) is not None:
            found.inputs[name] = InputLevels(float(levels.scale), int(levels.zero_point))
            found.prefixes.append(f"{prefix}input_quantizer.")
        if (quantizer := quantizer_of(module)) is not None:
            found.prefixes.append(f"{prefix}parametrizations.weight.")
            weight = f"{prefix}weight"
            if first.setdefault(module, weight) == weight:
                found.weights[weight] = _quantized_weight(module, quantizer)
            else:
                found.shared[weight] = first[module]
    return found


def unpack(contents: Contents, model: nn.Module | None = None) -> nn.Module:
    """Make the network that the contents of a file describe.

    Args:
        contents: From :func:`read_file`, not to be trusted.
        model: As for :func:`load`.

    Raises:
        ValueError: If they do not fit the architecture, or do not name one and `model` is not
            given.
    """
    state = contents.tensors | {name: _float_weight(w) for name, w in contents.weights.items()}
    if model is None:
        model = _build(contents.architecture)
        load_into(model, state, assign=True)
        _check_complete(model)
    else:
        model = unwrapped(model)
        if has_quantizers(model):
            raise ValueError("expected an unquantized network as model=, got a quantized one")
        load_into(model, state)
    for name, weight in contents.weights.items():
        layer = _layer(model, name.rpartition(".")[0])
        attach(layer, weight.bits, weight.scale.to(layer.weight.device))
    for name, input_levels in contents.inputs.items():
        layer = _layer(model, name)
        attach_input(layer, Range(0.0, 1.0))
        quantizer = input_quantizer_of(layer)
        assert quantizer is not None
        quantizer.scale.fill_(input_levels.scale)
        quantizer.zero_point.fill_(input_levels.zero_point)
    return model.eval()


def _check_readable(data: bytes, model: nn.Module) -> None:
    """Check that what was packed makes a network again.

    Raises:
        ValueError: If it does not.
    """
    architecture = getattr(model, "architecture", None)
    try:
        contents = read(data)
        unpack(contents, None if contents.architecture else _unquantized(model))
    except ValueError as error:
        remedy = ""
        if isinstance(architecture, Architecture):
            remedy = (
                f"; if it is no longer {architecture.name!r}, delete its attribute `architecture`, "
                "and give the unpruned network as model= to load it"
            )
        raise ValueError(f"the network could not be read again: {error}{remedy}") from error


def _unquantized(model: nn.Module) -> nn.Module:
    """Return a copy that holds plain float weights."""
    plain = copy.deepcopy(model)
    bake(plain)
    for layer in compute_layers(plain).values():
        detach_input(layer)
    return plain


def _quantized_weight(layer: nn.Module, quantizer: FakeQuantize) -> QuantizedWeight:
    weight: Any = layer.weight
    integers = quantize_to_integers(weight, quantizer.scale, quantizer.bits)
    kept = float_weight(layer).detach() != 0
    scale = _plain(quantizer.scale)
    return QuantizedWeight(quantizer.bits, integers.cpu(), scale, kept.cpu())


def _float_weight(weight: QuantizedWeight) -> Tensor:
    """Return the levels, those at 0 that are not pruned as values too small to leave it."""
    levels = dequantize(weight.integers, weight.scale)
    is_level_0 = weight.kept & (weight.integers == 0)
    # (N,) -> (N, 1, ...)
    scale = weight.scale.reshape(-1, *[1] * (levels.dim() - 1))
    return torch.where(is_level_0, _NEARLY_0 * scale, levels)


def _build(architecture: Architecture | None) -> nn.Module:
    """Build an unpruned network without memory for its weights."""
    if architecture is None:
        raise ValueError("the file names no architecture: give the unpruned network as model=")
    try:
        with torch.device("meta"):
            return build_model(*architecture)
    except Exception as error:  # builders of other packages may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot build {architecture.name!r}: {reason}") from error


def _check_complete(model: nn.Module) -> None:
    """Raise if a tensor that is no part of the state has been left without values."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(f"the state lacks {name!r}: give the unpruned network as model=")


def _layer(model: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise ValueError(f"expected a Conv2d or Linear to quantize at {name!r}")
    return layer


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU; floating ones as float32."""
    if not isinstance(tensor, Tensor) or tensor.is_complex():
        raise ValueError(f"expected a state of real tensors, got {tensor!r}")
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype)
