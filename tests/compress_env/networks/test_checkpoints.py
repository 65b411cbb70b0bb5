"""Tests of reading and writing weights, and of the cache."""

import argparse
import logging
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from compress_env.networks.checkpoints import (
    cache_lock,
    checkpoint_bytes,
    load_checkpoint,
    read_safetensors,
    same_weights,
    save_checkpoint,
    write_to_cache,
)
from compress_env.networks.models import build_model


def _network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def _same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


class Payload:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        """Take the path of the directory to make."""
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        """Return the call that unpickling makes."""
        return os.mkdir, (str(self.path),)


def test_safetensors_round_trip(tmp_path: Path) -> None:
    model = _network(1)
    save_checkpoint(_network(0), tmp_path / "model.safetensors")
    load_checkpoint(model, tmp_path / "model.safetensors")
    assert _same(model, _network(0))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_weights_are_compared_to_the_last_bit(tmp_path: Path) -> None:
    network, path = _network(0), tmp_path / "model.safetensors"
    save_checkpoint(network, path)
    stored = read_safetensors(path)
    assert same_weights(network.state_dict(), stored)
    weight = next(network.parameters()).data
    weight.view(-1)[-1] = torch.nextafter(weight.view(-1)[-1], torch.tensor(torch.inf))
    assert not same_weights(network.state_dict(), stored)
    fewer = dict(list(stored.items())[1:])
    assert not same_weights(stored, fewer) and not same_weights(fewer, stored)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {"model": weights},
        lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
        lambda weights: {"model": {f"module.{name}": t for name, t in weights.items()}},
    ],
    ids=["plain", "state_dict", "model", "module", "model-module"],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_torch_files_are_read(wrap: Callable[[Any], Any], legacy: bool, tmp_path: Path) -> None:
    content = wrap(dict(_network(0).state_dict()))
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=not legacy)
    model = _network(1)
    load_checkpoint(model, str(tmp_path / "model.pt"))
    assert _same(model, _network(0))


