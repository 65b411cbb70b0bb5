"""What a sweep shows of its cells while they run."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console

from experiments.sweep.display import Display, _n_common
from experiments.sweep.folder import SweepFolder
from experiments.sweep.pools import Outcome
from tests.experiments.sweep.fakes import make_task, save


def test_terminal_shows_a_line_for_each_running_cell(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    task = make_task(folder)
    name, text = task.cell.name, StringIO()
    console = Console(file=text, width=150, height=20, force_terminal=True)
    display = Display(console, folder, 2)
    display.begin([name], 1)
    with display.live:
        with folder.lock(name):
            folder.record(name, "started", "here", attempt=2, source="state")
        folder.cell(name).mkdir()
        save(folder.cell(name), folder.cell(name) / "state" / "step", 2)
        display.follow([name])
    shown = text.getvalue()
    assert "1 of 2 cells were finished before" in shown
    assert f"{name}: goes on from its saved state on here, attempt 2" in shown
    assert "walking" in shown and "2/3" in shown and "best accuracy 0.5000" in shown


def test_names_on_a_terminal_are_spared_what_they_share() -> None:
    names = ["compress-lenet5-ppo-seed1", "compress-lenet5-ppo-seed2"]
    assert [name[_n_common(names) :] for name in names] == ["seed1", "seed2"]
    assert _n_common(names[:1]) == 0 and _n_common(["a-b", "c-b"]) == 0


def test_pipe_is_told_now_and_then_how_far_all_cells_are(tmp_path: Path) -> None:
    folder, now = SweepFolder(tmp_path), iter(range(0, 1000, 8))
    name, text = make_task(folder).cell.name, StringIO()
    display = Display(Console(file=text, width=150), folder, 3, clock=lambda: float(next(now)))
    display.begin([name, "other"], 1)
    with folder.lock(name):
        folder.record(name, "started", "here", attempt=1, source="scratch")
    display.follow([name])
    display.follow([name])
    display.end(Outcome("other", None), 2)
    display.follow([name])
    display.follow([name])
    assert text.getvalue().splitlines() == [
        "1 of 3 cells were finished before",
        f"{name}: started on here",
        "1 of 3 cells finished, 1 running",
        "other: finished, 2 of 3",
        "2 of 3 cells finished, 1 running, about 72 s left",
    ]
