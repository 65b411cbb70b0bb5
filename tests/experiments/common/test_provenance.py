"""What a run says of how it was called."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from experiments.common.provenance import describe_run

SWEEP = Path(__file__).parents[3] / "experiments" / "sweep" / "__main__.py"


@pytest.mark.parametrize("spec", [None, SimpleNamespace(name="multiprocessing.forkserver")])
def test_a_worker_tells_the_command_that_it_works_for(
    spec: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = ModuleType("__main__")
    main.__spec__ = spec  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", [str(SWEEP), "--seeds", "0"])
    assert describe_run()["command"] == "python -m experiments.sweep --seeds 0"
    monkeypatch.setattr(sys, "argv", ["mine/study.py"])
    assert describe_run()["command"] == "python -m study.py"


def test_a_command_can_be_copied_into_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--label", "CIFAR-10, JPEG copy", "--settings", '{"ppo": {"n_epochs": 5}}']
    monkeypatch.setattr(sys, "argv", ["compress-env compress", *arguments])
    command = describe_run()["command"]
    assert shlex.split(command) == ["compress-env", "compress", *arguments]
