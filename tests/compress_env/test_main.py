"""The command that says what a packed network is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress_env.__main__ import main
from compress_env.layers import compute_layers
from compress_env.models import build_model, load_checkpoint
from compress_env.quantization.fake_quant import attach
from compress_env.quantization.packing import save
from experiments.latency import OnnxNetwork


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
