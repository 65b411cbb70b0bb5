"""Tests of the named networks, their recipes and the cached baselines."""

import copy
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress_env import models
from compress_env.data import DATASETS, DataBundle, cache_dir, load_data
from compress_env.models import (
    MODELS,
    RECIPES,
    Recipe,
    build_model,
    load_baseline,
    save_checkpoint,
)
from compress_env.pruning.surgery import LiveChannels, find_walk, zero_channels
from tests.fakes import DATA_ROOT

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, ("lenet5", "digits"), Recipe(epochs=1))


@pytest.fixture(scope="module")
def digits() -> DataBundle:
    return load_data("digits")


def _accuracy(model: nn.Module, data: DataBundle) -> float:
    images, labels = next(iter(data.validation.batches([torch.arange(len(data.validation))])))
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.flatten() for parameter in model.parameters()]).detach()


def _cached() -> list[Path]:
    return sorted((cache_dir() / "baselines").glob("*.safetensors"))


# Networks


@pytest.mark.parametrize("side", [28, 32])
def test_lenet5_has_the_classic_parameters(side: int) -> None:
    model = build_model("lenet5", 10, (1, side, side))
    counts = {
        name: sum(p.numel() for p in layer.parameters())
        for name, layer in model.named_children()
        if list(layer.parameters())
    }
    assert counts == {"conv1": 156, "conv2": 2416, "fc1": 48120, "fc2": 10164, "fc3": 850}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 31, 17), (1, 29, 32), (2, 1, 1)])
def test_lenet5_pads_small_images(shape: tuple[int, int, int]) -> None:
    model = build_model("lenet5", 7, shape)
    assert model(torch.zeros(2, *shape)).shape == (2, 7)
    assert sum(p.numel() for p in model.parameters()) == 61_706 + 150 * (shape[0] - 1) - 3 * 85


@pytest.mark.parametrize(
    ("shape", "num_classes"), [((3, 32, 32), 10), ((1, 8, 8), 3), ((2, 9, 17), 10)]
)
def test_resnet20_has_the_parameters_of_the_paper_and_its_projections(
    shape: tuple[int, int, int], num_classes: int
) -> None:
    model = build_model("resnet20", num_classes, shape)
    assert model(torch.zeros(2, *shape)).shape == (2, num_classes)
    expected = 272_474 + 9 * 16 * (shape[0] - 3) + 65 * (num_classes - 10)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_every_residual_stream_of_resnet20_can_be_pruned() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("resnet20", 10, (1, 8, 8)).eval()
    walk = find_walk(model, torch.zeros(1, 1, 8, 8))
    assert walk.skipped == {}
    # The three streams, first read by a block's first convolution, and the inside of nine blocks.
    sizes = {d.layer.name: [g.n_channels for g in d.groups] for d in walk.decisions}
    streams = {"stages.0.0.conv1": [16], "stages.1.1.conv1": [32], "stages.2.1.conv1": [64]}
    inside = {
        f"stages.{stage}.{block}.conv2": [16 * 2**stage] for stage in range(3) for block in range(3)
    }
    assert sizes == streams | inside


def test_resnet20_pruned_equals_zeroed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("resnet20", 10, (1, 8, 8)).eval()
    walk = find_walk(model, torch.zeros(1, 1, 8, 8))
    pruned, zeroed = copy.deepcopy(model), copy.deepcopy(model)
    channels = LiveChannels(pruned)
    for decision in walk.decisions:
        for group in decision.groups:
            gone = list(range(0, group.n_channels, 3))
            channels.remove(group, gone)
            zero_channels(zeroed, group, gone)
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(pruned(images), zeroed(images), rtol=1e-4, atol=1e-5)
    n_parameters = sum(p.numel() for p in pruned.parameters())
    assert n_parameters < 0.5 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "num_classes", "shape", "message"),
    [
        ("resnet20", 10, (3, 7, 32), "at least 8x8, got 7x32"),
        ("lenet", 10, (1, 28, 28), "unknown model 'lenet'; valid names: lenet5"),
        ("lenet5", 10, (3, 64, 32), "up to 32x32, got 64x32"),
        ("lenet5", 0, (1, 28, 28), "num_classes of at least 1.*got 0"),
        ("lenet5", 10, (1, 0, 28), r"got 10 and \(1, 0, 28\)"),
        ("lenet5", 10, (28, 28), r"\(C, H, W\).*got 10 and \(28, 28\)"),
    ],
)
def test_build_model_rejects(
    name: str, num_classes: int, shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(name, num_classes, shape)


def test_recipes_name_known_models_and_data() -> None:
    assert {("lenet5", "digits"), ("lenet5", "mnist"), ("lenet5", "fashion_mnist")} <= set(RECIPES)
    assert all(model in MODELS and data in DATASETS for model, data in RECIPES)


# Baselines


def test_the_digits_recipe_learns(digits: DataBundle) -> None:
    model = load_baseline("lenet5", digits)
    assert _accuracy(model, digits) > 0.98
    assert not model.training


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not (DATA_ROOT / "MNIST").is_dir(), reason="needs the MNIST files")
def test_the_mnist_recipe_learns() -> None:
    data = load_data("mnist", data_root=DATA_ROOT)
    assert _accuracy(load_baseline("lenet5", data), data) > 0.989


