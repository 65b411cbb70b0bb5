"""The task: settings, devices, memory layout and evaluation that fits."""

from __future__ import annotations

import copy
import math
import multiprocessing
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress_env.pruning.channels.calibration import Calibration
from compress_env.pruning.graph.surgery import LiveChannels, find_walk
from compress_env.seeding import derive_generator
from compress_env.task.scoring import evaluate
from compress_env.task.task import CompressionTask, FinetuneConfig, select_device
from tests.fakes import BranchedNet, PlainNet, make_data, seeded


def make_task(build: type[nn.Module] = BranchedNet, **options: Any) -> CompressionTask:
    settings: dict[str, Any] = {
        "batch_size": 16,
        "learning_rate": 0.05,
        "evaluation_batch_size": 10,
    }
    config = FinetuneConfig(**settings | options)
    return CompressionTask(seeded(build), make_data(), device="cpu", config=config)


def test_a_copy_has_the_same_state_and_shares_nothing() -> None:
    task = make_task()
    model = task.copy_model()
    assert repr(model) == repr(task.model)
    state = model.state_dict()
    for name, tensor in task.model.state_dict().items():
        assert torch.equal(tensor, state[name])
        assert tensor.data_ptr() != state[name].data_ptr()
    for one, other in zip(task.model.modules(), model.modules(), strict=True):
        assert vars(one).keys() == vars(other).keys()
        held = [(x, vars(other)[key]) for key, x in vars(one).items() if isinstance(x, dict | set)]
        assert all(x is not y and type(x) is type(y) and len(x) == len(y) for x, y in held)


# Devices


class Worker:
    def __init__(self, *identity: int) -> None:
        self._identity = identity


@pytest.mark.parametrize(
    ("identity", "n_gpus", "expected"),
    [((), 4, 0), ((1,), 4, 0), ((2,), 4, 1), ((6,), 4, 1), ((1, 3), 4, 2), ((9,), 1, 0)],
)
def test_workers_go_round_the_gpus(
    identity: tuple[int, ...], n_gpus: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setattr(multiprocessing, "current_process", lambda: Worker(*identity))
    assert select_device("cuda:auto") == torch.device("cuda", expected)


def test_cuda_auto_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"^device 'cuda:auto' .*no CUDA device$"):
        select_device("cuda:auto")


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^device 'abacus' is not available: [^\n]*$"):
        select_device("abacus")


# Evaluation that fits into memory


class Narrow(nn.Module):
    """A network that runs out of memory above some images at once."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 3)
        self.largest = 1_000
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.largest:
            raise torch.OutOfMemoryError(f"{len(images)} images do not fit")
        self.sizes.append(len(images))
        return self.fc(images.flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(10, [8, 8, 8]), (7, [5, 5, 5, 5, 4]), (4, [2] * 12), (1, [1] * 24)],
)
def test_evaluation_halves_its_batches_until_they_fit(largest: int, sizes: list[int]) -> None:
    task = make_task(Narrow)
    expected = task.accuracy(task.model, "validation")
    model = copy.deepcopy(task.model).train()
    assert isinstance(model, Narrow)
    model.largest = largest
    model.sizes.clear()
    assert task.accuracy(model, "validation") == expected
    assert model.sizes == sizes
    assert not model.training
    model.sizes.clear()
    assert task.accuracy(model, "validation") == expected
    assert model.sizes == sizes  # the size that fits is remembered


def test_an_image_that_does_not_fit_alone_is_an_error() -> None:
    task = make_task(Narrow)
    model = copy.deepcopy(task.model).train()
    assert isinstance(model, Narrow)
    model.largest = 0
    with pytest.raises(torch.OutOfMemoryError, match="1 images do not fit"):
        task.accuracy(model, "validation")
    assert not any(module.training for module in model.modules())


# Memory layout and precision


def strides(model: nn.Module) -> list[tuple[int, ...]]:
    return [p.stride() for p in model.parameters()]


def prune_first(task: CompressionTask, model: nn.Module) -> str:
    """Cut half of the channels of the first decision; return the layer's name."""
    decision = find_walk(task.model, task.example_image()).decisions[0]
    channels = LiveChannels(model)
    for group in decision.groups:
        channels.remove(group, list(range(0, group.n_channels, 2)))
    return decision.layer.name


@pytest.mark.parametrize("path", ["finetune", "no-step", "batch-norm", "score"])
def test_every_path_ends_in_the_same_memory_layout(path: str) -> None:
    task = make_task(channels_last=True)
    model = copy.deepcopy(task.model)
    prune_first(task, model)
    if path in ("finetune", "no-step"):
        task.finetune(model, 2 if path == "finetune" else 0, derive_generator(0))
    elif path == "batch-norm":
        task.reestimate_batch_norm(model, derive_generator(0))
    else:
        task.score(model)
    expected = copy.deepcopy(model)
    task.prepare(expected)
    assert strides(model) == strides(expected)
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(weight.stride(1) == 1 for weight in convolutions)


