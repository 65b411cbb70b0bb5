"""Batch-norms folded into the convolutions before them, whose weights stay quantized.

Shape legend: b images of C channels, N output channels of a convolution.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from compress_env.quantization.activations import detach_input
from compress_env.quantization.fake_quant import (
    bake,
    dequantize,
    is_computed,
    quantize_to_integers,
    quantizer_of,
)
from compress_env.task.layers import compute_layers

__all__ = ["fold_batch_norm"]

# Of the logits, relative to the largest: twenty times what rounding in float32 does.
_TOLERANCE = 1e-5


class _Pair(NamedTuple):
    """Dotted names of a convolution and of the batch-norm that reads its output."""

    convolution: str
    norm: str


@torch.no_grad()
def fold_batch_norm(model: nn.Module, image: Tensor) -> nn.Module:
    """Return a copy in which batch-norms that follow a convolution have become part of it.

    With g the norm's weight over its standard deviation, a convolution's weight w becomes g w. A
    quantized weight keeps its integers and bits: its scale becomes abs(g) times what it was, and
    the integers of a channel with a negative g change their sign; with g = 0 they become 0.

    Folded are pairs of which each is called once, the norm with the very output of the
    convolution. A pair stays where the logits of an image with noise, inputs not quantized, change
    by more than 1e-5 of the largest: where something else reads the convolution's output or weight.

    Args:
        model: The network, unchanged.
        image: Example images, (b, C, H, W) float32, on the model's device.

    Returns:
        The copy, in evaluation mode; a norm that is folded is an `nn.Identity`.
    """
    folded = copy.deepcopy(model).eval()
    probe = copy.deepcopy(folded)
    for layer in compute_layers(probe).values():
        detach_input(layer)
    generator = torch.Generator().manual_seed(0)
    # The same on every device; noise, so that a blank image tells as much.
    noise = torch.randn(image.shape, generator=generator).to(image)
    for pair in _find_pairs(probe, image):
        if _is_folded_exactly(probe, pair, image + noise):
            _fold(folded, pair)
    return folded


def _find_pairs(model: nn.Module, image: Tensor) -> list[_Pair]:
    """Run the model and return the norms with statistics that follow a convolution directly."""
    layers: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        or (isinstance(module, nn.BatchNorm2d) and module.running_mean is not None)
    }
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls[name] += 1
        if args:  # or it was called by keyword, and stays
            inputs[name] = args[0]
        outputs[name] = output

    with _hooks(layers, note):
        model(image)
    once = [name for name, n_calls in calls.items() if n_calls == 1]
    norms = [name for name in once if name in inputs and isinstance(layers[name], nn.BatchNorm2d)]
    convolutions = [
        name
        for name in once
        if isinstance(layers[name], nn.Conv2d) and not is_computed(layers[name])
    ]
    return [
        _Pair(convolution, norm)
        for norm in norms
        for convolution in convolutions
        if inputs[norm] is outputs[convolution]
    ]


@contextmanager
def _hooks(layers: dict[str, nn.Module], note: Any) -> Iterator[None]:
    """Have `note` called with name, layer, arguments and output after each call of a layer."""
    handles = [layer.register_forward_hook(partial(note, name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_folded_exactly(model: nn.Module, pair: _Pair, image: Tensor) -> bool:
    """Fold a pair; undo it and return False if the logits are not what they were."""
    before = {name: model.get_submodule(name) for name in pair}
    wanted = model(image)
    _fold(model, pair)
    if float((model(image) - wanted).abs().max()) <= _TOLERANCE * float(wanted.abs().max()):
        return True
    for name, module in before.items():
        model.set_submodule(name, module)
    return False


def _fold(model: nn.Module, pair: _Pair) -> None:
    """Replace the pair by one convolution and an identity."""
    convolution, norm = (model.get_submodule(name) for name in pair)
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    is_float = quantizer_of(convolution) is None
    fused = fuse_conv_bn_eval(convolution, norm) if is_float else _fuse_quantized(convolution, norm)
    model.set_submodule(pair.convolution, fused)
    model.set_submodule(pair.norm, nn.Identity())


def _fuse_quantized(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return the convolution and the norm as one convolution with the bits of the former."""
    quantizer = copy.deepcopy(quantizer_of(convolution))
    assert quantizer is not None and norm.running_mean is not None and norm.running_var is not None
    integers = quantize_to_integers(convolution.weight, quantizer.scale, quantizer.bits)
    # Fused with a weight of ones, a norm shows its factor. (N, 1, 1, 1) -> (N,)
    fused_ones, bias = fuse_conv_bn_weights(
        torch.ones_like(convolution.weight[:, :1, :1, :1]),
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    factor = fused_ones.flatten()
    # A scale must have an inverse: a channel whose scale vanishes keeps it, with zeros.
    vanishes = factor.abs() * quantizer.scale < torch.finfo(torch.float32).tiny
    sign = torch.where(vanishes, 0, factor.sign()).to(torch.int8)
    growth = torch.where(vanishes, 1, factor.abs())
    quantizer.scale *= growth
    quantizer.clip *= growth
    fused = copy.deepcopy(convolution)
    bake(fused)
    fused.weight = nn.Parameter(dequantize(integers * sign.view(-1, 1, 1, 1), quantizer.scale))
    fused.bias = bias
    parametrize.register_parametrization(fused, "weight", quantizer)
    return fused
