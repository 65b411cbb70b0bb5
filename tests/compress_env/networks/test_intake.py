"""Tests of what a given network has to be."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from compress_env import PruningEnv, QuantizationEnv, export_onnx, save
from compress_env.networks.checkpoints import load_checkpoint, save_checkpoint
from compress_env.networks.intake import check_finite, check_stored, unwrapped
from compress_env.task.task import CompressionTask, FinetuneConfig
from tests.fakes import BranchedNet, PlainNet, make_data, seeded


def _compiled(model: nn.Module) -> nn.Module:
    wrapped: Any = torch.compile(model)
    return wrapped  # type: ignore[no-any-return]


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": _compiled,
    "parallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "both": lambda m: _compiled(nn.DataParallel(m)),
    "part": lambda m: nn.Sequential(_compiled(m)),
    "deep part": lambda m: nn.Sequential(nn.Sequential(nn.DataParallel(_compiled(m)))),
}


@pytest.fixture(params=WRAPPERS)
def wrapped(request: pytest.FixtureRequest) -> nn.Module:
    return WRAPPERS[request.param](seeded(PlainNet))


def test_wrappers_are_taken_off_and_tensors_stay(wrapped: nn.Module) -> None:
    plain = unwrapped(wrapped)
    assert {id(p) for p in plain.parameters()} == {id(p) for p in wrapped.parameters()}
    names = [name.lstrip("0.") for name, _ in plain.named_parameters()]
    assert names == [name for name, _ in PlainNet().named_parameters()]
    assert not any(name.endswith(("_orig_mod", ".module")) for name, _ in plain.named_modules())


def test_what_is_not_wrapped_is_itself() -> None:
    model = seeded(BranchedNet)
    assert unwrapped(model) is model


def test_wrapped_networks_are_taken_everywhere(wrapped: nn.Module, tmp_path: Path) -> None:
    data, image = make_data(), torch.zeros(1, 1, 8, 8)
    env = PruningEnv(wrapped, data, method="magnitude", finetune_steps=0)
    assert len(env.walk) == 3
    assert len(QuantizationEnv(wrapped, data, finetune_steps=0).walk) == 4
    assert save(tmp_path / "a.cenv", wrapped) == save(tmp_path / "b.cenv", unwrapped(wrapped))
    assert export_onnx(tmp_path / "net.onnx", wrapped, image) > 0
    save_checkpoint(wrapped, tmp_path / "net.safetensors")
    with torch.no_grad():
        for parameter in wrapped.parameters():
            parameter.zero_()
    load_checkpoint(wrapped, tmp_path / "net.safetensors")
    expected = list(seeded(PlainNet).parameters())
    assert all(torch.equal(a, b) for a, b in zip(wrapped.parameters(), expected, strict=True))


_prune: Any = prune
_utils: Any = nn.utils
HOOKS: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "mask": (lambda m: _prune.l1_unstructured(m, "weight", 0.3), r"prune\.remove\(.*'weight'\)"),
    "bias mask": (lambda m: _prune.random_unstructured(m, "bias", 1), r"prune\.remove\(.*'bias'\)"),
    "weight norm": (_utils.weight_norm, "remove_weight_norm"),
    "spectral norm": (_utils.spectral_norm, "remove_spectral_norm"),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_weights_that_a_hook_computes_are_refused(kind: str, tmp_path: Path) -> None:
    attach, remedy = HOOKS[kind]
    model: Any = seeded(PlainNet)
    with warnings.catch_warnings(action="ignore"):
        attach(model.conv2)
    uses: list[Callable[[], object]] = [
        lambda: check_stored(model),
        lambda: PruningEnv(model, make_data()),
        lambda: QuantizationEnv(model, make_data()),
        lambda: save(tmp_path / "net.cenv", model),
        lambda: export_onnx(tmp_path / "net.onnx", model, torch.zeros(1, 1, 8, 8)),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=rf"conv2\.\w+' is computed.*{remedy}") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


class Extra(PlainNet):
    """Keeps more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        """Return what belongs to the state, too."""
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        """Take it."""


