"""The command that says what a packed network is made of."""

from __future__ import annotations

import os
import re
import socket
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from compress_env.__main__ import main
from compress_env.networks.models import Architecture, build_model, load_checkpoint
from compress_env.quantization.fake_quant import attach
from compress_env.quantization.packing import pack, save
from compress_env.task.layers import compute_layers
from experiments.common.latency import OnnxNetwork


def test_one_line_for_each_layer_and_the_total(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_model("lenet5", 10, (1, 32, 32))
    for bits, (name, layer) in zip((8, 1, 2, 3, 4), compute_layers(model).items(), strict=True):
        layer.weight.data[0] = 0
        attach(layer, bits)
        assert name
    size = save(tmp_path / "net.cenv", model)
    assert main([str(tmp_path / "net.cenv")]) == 0
    title, header, *rows, others, total = capsys.readouterr().out.splitlines()
    assert title == "lenet5, 10 classes, images 1x32x32"
    assert header.split() == ["layer", "shape", "bits", "zeros", "%", "bytes", "encoding"]
    assert [row.split()[0] for row in rows] == ["conv1", "conv2", "fc1", "fc2", "fc3"]
    assert [row.split()[2] for row in rows] == ["8", "1", "2", "3", "4"]
    assert rows[1].split()[1] == "16x6x5x5" and rows[1].split()[3] == "6.2"
    listed = [int(row.split()[4].replace(",", "")) for row in rows]
    assert sum(listed) + int(others.split()[-1].replace(",", "")) == size
    assert total.startswith("total") and f" {size:,} " in total
    assert "246,824 as float32" in total


def test_a_packed_network_is_exported(tmp_path: Path) -> None:
    model = build_model("lenet5", 10, (1, 32, 32)).eval()
    for layer in compute_layers(model).values():
        attach(layer, 4)
    save(tmp_path / "net.cenv", model)
    arguments = [str(tmp_path / "net.cenv"), "--onnx", str(tmp_path / "net.onnx")]
    assert main([*arguments, "--safetensors", str(tmp_path / "net.safetensors")]) == 0
    plain = build_model("lenet5", 10, (1, 32, 32)).eval()
    load_checkpoint(plain, tmp_path / "net.safetensors")
    images = torch.randn(3, 1, 32, 32)
    logits = OnnxNetwork(tmp_path / "net.onnx").logits(images)
    torch.testing.assert_close(logits, model(images).detach(), rtol=0, atol=1e-4)
    assert torch.equal(plain(images), model(images))


def test_a_bad_file_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.cenv").write_bytes(b"PK\x03\x04")
    for name, message in (("net.cenv", "not a packed network"), ("none.cenv", "No such file")):
        assert main([str(tmp_path / name)]) == 2
        captured = capsys.readouterr()
        assert not captured.out and captured.err.count("\n") == 1 and message in captured.err


def test_a_network_of_the_users_own_is_not_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "net.cenv", torch.nn.Conv2d(1, 2, 3))
    assert main([str(tmp_path / "net.cenv"), "--onnx", str(tmp_path / "net.onnx")]) == 2
    assert "names no architecture" in capsys.readouterr().err
    assert not (tmp_path / "net.onnx").exists()
    out = tmp_path / "net.safetensors"
    assert main([str(tmp_path / "net.cenv"), "--safetensors", str(out)]) == 0
    assert {k: t.shape for k, t in load_file(out).items()} == {"weight": (2, 1, 3, 3), "bias": (2,)}


def _header_alone(path: Path) -> None:
    """A file whose header is right, and whose rest is a hole of 2^40 bytes."""
    path.write_bytes(pack(build_model("lenet5", 10, (1, 32, 32))))
    os.truncate(path, 2**40)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def _hole(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "endless": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "pipe": (lambda path: os.mkfifo(path), "not a regular file"),
    "folder": (lambda path: path.mkdir(), "not a regular file"),
    "socket": (_socket, "No such device"),
    "hole": (_hole, "starts with b'CENV'"),
    "hole behind a header": (_header_alone, "expected .* bytes, got 1099511627776"),
    "longer": (lambda path: path.write_bytes(pack(nn.Linear(2, 2)) + b"x"), "bytes, got"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux's devices and messages")
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_packed_file_is_refused_at_once(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    make, message = NO_FILES[kind]
    make(tmp_path / "net.cenv")
    tracemalloc.start()
    assert main([str(tmp_path / "net.cenv")]) == 2
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    captured = capsys.readouterr()
    assert not captured.out and captured.err.count("\n") == 1
    assert re.search(message, captured.err)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnet20", (1, 10_000, 10_000), "1x10000x10000 are too large to export"),
        ("resnet20", (1, 2**24, 2**24), "at most 268435456 elements"),
        ("torchvision/squeezenet1_0", (3, 4096, 4096), "3x4096x4096 are too large to export"),
    ],
)
def test_images_that_are_too_large_are_not_computed_on(
    name: str,
    shape: tuple[int, int, int],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = build_model(name, 10, (shape[0], 64, 64))
    model.architecture = Architecture(name, 10, shape)  # type: ignore[assignment]
    (tmp_path / "net.cenv").write_bytes(pack(model))
    assert main([str(tmp_path / "net.cenv"), "--onnx", str(tmp_path / "net.onnx")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and message in captured.err
    assert not (tmp_path / "net.onnx").exists()


def test_a_network_that_cannot_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_model("cnn4", 10, (1, 32, 32))
    model.architecture = Architecture("cnn4", 10, (1, 32, 33))  # type: ignore[assignment]
    (tmp_path / "net.cenv").write_bytes(pack(model))
    status = main([str(tmp_path / "net.cenv"), "--onnx", str(tmp_path / "net.onnx")])
    assert status in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_names_that_a_terminal_has_no_letters_for_are_printed_as_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.Conv2d(1, 2, 3)
    attach(layer, 4)
    save(tmp_path / "net.cenv", nn.ModuleDict({"schärfe": layer}))
    with (tmp_path / "out").open("w", encoding="ascii") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert main([str(tmp_path / "net.cenv")]) == 0
    assert r"sch\xe4rfe" in (tmp_path / "out").read_text()