@pytest.mark.usefixtures("_quick")
def test_training_is_deterministic_and_leaves_the_global_state_alone(
    digits: DataBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    first = load_baseline("lenet5", digits)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path / "other"))
    assert torch.equal(_weights(load_baseline("lenet5", digits)), _weights(first))


@pytest.mark.usefixtures("_quick")
def test_training_happens_once(digits: DataBundle, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[tuple[int, int]] = []
    with caplog.at_level(logging.INFO):
        first = load_baseline("lenet5", digits, progress=lambda *done: calls.append(done))
        second = load_baseline("lenet5", digits, progress=lambda *done: calls.append(done))
    assert calls == [(1, 1)]
    assert [r.getMessage() for r in caplog.records if r.name == models.__name__] == [
        "training lenet5 on digits for 1 epochs"
    ]
    assert torch.equal(_weights(first), _weights(second))
    assert [path.name.split("-")[:2] for path in _cached()] == [["lenet5", "digits"]]


@pytest.mark.usefixtures("_quick")
def test_other_recipes_shapes_and_splits_have_their_own_file(
    digits: DataBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_baseline("lenet5", digits)
    load_baseline("lenet5", load_data("digits", size=16))
    load_baseline("lenet5", load_data("digits", seed=1))
    monkeypatch.setitem(RECIPES, ("lenet5", "digits"), Recipe(epochs=1, seed=1))
    load_baseline("lenet5", digits)
    assert len(_cached()) == 4


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("damage", [b"", b"garbage", None], ids=["empty", "garbage", "truncated"])
def test_a_corrupt_cached_network_is_trained_again(
    damage: bytes | None, digits: DataBundle, caplog: pytest.LogCaptureFixture
) -> None:
    expected = _weights(load_baseline("lenet5", digits))
    [path] = _cached()
    path.write_bytes(path.read_bytes()[:-10] if damage is None else damage)
    assert torch.equal(_weights(load_baseline("lenet5", digits)), expected)
    assert "training again" in caplog.text
    caplog.clear()
    load_baseline("lenet5", digits)
    assert "training again" not in caplog.text


@pytest.mark.usefixtures("_quick")
def test_training_works_without_a_writable_cache(
    digits: DataBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path / "file"))
    assert _accuracy(load_baseline("lenet5", digits), digits) > 0.2
    assert "not writable" in caplog.text


def test_divergence_is_reported_and_not_kept(
    digits: DataBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, ("lenet5", "digits"), Recipe(epochs=1, learning_rate=1e8))
    with pytest.raises(RuntimeError, match=r"training diverged: the loss is (nan|inf)"):
        load_baseline("lenet5", digits)
    assert _cached() == []


def test_a_checkpoint_replaces_the_recipe(digits: DataBundle, tmp_path: Path) -> None:
    model = build_model("lenet5", 10, (1, 32, 32))
    save_checkpoint(model, tmp_path / "mine.safetensors")
    unnamed = replace(digits, name="unnamed")
    loaded = load_baseline("lenet5", unnamed, checkpoint=tmp_path / "mine.safetensors")
    assert torch.equal(_weights(loaded), _weights(model))
    assert not loaded.training
    assert _cached() == []


def test_without_recipe_or_checkpoint_the_choices_are_named(digits: DataBundle) -> None:
    with pytest.raises(
        ValueError, match=r"no recipe for lenet5 on mine.*checkpoint=.*lenet5 on mn"
    ):
        load_baseline("lenet5", replace(digits, name="mine"))


def test_processes_that_start_at_once_train_once(tmp_path: Path) -> None:
    script = (
        "import logging, sys, torch\n"
        "torch.set_num_threads(1)\n"
        "from compress_env.data import load_data\n"
        "from compress_env.models import RECIPES, Recipe, load_baseline\n"
        "RECIPES['lenet5', 'digits'] = Recipe(epochs=3)\n"
        "data = load_data('digits')\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        "weights = load_baseline('lenet5', data).state_dict()\n"
        "print(float(sum(tensor.sum() for tensor in weights.values())))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(output.count("training lenet5") for output in outputs) == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1


@pytest.mark.gpu
@pytest.mark.usefixtures("_quick")
def test_training_on_the_gpu_leaves_its_global_state_alone(digits: DataBundle) -> None:
    before = torch.cuda.get_rng_state()
    model = load_baseline("lenet5", digits, device="cuda")
    assert next(model.parameters()).device.type == "cuda"
    assert torch.equal(torch.cuda.get_rng_state(), before)
