"""Objects come out of the file that is named, and whatever is wrong is told in one line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from experiments.common.cli.user_code import load_object, names_code


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", sys.modules.copy())


def test_object_of_a_file_is_found_beside_its_helpers(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("VALUE = 5\n")
    file = tmp_path / "my_net.py"
    file.write_text("from beside_it import VALUE\nclass Net:\n    value = VALUE\n")
    first = load_object(f"{file}:Net")
    assert first.value == 5
    assert load_object(f"{file}:Net") is first, "the file is run once"


def test_file_with_the_name_of_a_module_is_that_file(tmp_path: Path) -> None:
    for name in ("json", "torch", "statistics"):
        (tmp_path / f"{name}.py").write_text(f"MINE = {name!r}\n")
        assert load_object(f"{tmp_path / name}.py:MINE") == name
    import json

    assert hasattr(json, "dumps")


@pytest.mark.parametrize(
    ("text", "is_code"),
    [
        ("net.py:Net", True),
        ("a/b.py:load", True),
        ("net.py", True),
        ("resnet20", False),
        ("torchvision/resnet18", False),
        ("images/", False),
    ],
)
def test_code_is_told_by_the_ending(text: str, is_code: bool) -> None:
    assert names_code(text) == is_code


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("net.py", "expected FILE.py:NAME"),
        ("nett.py:Net", "no file .*did you mean 'net.py'"),
        ("net.py:Nets", "'net.py' has no 'Nets', did you mean 'Net'?"),
        ("net.py:x", "'net.py' has no 'x'; it has Net"),
        ("broken.py:Net", "cannot be run: SyntaxError"),
        ("raising.py:Net", "cannot be run: ZeroDivisionError: division by zero"),
        ("leaving.py:Net", "cannot be run: SystemExit"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("class Net: ...\n")
    Path("broken.py").write_text("class Net(\n")
    Path("raising.py").write_text("1 / 0\n")
    Path("leaving.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_object(reference)
    assert re.search(message, str(caught.value)) and "\n" not in str(caught.value)
    assert not {"broken", "raising", "leaving"} & set(sys.modules)
