"""Files that run elsewhere: ONNX with quantized weights and inputs, and torch.export programs.

Shape legend: b images of C channels, H x W; N output channels of a layer.
"""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress_env.files import replacing
from compress_env.networks.intake import check_stored, unwrapped
from compress_env.quantization.activations import ACTIVATION_BITS, InputQuantizer
from compress_env.quantization.fake_quant import (
    bake,
    dequantize,
    quantize_to_integers,
    quantizer_of,
)
from compress_env.quantization.folding import fold_batch_norm
from compress_env.task.layers import check_network

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

__all__ = ["export_onnx", "export_program"]

StrPath: TypeAlias = str | os.PathLike[str]

# What the exporter calls the parts of a quantized weight.
_PLAIN_NAMES = {"parametrizations.weight.original": "weight", "parametrizations.weight.0": "weight"}
_OPSET = 21  # of ONNX, which onnxruntime runs from version 1.18 on


def export_onnx(path: StrPath, model: nn.Module, image: Tensor) -> int:
    """Write a network as an ONNX file that takes any number of images.

    Batch-norms are folded into the convolutions before them. A quantized weight is stored as int8
    integers with one scale per output channel, read through `DequantizeLinear`: fewer bits give
    smaller integers, not a smaller file. A quantized input goes through `QuantizeLinear` and
    `DequantizeLinear`, uint8.

    A runtime may merge these with the layers into integer kernels. Those round biases too, so that
    inputs of later layers sometimes go to the next level, and on x86 processors without VNNI those
    of onnxruntime add two products in 16 bits, where weights of eight bits can saturate. With its
    session option `session.disable_quant_qdq` set to 1, neither happens: weights are dequantized on
    loading, and layers run in float32.

    Args:
        path: File to write; an existing one is replaced once the new one is complete.
        model: A network, pruned, quantized, both or neither; left as it is.
        image: Example images, (b, C, H, W) float32. In the file the images are called `images`,
            their number `batch`, and the result `logits`.

    Returns:
        Size of the file in bytes.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If the network is TorchScript or lazy, cannot be traced for any number of
            images, has an operation that ONNX lacks, or has a quantized weight that is changed by
            something else too.
    """
    import onnx

    network = _prepare(model, image)
    for module in list(network.modules()):
        _use_onnx_operators(module)
    proto = _translate(_trace(network, image))
    onnx.checker.check_model(proto, full_check=True)
    with replacing(Path(path)) as temporary:
        onnx.save(proto, temporary)
    return os.path.getsize(path)


def export_program(path: StrPath, model: nn.Module, image: Tensor) -> int:
    """Write a network as a program of `torch.export` that takes any number of images.

    Batch-norms are folded, and quantized weights baked as float32; inputs stay quantized. Reading
    the file, `torch.export.load`, unpickles: read only files that you wrote.

    Args:
        path: File to write, suffix `.pt2`; an existing one is replaced once the new one is
            complete.
        model: As in :func:`export_onnx`.
        image: As in :func:`export_onnx`.

    Returns:
        Size of the file in bytes.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If the network is TorchScript or lazy, or cannot be traced for any number of
            images.
    """
    network = _prepare(model, image)
    bake(network)
    for module in network.modules():
        if isinstance(module, InputQuantizer):
            module.__class__ = _TraceableInput
    program = _trace(network, image)
    with replacing(Path(path)) as temporary:
        torch.export.save(program, temporary)
    return os.path.getsize(path)


def _prepare(model: nn.Module, image: Tensor) -> nn.Module:
    """Return a contiguous copy on the CPU with batch-norms folded and without gradients."""
    model = unwrapped(model)
    check_network(model)
    check_stored(model)
    # On the CPU first: a GPU may round more than the check of a fold allows.
    network = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()
    try:
        with torch.no_grad():
            logits = network(image.cpu())
    except (RuntimeError, TypeError) as error:
        shape = tuple(image.shape)
        raise ValueError(
            f"the network cannot take images of shape {shape}: {_first_line(error)}"
        ) from error
    if not isinstance(logits, Tensor):
        raise ValueError(f"expected a network that returns a tensor, got {type(logits).__name__}")
    return fold_batch_norm(network, image.cpu()).requires_grad_(False)


