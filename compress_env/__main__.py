"""``python -m compress_env FILE.cenv``: what a packed network is made of.

`--onnx` and `--safetensors` write the network in other forms.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import torch

from compress_env.files import replacing
from compress_env.networks.checkpoints import state_bytes
from compress_env.quantization.contents import Contents
from compress_env.quantization.export import export_onnx
from compress_env.quantization.fake_quant import dequantize
from compress_env.quantization.packing import read_file, unpack
from compress_env.task.layers import FLOAT_BYTES

__all__ = ["main"]

_MAX_IMAGE = 2**22  # elements of an image that a file may have this program compute on
_ROW = "{:<32} {:<20} {:>4} {:>8} {:>12}  {}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Those of the command line when None.

    Returns:
        Exit status: 0, or 2 if a file cannot be read or written.
    """
    parser = argparse.ArgumentParser(prog="python -m compress_env", description=__doc__)
    parser.add_argument("file", type=Path, help="packed network (.cenv)")
    parser.add_argument("--onnx", type=Path, help="write the network to this ONNX file too")
    parser.add_argument(
        "--safetensors", type=Path, help="write its weights, as float32, to this file too"
    )
    options = parser.parse_args(arguments)
    try:
        contents = read_file(options.file)
        size = options.file.stat().st_size
        if options.onnx is not None:
            _write_onnx(options.onnx, contents)
        if options.safetensors is not None:
            with replacing(options.safetensors) as temporary:
                temporary.write_bytes(state_bytes(_float_state(contents)))
    except (ImportError, MemoryError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        _print(f"{parser.prog}: error: {reason}", sys.stderr)
        return 2
    _print("\n".join(line.rstrip() for line in _lines(contents, size)), sys.stdout)
    return 0


def _print(text: str, stream: TextIO) -> None:
    """Print what the terminal has letters for, and codes for the rest."""
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def _write_onnx(path: Path, contents: Contents) -> None:
    """Write the network as ONNX.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If there is no network, or its images are too large to try it on one.
    """
    if contents.architecture is not None:
        shape = contents.architecture.image_shape
        if math.prod(shape) > _MAX_IMAGE:
            raise ValueError(
                f"images of {_times(shape)} are too large to export the network here: give "
                "compress_env.export_onnx a smaller one"
            )
    model = unpack(contents)
    assert contents.architecture is not None  # or there would be no model
    export_onnx(path, model, torch.zeros(1, *contents.architecture.image_shape))


def _float_state(contents: Contents) -> dict[str, torch.Tensor]:
    """Return the state of the network with quantized weights as float32 and inputs as they are."""
    weights = {name: dequantize(w.integers, w.scale) for name, w in contents.weights.items()}
    return contents.tensors | weights


def _lines(contents: Contents, size: int) -> Iterator[str]:
    """Yield a line for each quantized layer, one for the rest, and the total."""
    if contents.architecture is not None:
        name, num_classes, image_shape = contents.architecture
        yield f"{name}, {num_classes} classes, images {_times(image_shape)}"
    yield _ROW.format("layer", "shape", "bits", "zeros %", "bytes", "encoding")
    for name, packed in contents.packed.items():
        integers = contents.weights[name].integers
        zeros = 100 * float((integers == 0).float().mean())
        codes = ", ".join(stream.code for stream in packed.encoded.streams)
        yield _ROW.format(
            name.removesuffix(".weight"),
            _times(packed.shape),
            packed.bits,
            f"{zeros:.1f}",
            f"{packed.encoded.n_bytes:,}",
            f"index {packed.encoded.index}: {codes}",
        )
    n_values = sum(tensor.numel() for tensor in contents.tensors.values())
    others = size - sum(packed.encoded.n_bytes for packed in contents.packed.values())
    yield _ROW.format("everything else", f"{n_values:,} values", "", "", f"{others:,}", "")
    n_weights = sum(math.prod(packed.shape) for packed in contents.packed.values())
    full = FLOAT_BYTES * n_weights + sum(tensor.nbytes for tensor in contents.tensors.values())
    share = f"{100 * size / max(full, 1):.2f} % of {full:,} as float32"
    yield _ROW.format("total", f"{n_weights + n_values:,} values", "", "", f"{size:,}", share)


def _times(sizes: Sequence[int]) -> str:
    return "x".join(str(size) for size in sizes)


if __name__ == "__main__":
    sys.exit(main())