def _plus(weights: Any, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def _without_counters(weights: Any) -> dict[str, Tensor]:
    return {k: t for k, t in weights.items() if not k.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    "wrap",
    [
        _without_counters,
        lambda w: {"model_state_dict": w, "epoch": 3, "loss": np.float64(0.1)},
        lambda w: {"net": _plus(_without_counters(w), "module."), "acc": 93.2, "epoch": 1},
        lambda w: {"net": "resnet20", "state_dict": w, "args": argparse.Namespace(lr=0.1)},
        lambda w: {"state": {"model": _plus(w, "_orig_mod.")}, "root": Path("x")},
        lambda w: _plus(w, "module._orig_mod."),
        lambda w: _plus(w, "_orig_mod.module."),
        lambda w: {"state_dict": _plus(w, "model.") | {"criterion.weight": torch.ones(3)}},
        lambda w: {"model": _plus(w, "model.net."), "optimizer": {"state": {0: {"step": 1}}}},
        lambda w: {f"{k[0]}._orig_mod.{k[2:]}": t for k, t in w.items()},
        lambda w: _plus(w, "module.") | {"n_averaged": torch.tensor(7)},
        lambda w: dict(w) | {"epoch": 3, "optimizer": {"lr": 0.1}, "name": "x"},
    ],
)
def test_files_of_training_scripts_are_read(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    torch.save(wrap(_network(0).state_dict()), tmp_path / "model.pt")
    model = _network(1)
    load_checkpoint(model, tmp_path / "model.pt")
    assert _same(model, _network(0))


def test_names_of_the_network_itself_are_no_wrappers(tmp_path: Path) -> None:
    model, other = (nn.Sequential(OrderedDict(model=_network(seed))) for seed in (0, 1))
    for prefix in ("", "model.", "module."):
        torch.save(_plus(model.state_dict(), prefix), tmp_path / "model.pt")
        load_checkpoint(other, tmp_path / "model.pt")
        assert _same(other, model)


def test_a_wrapped_file_that_does_not_fit_is_explained_in_the_networks_names(
    tmp_path: Path,
) -> None:
    weights = _plus(_network(0).state_dict(), "module.")
    del weights["module.0.bias"]
    torch.save({"net": weights}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"does not fit the network: missing: 0\.bias;"):
        load_checkpoint(_network(1), tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "dict.pt"])
def test_versions_of_modules_are_kept(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    first, second = (build_model("torchvision/mnasnet0_5", 4, (3, 32, 32)) for _ in range(2))
    if suffix == "safetensors":
        save_checkpoint(first, path)
    else:
        state = first.state_dict()
        torch.save(state if suffix == "pt" else dict(state), path)
    load_checkpoint(second, path)
    assert _same(first, second)


def test_a_tensor_of_several_names_is_kept_once(tmp_path: Path) -> None:
    layer = nn.Linear(64, 64)
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    assert checkpoint_bytes(twice) < 1.1 * checkpoint_bytes(nn.Sequential(layer))
    save_checkpoint(twice, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size == checkpoint_bytes(twice)
    assert same_weights(read_safetensors(tmp_path / "model.safetensors"), twice.state_dict())


def test_channels_last_networks_are_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    save_checkpoint(model, tmp_path / "model.safetensors")
    other = nn.Sequential(nn.Conv2d(3, 4, 3))
    load_checkpoint(other, tmp_path / "model.safetensors")
    assert _same(model, other)


def _without_bias(weights: dict[str, Tensor]) -> None:
    del weights["0.bias"]


def _with_other_name(weights: dict[str, Tensor]) -> None:
    weights["fc.weight"] = torch.zeros(2)


def _with_other_shape(weights: dict[str, Tensor]) -> None:
    weights["0.weight"] = torch.zeros(4, 1, 3, 3)


def _with_nan(weights: dict[str, Tensor]) -> None:
    weights["0.bias"] = torch.tensor([0.0, torch.nan])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_bias, r"missing: 0\.bias; .*expected: 0\.weight, 0\.bias"),
        (_with_other_name, r"unexpected: fc\.weight"),
        (_with_other_shape, r"wrong shape: 0\.weight \(4, 1, 3, 3\) instead of \(2, 1, 3, 3\)"),
        (_with_nan, r"not finite: 0\.bias"),
        (dict.clear, "missing: 0.weight.* and 3 more"),
    ],
    ids=["missing", "unexpected", "shape", "nan", "empty"],
)
def test_weights_that_do_not_fit_are_named(
    change: Callable[[dict[str, Tensor]], None], message: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    weights = dict(_network(0).state_dict())
    change(weights)
    if suffix == ".pt":
        torch.save(weights, path)
    else:
        safetensors.torch.save_file(weights, path)
    model = _network(1)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(model, path)
    assert "\n" not in str(caught.value)
    assert _same(model, _network(1))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    "content", [b"", b"garbage", bytes(range(256)) * 8, b"PK\x03\x04" + bytes(50), b"\x80\x02."]
)
def test_garbage_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a readable") as caught:
        load_checkpoint(_network(0), path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [20, 200, 1000])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_files_are_refused(suffix: str, length: int, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save(_network(0).state_dict(), path)
    else:
        save_checkpoint(_network(0), path)
    path.write_bytes(path.read_bytes()[: min(length, path.stat().st_size - 1)])
    with pytest.raises(ValueError, match="is not a readable"):
        load_checkpoint(_network(0), path)


@pytest.mark.parametrize("container", ["pickle", "zip", "legacy", "safetensors"])
def test_code_in_a_file_is_not_run(container: str, tmp_path: Path) -> None:
    path = tmp_path / ("model.safetensors" if container == "safetensors" else "model.pt")
    weights = {**_network(0).state_dict(), "payload": Payload(tmp_path / "ran")}
    if container in ("zip", "legacy"):
        torch.save(weights, path, _use_new_zipfile_serialization=container == "zip")
    else:
        path.write_bytes(pickle.dumps(weights))
    with pytest.raises(ValueError, match="is not a readable"):
        load_checkpoint(_network(1), path)
    assert not (tmp_path / "ran").exists()


def test_whole_modules_are_refused(tmp_path: Path) -> None:
    torch.save(_network(0), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"expected safetensors or torch\.save\(model\.state_dict"):
        load_checkpoint(_network(0), tmp_path / "model.pt")


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"lr": 0.1}, {0: torch.zeros(1)}])
def test_files_without_a_state_dict_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_checkpoint(_network(0), tmp_path / "model.pt")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*absent\.pt"):
        load_checkpoint(_network(0), tmp_path / "absent.pt")


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(_network(0), path)

    def fail(source: Path, target: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(_network(1), path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
    model = _network(2)
    load_checkpoint(model, path)
    assert _same(model, _network(0))


def test_save_copes_with_shared_weights(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    save_checkpoint(nn.Sequential(layer, layer), tmp_path / "model.safetensors")
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    load_checkpoint(model, tmp_path / "model.safetensors")
    assert torch.equal(model.state_dict()["1.weight"], layer.weight)


def test_a_cache_that_is_not_writable_is_only_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "entry"
    with cache_lock(path):
        write_to_cache(path, lambda temporary: temporary.write_bytes(b"content"))
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert (tmp_path / "file").read_bytes() == b""


def test_errors_inside_the_lock_are_raised_and_release_it(tmp_path: Path) -> None:
    path = tmp_path / "entry"
    with pytest.raises(OSError, match="inside"), cache_lock(path):
        raise OSError("inside")
    with cache_lock(path):
        write_to_cache(path, lambda temporary: temporary.write_bytes(b"content"))
    assert path.read_bytes() == b"content"