def _trace(network: nn.Module, image: Tensor) -> ExportedProgram:
    # Two images, as a trace of one may hold for one only. (b, C, H, W) -> (2, C, H, W)
    images = image[:1].cpu().expand(2, -1, -1, -1)
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.export.export(
                network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)
            )
    except RuntimeError as error:
        raise ValueError(
            f"the network cannot be traced for any number of images: {_first_line(error)}"
        ) from error


def _translate(program: ExportedProgram) -> ModelProto:
    """Return a program as an ONNX model, initializers called as the parameters that they are."""
    try:
        with warnings.catch_warnings(action="ignore"):
            translated = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: "batch"},),
                opset_version=_OPSET,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(f"the network cannot be put into ONNX: {_first_line(error)}") from error
    assert translated is not None
    for value in list(translated.model.graph.initializers.values()):
        assert value.name is not None
        for name, plain in _PLAIN_NAMES.items():
            value.name = value.name.replace(name, plain)
    return _stripped(_with_zero_points(translated.model_proto))


def _with_zero_points(proto: ModelProto) -> ModelProto:
    """Give each quantized weight a zero point, 0 for each channel, of its own.

    ONNX lets it be left out, and the exporter would share equal ones; onnxruntime fails in either
    case where it turns int8 weights into uint8, as with `session.x64quantprecision`.
    """
    from onnx import numpy_helper

    scales = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 2:
            zeros = np.zeros(scales[node.input[1]].dims, np.int8)
            node.input.append(f"{node.output[0]}.zero_point")
            proto.graph.initializer.append(numpy_helper.from_array(zeros, node.input[2]))
    return proto


def _stripped(proto: ModelProto) -> ModelProto:
    """Return the model without the exporter's notes, and without shapes that can be inferred."""
    graph = proto.graph
    graph.ClearField("value_info")
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return proto


def _first_line(error: BaseException) -> str:
    return str(error.__cause__ or error).partition("\n")[0]


def _use_onnx_operators(module: nn.Module) -> None:
    """Replace the quantizers of a layer by the ONNX operators of the same effect."""
    if isinstance(module, InputQuantizer):
        module.__class__ = _OnnxInput
        module.zero_point = module.zero_point.to(torch.uint8)
    quantizer = quantizer_of(module)
    if quantizer is None:
        return
    weight: Any = module.weight
    integers = quantize_to_integers(weight, quantizer.scale, quantizer.bits)
    if not torch.equal(dequantize(integers, quantizer.scale), weight):
        raise ValueError(
            f"expected a weight of {quantizer.bits} bits from its quantizer, got one that another "
            "parametrization changes"
        )
    bake(module)
    module.weight = nn.Parameter(integers, requires_grad=False)
    # Unsafe, because the type changes: int8 to float32.
    parametrize.register_parametrization(
        module, "weight", _OnnxWeight(quantizer.scale), unsafe=True
    )


class _TraceableInput(InputQuantizer):
    """An input quantizer in operators that `torch.export` knows, with the same result."""

    def forward(self, inputs: Tensor) -> Tensor:
        levels = (inputs * self.scale.reciprocal()).round() + self.zero_point
        return (levels.clamp(0, 2**ACTIVATION_BITS - 1) - self.zero_point) * self.scale


class _OnnxInput(InputQuantizer):
    """Shows the exporter an input quantizer as `QuantizeLinear` and `DequantizeLinear`."""

    def forward(self, inputs: Tensor) -> Tensor:
        levels = _apply("QuantizeLinear", torch.uint8, inputs, self.scale, self.zero_point)
        return _apply("DequantizeLinear", torch.float32, levels, self.scale, self.zero_point)


class _OnnxWeight(nn.Module):
    """Shows the exporter a weight as `DequantizeLinear` of integers (N, ...), int8."""

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, integers: Tensor) -> Tensor:
        return _apply("DequantizeLinear", torch.float32, integers, self.scale, axis=0)


def _apply(operator: str, dtype: torch.dtype, *inputs: Tensor, **attributes: int) -> Tensor:
    """Stand for an ONNX operator in a trace, one that keeps the shape of its first input."""
    return torch.onnx.ops.symbolic(
        operator, inputs, dict(attributes), dtype=dtype, shape=inputs[0].shape
    )
