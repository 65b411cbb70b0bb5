"""Which tasks share their transitions, and which must not."""

from __future__ import annotations

import copy
import importlib.util
import re
import sys
import types
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from compress_env.data.bundle import DataBundle, make_data_bundle
from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.networks.models import build_model
from compress_env.store import fingerprint as module
from compress_env.store.fingerprint import code_version, task_fingerprint
from compress_env.task.task import CompressionTask, FinetuneConfig
from tests.compress_env.store.names import Dropping, alike, name_of
from tests.fakes import BranchedNet, PlainNet, make_data, seeded


def images_and_labels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(60, 1, 8, 8, generator=generator), torch.arange(60) % 3


def bundle(images: Tensor, labels: Tensor) -> DataBundle:
    pairs = TensorDataset(images, labels)
    return make_data_bundle(pairs, pairs, n_calibration=20)


def test_equal_tasks_have_one_name() -> None:
    name = name_of(seed=1)
    assert name == name_of(seeded(BranchedNet), make_data(), seed=1)
    assert len(name) == 64
    assert int(name, 16) > 0


def test_the_network_is_told_by_content() -> None:
    model = seeded(BranchedNet)
    assert name_of(model) == name_of(copy.deepcopy(model))
    assert name_of(model) == name_of()


def test_named_networks_are_shared(caplog: pytest.LogCaptureFixture) -> None:
    model = build_model("lenet5", 3, (1, 8, 8))
    assert name_of(model) == name_of(copy.deepcopy(model))
    assert "not shared" not in caplog.text


@pytest.mark.parametrize("name", ["stem.0.weight", "head.bias", "right.1.running_var"])
def test_one_element_of_any_tensor_makes_another_task(name: str) -> None:
    model = seeded(BranchedNet)
    with torch.no_grad():
        model.state_dict()[name].view(-1)[-1] += 1e-6
    assert name_of(model) != name_of()


def test_weights_that_leave_no_mark_on_the_logits_count() -> None:
    model = seeded(PlainNet)
    with torch.no_grad():
        model.get_parameter("conv1.bias")[0] = -1e6  # a dead channel
    before = name_of(model)
    with torch.no_grad():
        model.get_parameter("conv1.weight")[0] += 1.0
    assert name_of(model) != before


def test_frozen_weights_make_another_task() -> None:
    model = seeded(BranchedNet)
    model.get_parameter("head.bias").requires_grad_(False)
    assert name_of(model) != name_of()


def test_the_mode_that_a_network_comes_in_does_not_matter() -> None:
    assert name_of(seeded(BranchedNet).train()) == name_of(seeded(BranchedNet).eval())


NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, images):
        return self.head({body})
"""


def run_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    return source


def network_from(folder: Path, body: str) -> nn.Module:
    folder.mkdir()
    (folder / "network.py").write_text(NETWORK.format(body=body))
    return alike(run_file(folder / "network.py").Net)


def test_the_code_of_a_network_counts(tmp_path: Path) -> None:
    first = network_from(tmp_path / "a", "images.flatten(1)")
    again = network_from(tmp_path / "b", "images.flatten(1)")
    changed = network_from(tmp_path / "c", "images.flatten(1).relu()")
    assert name_of(first) == name_of(again)
    assert name_of(first) != name_of(changed)


def test_what_cannot_be_identified_is_never_shared() -> None:
    def build() -> nn.Module:
        model = Dropping(0.1)
        model.pattern = re.compile("x")  # type: ignore[assignment]  # an object written in C
        return model

    assert name_of(alike(build)) != name_of(alike(build))


def test_one_pixel_or_label_makes_another_task() -> None:
    images, labels = images_and_labels()
    same = name_of(data=bundle(images, labels))
    assert same == name_of(data=bundle(images.clone(), labels.clone()))
    other_images = images.clone()
    other_images[7, 0, 3, 3] += 1e-6
    assert same != name_of(data=bundle(other_images, labels))
    other_labels = labels.clone()
    other_labels[7] = (labels[7] + 1) % 3
    assert same != name_of(data=bundle(images, other_labels))


def changed(value: bool | int | float) -> bool | int | float:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2 + 0.1


def test_every_setting_of_finetuning_makes_another_task() -> None:
    default = asdict(FinetuneConfig())
    configs = [FinetuneConfig(**default | {k: changed(v)}) for k, v in default.items()]
    names = [name_of(config=config) for config in (FinetuneConfig(), *configs)]
    assert len(set(names)) == len(names) == 1 + len(default)
    assert name_of(config=configs[0]) == names[1]


def test_settings_make_another_task() -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"seed": 0},
        {"seed": 1},
        {"scorer": None},
        {"scorer": "None"},
        {"seed": 0, "scorer": None},
    ]
    assert len({name_of(**s) for s in settings}) == len(settings)


class LikePruning(PruningEnv):
    """An environment of somebody else's."""


