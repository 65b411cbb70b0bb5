"""Files of tensors that are damaged or hostile: one line each, soon, and in little memory."""

from __future__ import annotations

import io
import json
import os
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress_env.networks.checkpoints import load_checkpoint, save_checkpoint
from compress_env.networks.torch_files import is_plain, read_safetensors, read_torch

HUGE = 500_000_000


def _network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def _saved(content: object, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def _rewritten(data: bytes, change: Callable[[str, bytes], bytes], kind: int) -> bytes:
    """Write an archive again, with other entries or compressed ones."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "w", kind) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return result.getvalue()


def _claiming(name: str) -> bytes:
    """A file of 2 KB with a tensor that seems to have 500 million elements."""
    weights = dict(_network().state_dict())
    weights[name] = torch.zeros(1).expand(HUGE)
    return _saved(weights)


def _resized() -> bytes:
    """A file whose tensor has more elements than its storage."""

    def change(name: str, content: bytes) -> bytes:
        # 7 as one byte becomes 500 million as four.
        larger = b"J" + struct.pack("<i", HUGE) + b"\x85"
        return content.replace(b"K\x07\x85", larger) if name.endswith("data.pkl") else content

    return _rewritten(_saved({"0.weight": torch.zeros(7)}), change, zipfile.ZIP_STORED)


def _bomb() -> bytes:
    """A small file whose storage is 100 MB of compressed zeros."""
    small = _saved({"0.weight": torch.zeros(25_000_000)})
    return _rewritten(small, lambda _, content: content, zipfile.ZIP_DEFLATED)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "wrong shape": lambda: _claiming("0.weight"),
    "unexpected": lambda: _claiming("beside"),
    "resized": _resized,
    "bomb": _bomb,
    "legacy": lambda: _saved({"0.weight": torch.zeros(1).expand(HUGE)}, legacy=True),
    "sparse": lambda: _saved({"0.weight": torch.zeros(HUGE).to_sparse()}),
    "meta": lambda: _saved({"0.weight": torch.zeros(2, 1, 3, 3, device="meta")}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_files_that_claim_more_than_they_hold_are_refused(kind: str, tmp_path: Path) -> None:
    path, model = tmp_path / "model.pt", _network()
    path.write_bytes(HOSTILE[kind]())
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(ValueError, match=r"model\.pt (does not fit|is not a readable)") as caught:
        load_checkpoint(model, path)
    assert time.process_time() - started < 5
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6 and "\n" not in str(caught.value)


def test_a_tensor_that_the_file_does_not_hold_is_not_plain() -> None:
    assert is_plain(torch.zeros(3)) and is_plain(nn.Parameter(torch.zeros(3)))
    assert is_plain(torch.zeros(1).expand(1000))
    others: list[Tensor] = [
        torch.zeros(1).expand(HUGE),
        torch.zeros(3, device="meta"),
        torch.zeros(3).to_sparse(),
    ]
    assert not any(map(is_plain, others))


def _mutations(data: bytes, n: int) -> list[bytes]:
    rng, mutated = np.random.default_rng(0), []
    for _ in range(n):
        changed = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 6)).tolist():
            changed[place] = int(rng.integers(256))
        if rng.integers(4) == 0:
            del changed[int(rng.integers(len(data))) :]
        mutated.append(bytes(changed))
    return mutated


@pytest.mark.parametrize("suffix", ["pt", "legacy.pt", "safetensors"])
def test_mutated_files_are_read_or_refused_in_one_line(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    if suffix == "safetensors":
        save_checkpoint(_network(), path)
    else:
        path.write_bytes(_saved(_network().state_dict(), legacy=suffix == "legacy.pt"))
    n_refused = 0
    for data in _mutations(path.read_bytes(), 150):
        path.write_bytes(data)
        try:
            load_checkpoint(_network(), path)
        except ValueError as error:
            n_refused += 1
            assert "\n" not in str(error)
    assert n_refused > 20


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}},
        {"a": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F77", "shape": [1], "data_offsets": [0, 4]}},
        "[" * 50_000,
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2,
        '{"__metadata__":{"a":1}}',
    ],
)
def test_safetensors_headers_that_lie_are_refused(header: object, tmp_path: Path) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(ValueError, match="is not a readable safetensors file") as caught:
        read_safetensors(path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and devices")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"model{suffix}"
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
        for read in (read_torch, read_safetensors):
            with pytest.raises(ValueError, match="is not a regular file"):
                read(path)
        with pytest.raises(ValueError, match="is not a regular file") as caught:
            load_checkpoint(_network(), path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("has_checksums", [True, False])
def test_a_changed_bit_is_noticed_where_there_are_checksums(
    has_checksums: bool, tmp_path: Path
) -> None:
    model: nn.Module = _network()
    torch.serialization.set_crc32_options(has_checksums)
    try:
        content = bytearray(_saved(model.state_dict()))
    finally:
        torch.serialization.set_crc32_options(True)
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    load_checkpoint(_network(), path)
    values = model.state_dict()["0.weight"].numpy().tobytes()
    content[bytes(content).index(values)] ^= 1
    path.write_bytes(content)
    if has_checksums:
        with pytest.raises(ValueError, match=r"weights\.pt is not a readable file of tensors"):
            load_checkpoint(_network(), path)
    else:
        load_checkpoint(_network(), path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weight: weight + 1j, "torch.complex64"),
        (lambda weight: weight.long(), "torch.int64"),
        (lambda weight: weight > 0, "torch.bool"),
    ],
)
def test_weights_of_another_kind_are_refused(
    change: Callable[[Tensor], Tensor], said: str, tmp_path: Path
) -> None:
    weights = dict(_network().state_dict())
    for precise in (torch.float64, torch.float16):
        torch.save({k: w.to(precise) for k, w in weights.items()}, tmp_path / "w.pt")
        load_checkpoint(_network(), tmp_path / "w.pt")
    weights["0.weight"] = change(weights["0.weight"])
    torch.save(weights, tmp_path / "w.pt")
    message = rf"wrong type: 0\.weight {said} instead of torch\.float32"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(_network(), tmp_path / "w.pt")