@pytest.mark.parametrize(
    "options",
    [{"channels_last": True}, {"bf16": True}, {"channels_last": True, "bf16": True}],
    ids=["channels-last", "bf16", "both"],
)
def test_other_layouts_and_precisions_learn_as_well(options: dict[str, Any]) -> None:
    accuracies = []
    for task in (make_task(**options), make_task()):
        model = copy.deepcopy(task.model)
        task.finetune(model, 80, derive_generator(0))
        task.reestimate_batch_norm(model, derive_generator(1))
        accuracies.append(task.score(model))
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.1)
    assert accuracies[0] > 0.8


def test_statistics_are_the_same_in_every_layout_and_precision() -> None:
    found = []
    settings: list[dict[str, Any]] = [{}, {"channels_last": True, "bf16": True}]
    for options in settings:
        task = make_task(**options)
        walk = [d.layer for d in find_walk(task.model, task.example_image()).decisions]
        calibration = Calibration(task, walk, seed=0)
        model = copy.deepcopy(task.model)
        prune_first(task, model)
        name = walk[-1].name
        channels = torch.arange(walk[-1].out_channels).numpy()
        found.append(calibration.statistics(model, name, channels))
    torch.testing.assert_close(found[0].gram, found[1].gram, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0].cross, found[1].cross, rtol=1e-4, atol=1e-4)
    assert found[1].gram.dtype == torch.float64


def test_statistics_of_the_unpruned_network_are_computed_once() -> None:
    task = make_task()
    walk = [d.layer for d in find_walk(task.model, task.example_image()).decisions]
    calibration = Calibration(task, walk, seed=0)
    name, channels = walk[0].name, torch.arange(walk[0].out_channels).numpy()
    model = copy.deepcopy(task.model)
    first = calibration.statistics(model, name, channels)
    assert calibration.statistics(copy.deepcopy(model), name, channels) is first
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)
    other = calibration.statistics(model, name, channels)
    assert not torch.equal(other.gram, first.gram)


class Viewing(PlainNet):
    """A network that flattens by `view`, which features in channels-last layout do not allow."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.pool(torch.relu(self.conv1(images)))
        hidden = self.pool(torch.relu(self.conv2(hidden)))
        hidden = torch.relu(self.fc1(hidden.view(len(images), -1)))
        return self.fc2(hidden)  # type: ignore[no-any-return]


def test_a_network_that_views_its_features_is_scored_as_it_is() -> None:
    task = make_task(Viewing)
    batches = task.data.validation.batches([torch.arange(len(task.data.validation))])
    assert task.score(task.model) == evaluate(task.model, batches)
    with pytest.raises(ValueError, match="model cannot take images"):
        make_task(Viewing, channels_last=True)


def test_another_default_dtype_is_refused() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ValueError, match=r"^new tensors are torch\.float64, expected"):
            CompressionTask(seeded(PlainNet).float(), "digits8", device="cpu")
    finally:
        torch.set_default_dtype(torch.float32)


def test_fine_tuning_learns_whatever_the_caller_has_switched_off() -> None:
    task = make_task()
    models = [task.copy_model() for _ in range(2)]
    task.finetune(models[0], 2, derive_generator(0))
    with torch.no_grad():
        task.finetune(models[1], 2, derive_generator(0))
    pairs = zip(*(model.parameters() for model in models), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)


class Particular(PlainNet):
    """Takes images of another size alone."""

    def forward(self, images: Tensor) -> Tensor:
        """Check the images first."""
        assert images.shape[-1] == 32, "expected 32x32"
        return super().forward(images)


class Mistaken(PlainNet):
    """Asks the images for what they do not have."""

    def forward(self, images: Any) -> Tensor:
        """Take the images out of something."""
        return super().forward(images.pixels)


@pytest.mark.parametrize(
    ("build", "said"),
    [(Particular, "AssertionError: expected 32x32"), (Mistaken, "AttributeError: .* 'pixels'")],
)
def test_what_a_network_raises_is_why_it_cannot_take_images(
    build: type[nn.Module], said: str
) -> None:
    message = rf"^model cannot take images of shape \(1, 8, 8\): {said}"
    with pytest.raises(ValueError, match=message) as caught:
        make_task(build)
    assert "\n" not in str(caught.value)


def test_scoring_agrees_with_the_plain_layout() -> None:
    task = make_task()
    images = torch.cat([images for images, _ in task.calibration_batches()])
    with torch.no_grad():
        plain = task.model(images.contiguous())
    torch.testing.assert_close(task.model(images), plain, rtol=1e-4, atol=1e-5)
    assert images.shape[0] == len(task.data.calibration)


def test_large_images_are_scored_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_task(evaluation_batch_size=500).scoring_batch_size == 500
    expected = make_task().score(make_task().model)
    n_values = math.prod(make_task().data.image_shape)
    for values, size in ((7 * n_values + 1, 7), (n_values - 1, 1)):
        monkeypatch.setattr("compress_env.task.scoring.MOST_VALUES", values)
        task = make_task()
        assert task.scoring_batch_size == size and task.score(task.model) == expected