ENVIRONMENT = """
from compress_env.envs.pruning import PruningEnv

class Derived(PruningEnv):
    def uniform_value(self):
        return {value}
"""


def test_another_environment_is_another_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def derived(value: float) -> type:
        path = tmp_path / f"environment_{value}.py"
        path.write_text(ENVIRONMENT.format(value=value))
        monkeypatch.setitem(sys.modules, path.stem, run_file(path))
        return sys.modules[path.stem].Derived  # type: ignore[no-any-return]

    kinds = [PruningEnv, QuantizationEnv, LikePruning, derived(0.25), derived(0.75)]
    assert len({name_of(kind=kind) for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert name_of(kind=kind) == name_of(kind=kind)


def test_an_environment_whose_code_cannot_be_read_is_never_shared() -> None:
    def fill(namespace: dict[str, Any]) -> None:
        namespace["__module__"] = "typed_at_a_prompt"

    kind = types.new_class("Typed", (PruningEnv,), exec_body=fill)
    assert name_of(kind=kind) != name_of(kind=kind)


@pytest.mark.parametrize("name", ["code_version", "version"])
def test_other_code_makes_another_task(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = name_of()
    monkeypatch.setattr(module, name, lambda *_: "changed")
    assert name_of() != before


def test_the_code_version_follows_from_every_source_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version_now() -> str:
        return code_version.__wrapped__()

    assert len(code_version()) == 64
    monkeypatch.setattr(module, "__file__", str(tmp_path / "store" / "fingerprint.py"))
    (tmp_path / "part").mkdir()
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "part" / "b.py").write_text("y = 1")
    versions = [version_now()]
    assert version_now() == versions[0]
    (tmp_path / "part" / "b.py").write_text("y = 2")
    versions.append(version_now())
    (tmp_path / "part" / "b.py").rename(tmp_path / "part" / "c.py")
    versions.append(version_now())
    (tmp_path / "a.py").write_text("")
    versions.append(version_now())
    (tmp_path / "notes.txt").write_text("not code")
    assert version_now() == versions[-1]
    assert len(set(versions)) == len(versions)


def test_the_code_version_is_that_of_the_code_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read on import: what is written into a file later has not been run."""
    before = code_version()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "store" / "fingerprint.py"))
    assert code_version() == before


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_another_number_of_threads_makes_another_task() -> None:
    with threads(1):
        one = name_of()
    with threads(2):
        two = name_of()
    assert one != two


def test_naming_a_task_changes_nothing() -> None:
    task = CompressionTask(seeded(BranchedNet).train(), make_data(), device="cpu")
    before = copy.deepcopy(task.model.state_dict())
    state = torch.get_rng_state()
    task_fingerprint(task, PruningEnv, {})
    assert torch.equal(torch.get_rng_state(), state)
    assert not task.model.training
    assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())


def test_what_cannot_be_identified_is_not_shared_and_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = CompressionTask(seeded(PlainNet), make_data(), device="cpu")
    monkeypatch.setattr(type(task.data), "digest", lambda self: uuid.uuid4().hex)
    names = {task_fingerprint(task, PruningEnv, {}) for _ in range(2)}
    assert len(names) == 2
    assert "results are not shared" in caplog.text
