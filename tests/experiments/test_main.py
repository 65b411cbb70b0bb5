"""The front door: every command, found and run."""

from __future__ import annotations

import tomllib
from itertools import cycle
from pathlib import Path

import pytest

import compress_env
import experiments
from experiments.__main__ import GROUPS, commands, main
from experiments.common.provenance import describe_run

ROOT = Path(__file__).parents[2]


def test_every_command_is_listed_with_its_question(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    shown = capsys.readouterr().out
    assert {"compress", "benchmark", "trial", "sweep", "volatility"} <= set(commands())
    for name, question in commands().items():
        assert f"  {name:<22}{question}\n" in shown
        assert question.endswith(("?", ".")) and "`" not in question


def test_every_command_is_in_one_group_and_told_of_by_the_package() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == list(commands())
    assert all(f"`{name}`" in (experiments.__doc__ or "") for name in commands())


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert capsys.readouterr().out == f"compress-env {project['version']}\n"
    assert compress_env.__version__ == project["version"]
    assert project["scripts"] == {"compress-env": "experiments.__main__:main"}


CALLED = {"bin/compress-env": "compress-env ", "experiments/__main__.py": "python -m experiments."}


@pytest.mark.parametrize(
    ("name", "called"),
    [*zip(commands(), cycle(CALLED), strict=False), ("compress", "experiments/__main__.py")],
)
def test_every_command_tells_its_options(
    name: str,
    called: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", [called])
    with pytest.raises(SystemExit) as stop:
        main([name.replace("_", "-"), "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: {CALLED[called]}{name} " in shown
    assert not any(program in shown for key, program in CALLED.items() if key != called)


def test_a_mistyped_command_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["comprss"])
    assert stop.value.code == 2
    assert "no command 'comprss', did you mean 'compress'?" in capsys.readouterr().err


def test_a_run_tells_the_command_that_the_front_door_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["compress-env compress", "--seed", "1"])
    assert describe_run()["command"] == "compress-env compress --seed 1"
