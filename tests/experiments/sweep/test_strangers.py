"""Sweep folders that others wrote or left behind: nothing of them is followed or run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.sweep.cells import make_cell, make_cells
from experiments.sweep.folder import SweepFolder
from experiments.sweep.sweep import Config, run
from experiments.trial import trial
from tests.fakes import quiet


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A sweep of one cell that has not been run, beside somebody's files."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    for path in (home / ".ssh" / "key", home / ".bashrc"):
        path.write_text("keep")
    folder, cells = SweepFolder(tmp_path / "sweep"), make_cells(("fake",), {}, ())
    with folder.open(cells):
        return folder.path


def everything(path: Path) -> dict[Path, str]:
    return {p: p.read_text() for p in path.rglob("*") if p.is_file() and not p.is_symlink()}


@pytest.mark.parametrize(
    "name", ["../../home", "../attempts", "/tmp/x", "..", ".", "", "a/b", ".ssh", "a\0b", "x" * 300]
)
def test_name_of_a_strangers_cell_leads_nowhere_else(name: str, strange: Path) -> None:
    marker = strange / "sweep.json"
    content = json.loads(marker.read_text())
    (cell,) = content["cells"].values()
    marker.write_text(json.dumps(content | {"cells": {name: cell}}))
    before = everything(strange.parent)
    with pytest.raises(ValueError, match=r"sweep\.json' is not of a sweep: .* is not a name"):
        run(Config(resume=strange, jobs=1), quiet())
    assert everything(strange.parent) == before


@pytest.mark.parametrize("place", ["cells", "cells/{}", "attempts", "attempts/{}.log", "x"])
def test_link_of_a_stranger_is_not_followed(place: str, strange: Path) -> None:
    home = strange.parent / "home"
    (name,) = json.loads((strange / "sweep.json").read_text())["cells"]
    path = strange / place.format(name)
    if path.is_dir():
        path.rmdir()
    path.symlink_to(home / ".bashrc" if place.endswith("log") else home)
    before = everything(home)
    with pytest.raises(ValueError, match="is a link that leads out of"):
        run(Config(resume=strange, jobs=1), quiet())
    assert everything(home) == before


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("resume", "../home", "out and resume are for the sweep to choose"),
        ("out", "../home", "out and resume are for the sweep to choose"),
        ("seed", "0", "seed must be a whole number, got '0'"),
        ("seed", float("nan"), "seed must be a whole number, got nan"),
        ("pause_s", None, "pause_s must be a finite number, got None"),
        ("experiment", "evil", "unknown experiment 'evil'"),
        ("experiment", ["fake"], r"unknown experiment \['fake'\]"),
    ],
)
def test_setting_of_a_strangers_cell_is_refused(
    setting: str, value: Any, message: str, strange: Path
) -> None:
    marker = strange / "sweep.json"
    content = json.loads(marker.read_text())
    ((name, cell),) = content["cells"].items()
    marker.write_text(json.dumps(content | {"cells": {name: cell | {setting: value}}}))
    with pytest.raises(ValueError, match=message) as caught:
        run(Config(resume=strange, jobs=1), quiet())
    assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"id": 3, "cells": {}}',
        '{"id": "a", "cells": []}',
        '{"id": "a"}',
        '{"id": "a", "cells": {"b": 1}}',
        '{"a":' * 100_000,
    ],
    ids=range(7),
)
def test_marker_of_something_else_is_refused_in_one_line(content: str, strange: Path) -> None:
    (strange / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match=r"sweep\.json' is not of a sweep") as caught:
        run(Config(resume=strange, jobs=1), quiet())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_code_of_a_strangers_agent_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign_agent.py").write_text("open('executed', 'w')\nclass A: predict = None\n")
    monkeypatch.chdir(tmp_path)
    folder = SweepFolder(tmp_path / "sweep")
    cell = make_cell("trial", trial.Config(algo="foreign_agent:A"))
    with folder.open([cell]):
        pass
    with pytest.raises(ValueError, match="is not finished, and goes on only with the command"):
        run(Config(resume=folder.path, jobs=1), quiet())
    assert not (tmp_path / "executed").exists() and "foreign_agent" not in sys.modules


@pytest.mark.parametrize("line", ["[]", '{"event": 1}', "{", '{"event": "started", "node": "a"}'])
def test_record_of_something_else_is_told_in_one_line(line: str, strange: Path) -> None:
    folder = SweepFolder(strange)
    (cell,) = folder.stored_cells()
    (strange / "attempts" / f"{cell.name}.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"\.jsonl', line 1"):
        folder.records(cell.name)
