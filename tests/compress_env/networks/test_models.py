"""Tests of the named networks, their recipes and the cached baselines."""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from compress_env.data.bundle import DATASETS, DataBundle, cache_dir, load_data, make_data_bundle
from compress_env.networks import models
from compress_env.networks.models import (
    MODELS,
    RECIPES,
    Recipe,
    build_model,
    load_baseline,
    save_checkpoint,
)
from compress_env.suite import SUITE, SuiteTask
from tests.fakes import DATA_ROOT, make_data

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have recipes followed; returns the folder of what is shipped."""
    folder = models.SHIPPED
    monkeypatch.setattr(models, "SHIPPED", tmp_path / "nothing")
    return folder


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


def _coloured(n_images: int) -> TensorDataset:
    return TensorDataset(torch.rand(n_images, 3, 32, 32), torch.arange(n_images) % 10)


def _cached() -> list[Path]:
    return sorted((cache_dir() / "baselines").glob("*.safetensors"))


# Names


@pytest.mark.parametrize(
    ("name", "num_classes", "shape", "message"),
    [
        ("lenet", 10, (1, 28, 28), "unknown model 'lenet', did you mean 'lenet5'.*timm/NAME"),
        ("resnet18", 10, (3, 32, 32), "unknown model 'resnet18'.* valid: .*torchvision/NAME"),
        ("torchvision/", 10, (3, 32, 32), "unknown model 'torchvision/'"),
        ("keras/resnet50", 10, (3, 32, 32), "unknown model 'keras/resnet50'"),
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


@pytest.mark.slow
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


@pytest.mark.parametrize("task", SUITE, ids=lambda task: task.id.partition("/")[2])
def test_everybody_starts_the_named_tasks_from_the_same_network(
    task: SuiteTask,
    shipped: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = gym.spec(task.id).kwargs
    if given["data"] == "mnist" and not (DATA_ROOT / "MNIST").is_dir():
        pytest.skip("needs the MNIST files")
    monkeypatch.setattr(models, "SHIPPED", shipped)
    data = load_data(given["data"], data_root=DATA_ROOT if given["data"] == "mnist" else None)
    with caplog.at_level(logging.INFO):
        model = load_baseline(given["model"], data)
    assert not caplog.records and _cached() == []
    assert _accuracy(model, data) > 0.985
    [stored] = shipped.glob(f"{given['model']}-{data.name}-*.safetensors")
    weights = torch.cat([tensor.flatten() for tensor in load_file(stored).values()])
    assert weights.numel() == sum(tensor.numel() for tensor in model.state_dict().values())


def _images_as_of_cifar10() -> DataBundle:
    return replace(make_data(n_classes=10, side=32, channels=3), name="cifar10")


def test_whatever_copy_of_cifar10_is_there_the_shipped_network_is_taken_and_told_of(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(models, "SHIPPED", shipped)
    with caplog.at_level(logging.INFO):
        model = load_baseline("resnet20", _images_as_of_cifar10())
    assert [each.getMessage() for each in caplog.records] == [
        "resnet20 on cifar10: trained on a JPEG copy of the images"
    ]
    stored = load_file(shipped / "resnet20-cifar10-jpeg.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    assert (shipped / "resnet20-cifar10-jpeg.safetensors").stat().st_size < 1_500_000


def test_another_recipe_than_the_shipped_network_s_is_followed(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "SHIPPED", shipped)
    followed = []
    monkeypatch.setattr(models, "train_by_recipe", lambda *given: followed.append(given[2]))
    load_baseline("resnet20", _images_as_of_cifar10(), recipe=Recipe(epochs=2))
    assert followed == [Recipe(epochs=2)]


@pytest.mark.slow
@pytest.mark.skipif(not (DATA_ROOT / "test" / "airplane").is_dir(), reason="needs CIFAR-10")
def test_the_network_of_cifar10_is_as_good_as_the_docs_say(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "SHIPPED", shipped)
    data = load_data("cifar10", data_root=DATA_ROOT)
    assert _accuracy(load_baseline("resnet20", data), data) == pytest.approx(0.875, abs=0.005)


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


def test_a_given_recipe_trains_what_has_none(digits: DataBundle) -> None:
    data = replace(digits, name="mine")
    model = load_baseline("lenet5", data, recipe=Recipe(epochs=2, batch_size=32))
    assert _accuracy(model, digits) > 0.5
    assert torch.equal(
        _weights(model),
        _weights(load_baseline("lenet5", data, recipe=Recipe(epochs=2, batch_size=32))),
    )
    assert len(_cached()) == 1


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


def test_networks_of_packages_are_loaded_by_checkpoint(digits: DataBundle, tmp_path: Path) -> None:
    coloured = make_data_bundle(*(_coloured(n) for n in (20, 10)), n_calibration=4, num_classes=10)
    model = build_model("torchvision/mobilenet_v3_small", 10, (3, 32, 32))
    save_checkpoint(model, tmp_path / "mine.safetensors")
    name = "torchvision/mobilenet_v3_small"
    loaded = load_baseline(name, coloured, checkpoint=tmp_path / "mine.safetensors")
    assert torch.equal(_weights(loaded), _weights(model))
    with pytest.raises(ValueError, match=f"no recipe for {name}"):
        load_baseline(name, coloured)


@pytest.mark.slow
def test_processes_that_start_at_once_train_once(tmp_path: Path) -> None:
    script = (
        "import logging, sys, torch\n"
        "torch.set_num_threads(1)\n"
        "from compress_env.data.bundle import load_data\n"
        "from compress_env.networks.models import RECIPES, Recipe, load_baseline\n"
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
    outputs = [process.communicate()[0] for process in processes]
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