class Fourier(PlainNet):
    """Has a filter in frequency space."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.ones(1, 1, 8, 5, dtype=torch.cfloat))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Extra, r"^'_extra_state' in the state of the network is no tensor \(dict\), "),
        (Fourier, r"^'filter' of the network is complex: .* torch\.view_as_real$"),
        (lambda: PlainNet().double(), r"^'conv1\.weight' .* torch\.float64, expected .* float\(\)"),
        (lambda: PlainNet().half(), r"^'conv1\.weight' .* torch\.float16, expected .* float\(\)"),
        (lambda: PlainNet().bfloat16(), r"^'conv1\.weight' .* torch\.bfloat16, expected .* float"),
    ],
)
def test_what_cannot_be_stored_or_compressed_is_named(
    build: Callable[[], nn.Module], message: str
) -> None:
    for kind in (PruningEnv, QuantizationEnv):
        with pytest.raises(ValueError, match=message) as caught:
            kind(build(), make_data())
        assert "\n" not in str(caught.value)


class Captured(PlainNet):
    """Runs its first layer through something that is kept in an attribute."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.use = {
            "module": lambda images: self.conv1(images),
            "weight": lambda images: nn.functional.conv2d(images, self.conv1.weight, padding=1),
            "method": self.first,
        }[kind]

    def first(self, images: torch.Tensor) -> torch.Tensor:
        """Run the first layer."""
        hidden: torch.Tensor = self.conv1(images)
        return hidden

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images to logits, whatever the first layer says."""
        logits: torch.Tensor = super().forward(images) + 0 * self.use(images).sum()
        return logits


@pytest.mark.parametrize("kind", ["module", "weight"])
def test_a_copy_that_uses_the_original_is_refused(kind: str) -> None:
    for env in (PruningEnv, QuantizationEnv):
        with pytest.raises(ValueError, match=r"^a copy of the network uses 'conv1\.weight' of"):
            env(Captured(kind), make_data())


def test_a_method_in_an_attribute_is_copied() -> None:
    assert len(QuantizationEnv(Captured("method"), make_data()).walk) == 4


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_parameter_that_is_not_finite_is_named(value: float) -> None:
    model: Any = seeded(PlainNet)
    model.fc1.weight.data[1, 2] = value
    for kind in (PruningEnv, QuantizationEnv):
        with pytest.raises(ValueError, match=r"^'fc1\.weight' of the network has NaN or infinite"):
            kind(model, make_data())


def test_buffers_may_be_infinite_but_no_nan() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2))
    model[0].register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    check_finite(model)
    model[0].mask[0] = torch.nan
    with pytest.raises(ValueError, match=r"'0\.mask'"):
        check_finite(model)


def _norm_of_pixels() -> nn.Module:
    layers = nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3)
    return nn.Sequential(*layers)


def test_batch_norm_over_one_image_is_refused_where_it_cannot_be_trained() -> None:
    one, data = FinetuneConfig(batch_size=1), make_data()
    with pytest.raises(ValueError, match=r"batches of one image: give .* batch_size of at least 2"):
        CompressionTask(seeded(_norm_of_pixels), data, config=one)
    CompressionTask(seeded(_norm_of_pixels), data, config=FinetuneConfig(batch_size=2))
    CompressionTask(seeded(BranchedNet), data, config=one)
    CompressionTask(seeded(PlainNet), data, config=one)


@pytest.mark.parametrize("score", [-0.01, 1.0001, 93.2, torch.tensor(2.0)], ids=str)
def test_scores_outside_0_and_1_are_refused(score: float) -> None:
    task = CompressionTask(seeded(PlainNet), make_data(), scorer=lambda _: score)
    with pytest.raises(ValueError, match=r"score in \[0, 1\], got .*divided by 100"):
        task.score(task.model)


@pytest.mark.parametrize("score", [None, "0.5", [0.5], {}, torch.zeros(2), 1j], ids=repr)
def test_scores_that_are_no_numbers_are_refused(score: float) -> None:
    task = CompressionTask(seeded(PlainNet), make_data(), scorer=lambda _: score)
    with pytest.raises(TypeError, match=r"must return a number in \[0, 1\], got") as caught:
        task.score(task.model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("score", [0, 1, True, torch.tensor(0.5), torch.tensor([0.25])], ids=str)
def test_scores_of_any_number_type_are_taken(score: float) -> None:
    task = CompressionTask(seeded(PlainNet), make_data(), scorer=lambda _: score)
    assert task.score(task.model) == float(score)


@pytest.mark.parametrize("score", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_are_failures(score: float) -> None:
    task = CompressionTask(seeded(PlainNet), make_data(), scorer=lambda _: score)
    with pytest.raises(FloatingPointError, match="the scorer returned"):
        task.score(task.model)
