"""What ends a job before its search: nothing is left of it, or something to go on from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress_env.networks.checkpoints import read_safetensors
from compress_env.networks.training import Training
from experiments.common.cli.command import Interrupted, one_line
from experiments.compress import stages
from experiments.compress.compress import Config, run
from experiments.compress.stages import Job
from tests.experiments.compress.jobs import SMALL, stopped_run
from tests.fakes import quiet

pytestmark = pytest.mark.usefixtures("blank_figures")

CODE = """
from tests.fakes import PlainNet, make_data
"""
STOPS: dict[str, Callable[[], BaseException]] = {
    "SIGINT": lambda: Interrupted(2),
    "Ctrl-C": KeyboardInterrupt,
}
"""What raises it, by what somebody has done."""
ENDS = STOPS | {"full-disk": lambda: OSError(28, "No space left on device")}


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Any]:
    """Return settings of a network of one's own that is trained for three epochs."""
    file = tmp_path / "own.py"
    file.write_text(CODE)
    return {
        "model": f"{file}:PlainNet",
        "data": f"{file}:make_data",
        "train_epochs": 3,
        "macs": 0.5,
        "algo": "uniform",
        "compare": (),
        "final_finetune_steps": 1,
        "onnx": False,
    }


def before_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int, error: BaseException) -> list[int]:
    """Raise an error before an epoch is trained; return the epochs that have been begun."""
    once, begun = Training.run_epoch, list[int]()

    def failing(training: Training) -> float:
        if training.n_done == epoch:
            raise error
        begun.append(training.n_done)
        return once(training)

    monkeypatch.setattr(Training, "run_epoch", failing)
    return begun


def resume(settings: dict[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    named = {name: settings[name] for name in ("model", "data")}
    run(Config(resume=folder, **named), quiet())
    return read_safetensors(folder / "baseline.safetensors")


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("name", ENDS)
def test_a_training_that_was_stopped_goes_on(
    name: str,
    epoch: int,
    own: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, whole, error = tmp_path / "run", tmp_path / "whole", ENDS[name]()
    run(Config(out=whole, **own), quiet())
    with monkeypatch.context() as patch:
        before_epoch(patch, epoch, error)
        with pytest.raises(type(error)) as caught:
            run(Config(out=folder, **own), quiet())
    assert one_line(caught.value).endswith(f"--resume {folder}")
    assert f"--model {own['model']}" in one_line(caught.value)
    assert not (folder / ".lock").exists()
    begun = before_epoch(monkeypatch, 3, error)
    found, expected = resume(own, folder), read_safetensors(whole / "baseline.safetensors")
    assert begun == list(range(epoch, 3))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_network_that_was_trained_is_not_lost_nor_trained_again(
    own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Job, "_hold_to_inputs", failing(OSError("cannot read the image a.png")))
        with pytest.raises(OSError, match=r"a\.png") as caught:
            run(Config(out=folder, **own), quiet())
    assert one_line(caught.value).endswith(f"--resume {folder}")
    before_epoch(monkeypatch, 0, AssertionError("trained again"))
    assert resume(own, folder)


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize(("name", "value"), [("macs", 0.001), ("size", 0.001), ("algo", "ppo+x")])
def test_a_wrong_setting_leaves_no_folder_and_trains_nothing(
    name: str,
    value: Any,
    own: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = before_epoch(monkeypatch, 3, AssertionError())
    with pytest.raises(ValueError, match=f"^(?:{name} must be in|unknown rule)") as caught:
        run(Config(out=tmp_path / "run", **own | {"n_envs": 2, name: value}), quiet())
    assert "--resume" not in one_line(caught.value)
    assert not (tmp_path / "run").exists() and not begun


@pytest.mark.parametrize("name", STOPS)
def test_the_same_command_works_after_a_stop_before_anything_was_kept(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, settings = tmp_path / "run", SMALL | {"algo": "uniform", "compare": ()}
    error = STOPS[name]()
    with monkeypatch.context() as patch:
        patch.setattr(stages, "load_network", failing(error))
        with pytest.raises(type(error)) as caught:
            run(Config(out=folder, **settings), quiet())
    assert "--resume" not in one_line(caught.value) and not folder.exists()
    assert run(Config(out=folder, **settings), quiet())


def test_a_stop_while_a_job_is_taken_up_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    stopped_run(folder, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "load_network", failing(Interrupted(15)))
        with pytest.raises(Interrupted) as caught:
            run(Config(resume=folder), quiet())
    assert one_line(caught.value).endswith(f"--resume {folder}")
    assert run(Config(resume=folder), quiet())


def test_a_job_goes_on_with_files_of_ones_own_that_are_elsewhere_now(
    own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = tmp_path / "run", tmp_path / "elsewhere" / "own.py"
    with monkeypatch.context() as patch:
        before_epoch(patch, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(Config(out=folder, **own), quiet())
    file.parent.mkdir()
    (tmp_path / "own.py").rename(file)
    moved = own | {"model": f"{file}:PlainNet", "data": f"{file}:make_data"}
    with pytest.raises(ValueError, match="it cannot go on with"):
        resume(moved | {"data": f"{file}:other"}, folder)
    assert resume(moved, folder)
