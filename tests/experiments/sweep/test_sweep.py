"""Sweeps on this machine: cells that work, fail, are killed, wait, and go on."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from experiments.sweep import pools, sweep
from experiments.sweep.cells import EXPERIMENTS, Cell, make_cells
from experiments.sweep.folder import SweepFolder, Task, work
from experiments.sweep.pools import LocalPool, Outcome
from experiments.sweep.sweep import Config, run
from tests.experiments.sweep.fakes import (
    FAKE,
    SMALL,
    FakeConfig,
    events,
    folder_of,
    make_task,
    steps,
    witness,
)
from tests.fakes import quiet


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, list[Outcome], str]:
    """A sweep on two processes, in which every kind of thing happens."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    algos = ("killed always", "fails", "killed once")
    config = Config(experiments=("fake",), algo=algos, out=out, jobs=2, retries=1)
    text = StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXPERIMENTS, "fake", FAKE)
        failed = run(config, Console(file=text, width=200))
    return config, failed, text.getvalue()


def test_cells_that_fail_do_not_stop_the_others(
    swept: tuple[Config, list[Outcome], str],
) -> None:
    config, failed, text = swept
    folder = folder_of(config)
    assert {outcome.name: outcome.error for outcome in failed} == {
        "fake-fails-seed0": "no luck at all",
        "fake-killed_always-seed0": "its process was killed 2 times",
    }
    assert "1 of 3 cells finished" in text
    assert "fake-fails-seed0: failed: no luck at all (see " in text
    log = folder.log("fake-fails-seed0").read_text()
    assert "step 0 is done" in log and "RuntimeError: no luck" in log
    assert events(folder, "fake-fails-seed0") == ["started", "failed"]
    assert events(folder, "fake-killed_always-seed0") == ["started", "started"]


def test_killed_cell_goes_on_from_its_state_and_finishes_once(
    swept: tuple[Config, list[Outcome], str],
) -> None:
    folder = folder_of(swept[0])
    name = "fake-killed_once-seed0"
    assert events(folder, name) == ["started", "started", "finished"]
    assert [record.get("source") for record in folder.records(name)[:2]] == ["scratch", "state"]
    assert steps(folder, name) == [0, 1, 1, 2]  # killed in step 1; step 0 is not done again
    assert f"{name}: goes on from its saved state on " in swept[2]


def test_tables_are_merged_as_they_were_written(tmp_path: Path) -> None:
    config = Config(experiments=("fake",), seeds=(7, 0, 1), out=tmp_path)
    folder, cells = folder_of(config), config.cells()
    for cell in (cells[1], cells[0]):
        folder.cell(cell.name).mkdir(parents=True)
        text = f"network,error\nfirst,0.10\nsecond,{cell.config.seed}.50\n"
        (folder.cell(cell.name) / "table.csv").write_text(text)
        folder.merge(cells)
    table = pd.read_csv(folder.path / "sweep.csv", dtype=str)
    assert list(table) == ["experiment", "algo", "seed", "cell", "network", "error"]
    assert list(table["seed"]) == ["7", "7", "0", "0"]  # in the order of the grid
    assert list(table["error"]) == ["0.10", "7.50", "0.10", "0.50"]
    assert set(table["experiment"]) == {"fake"} and set(table["algo"]) == {"well"}
    assert all((folder.path / cell / "table.csv").exists() for cell in table["cell"])


def test_run_killed_before_it_wrote_its_settings_starts_again(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    task = make_task(folder)
    name = task.cell.name
    folder.cell(name).mkdir()
    (folder.cell(name) / "state").mkdir()
    (folder.cell(name) / ".lock").touch()
    assert work(task) is None
    assert steps(folder, name) == [0, 1, 2]
    assert folder.records(name)[0]["source"] == "scratch"


def test_finished_cells_are_shared_and_the_grid_may_grow(tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = Config(experiments=("fake",), seeds=(0, 1), out=out)
    folder, cells = folder_of(config), config.cells()
    with folder.open(cells) as sweep_id:
        for cell in cells:
            assert work(Task(cell, FAKE, folder.path, sweep_id, 1)) is None
    text = StringIO()
    assert run(config, Console(file=text, width=200)) == []
    assert "2 of 2 cells were finished before" in text.getvalue()
    grown = Config(experiments=("fake",), seeds=(2, 0, 1), out=out, jobs=1)
    assert run(grown, quiet()) == []
    assert [steps(folder, cell.name) for cell in grown.cells()] == [[0, 1, 2]] * 3
    assert all(events(folder, c.name) == ["started", "finished"] for c in grown.cells())
    assert list(pd.read_csv(out / "sweep.csv")["seed"]) == [2, 2, 0, 0, 1, 1]
    with pytest.raises(ValueError, match="holds the cell fake-well-seed2, which this grid lacks"):
        run(config, quiet())
    other = Config(experiments=("fake",), seeds=(0, 1, 2), out=out, options=("--pause-s", "1"))
    with pytest.raises(ValueError, match=r"was made with pause_s=0\.0, got 1\.0"):
        run(other, quiet())


def test_stopped_sweep_goes_on_with_its_own_grid(tmp_path: Path) -> None:
    config = Config(experiments=("fake",), seeds=(0, 1), out=tmp_path / "out")
    folder, cells = folder_of(config), config.cells()
    with folder.open(cells) as sweep_id:
        assert work(Task(cells[0], FAKE, folder.path, sweep_id, 1)) is None
    assert folder.stored_cells() == cells
    assert run(Config(resume=tmp_path / "out", jobs=1), quiet()) == []
    assert all(events(folder, cell.name) == ["started", "finished"] for cell in cells)
    with pytest.raises(ValueError, match="goes on with the grid and the folder that there are"):
        run(Config(resume=tmp_path / "out", seeds=(0, 1, 2)), quiet())
    with pytest.raises(ValueError, match="is not a sweep to go on with"):
        run(Config(resume=tmp_path), quiet())


def test_cell_in_other_hands_is_waited_for_and_not_run_twice(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    task = make_task(folder)
    name = task.cell.name
    with folder.lock(name):
        second = threading.Thread(target=work, args=(task,), daemon=True)
        second.start()
        time.sleep(0.5)
        assert events(folder, name) == []
        folder.cell(name).mkdir()
        (folder.cell(name) / "table.csv").write_text("network\nfirst\n")
    second.join()
    assert events(folder, name) == []
    assert not witness(folder.cell(name)).exists()


def test_folder_that_is_not_shared_is_noticed(tmp_path: Path) -> None:
    task = make_task(SweepFolder(tmp_path / "here"))
    elsewhere = task._replace(sweep=tmp_path / "there")
    assert "does not see the sweep" in (work(elsewhere, "node") or "")
    make_task(SweepFolder(tmp_path / "there"))
    assert "must lie on a file system that all nodes share" in (work(elsewhere) or "")
    assert not list(tmp_path.glob("*/cells/*"))


def test_foreign_files_in_a_cell_are_left_alone(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    task = make_task(folder)
    precious = folder.cell(task.cell.name) / "precious"
    precious.parent.mkdir()
    precious.write_text("mine")
    assert "holds files, but no config.json of a run to go on with" in (work(task) or "")
    assert precious.read_text() == "mine"


def test_sweep_that_is_running_is_refused(tmp_path: Path) -> None:
    config = Config(experiments=("fake",), out=tmp_path / "out")
    folder = folder_of(config)
    with folder.open(config.cells()):
        with pytest.raises(ValueError, match="is run by another process"):
            run(config, quiet())


def test_cells_that_another_process_has_added_meanwhile_are_not_dropped(tmp_path: Path) -> None:
    mine, other = (Config(experiments=("fake",), seeds=(n,), out=tmp_path / "out") for n in (0, 1))
    folder = folder_of(mine)
    folder.check(mine.cells())  # nothing is there yet
    with folder_of(other).open(other.cells()):
        pass
    before = folder.marker.read_bytes()
    with pytest.raises(ValueError, match="holds the cell fake-well-seed1, which this grid lacks"):
        with folder.open(mine.cells()):
            pass
    assert folder.marker.read_bytes() == before


def test_folder_that_was_left_before_anything_was_in_it_is_begun(tmp_path: Path) -> None:
    config = Config(experiments=("fake",), out=tmp_path / "out", jobs=1)
    for name in ("cells", "attempts"):
        (tmp_path / "out" / name).mkdir(parents=True)
    (tmp_path / "out" / ".lock").touch()
    assert run(config, quiet()) == []
    assert (tmp_path / "out" / "sweep.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiments", "magic"], "unknown experiment 'magic'; valid: compress"),
        (["--algo", "ppo", "magic"], "unknown algorithm 'magic'; valid: q_critic_ppo"),
        (["--seeds", "1", "--", "--seed", "0"], "'seed' is given twice"),
        (["--seeds", "0", "0"], "the grid holds a cell twice: compress-vgg8-digits16"),
        (["--experiments", "fake", "--model", "lenet5"], "'fake' has no setting 'model'"),
        (["--seeds", "0", "--", "--seed", "3"], "'seed' is given twice"),
        (["--", "--evaluations", "0"], "evaluations must be at least 1, got 0"),
        (["--", "--epochs", "5"], "options of compress: there is no option --epochs"),
        (["--", "--n-evaluations", "5"], "--n-evaluations is called --evaluations now"),
        (["--", "--train-epochs", "x"], "options of compress: "),
        (["--algos", "ppo"], "--algos is called --algo now"),
        (["--", "--out", "here"], "the sweep itself chooses --out and --resume"),
        (["--jobs", "0"], "jobs must be 1 or more, got 0"),
        (["--retries", "-1"], "retries must be 0 or more, got -1"),
        (["--cpus-per-cell", "0"], "cpus_per_cell must be 1 or more, got 0"),
        (["--gpus-per-cell", "1"], "gpus_per_cell needs --ray"),
        (["--ray", "auto", "--jobs", "2"], "jobs is for this machine alone"),
        (["--ray", "auto"], r"--ray needs Ray: pip install 'compress-env\[ray\]'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_one_line_and_no_folder(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("sys.argv", ["sweep", "--out", "out", *arguments])
    with pytest.raises(SystemExit) as caught:
        sweep.main()
    shown = capsys.readouterr().err.strip() if caught.value.code == 2 else str(caught.value)
    assert shown.startswith("error: ") and "\n" not in shown
    assert re.search(message, shown)
    assert list(tmp_path.iterdir()) == []


def test_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(ValueError, match="is not empty, and no sweep"):
        run(Config(experiments=("fake",), out=tmp_path), quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(ValueError, match=r"sweep\.json' is not of a sweep"):
        run(Config(experiments=("fake",), out=tmp_path), quiet())


def test_paths_among_the_options_hold_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    cells = make_cells(("fake",), {"seed": (3,)}, ("--data-root", "data", "--pause-s", "2"))
    assert cells == [Cell("fake-well-seed3", "fake", FakeConfig("well", 3, 2.0, Path("/data")))]


def wait_for(path: Path, goes_on: Callable[[], bool]) -> None:
    """Wait for a file that somebody is to write while he goes on."""
    while not path.exists():
        assert goes_on()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_stopped_sweep_stops_its_cells_and_says_how_to_go_on(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = SweepFolder(tmp_path / "out")
    name = "fake-well-seed0"

    def stop() -> None:
        wait_for(folder.cell(name) / "state" / "step", lambda: True)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    arguments = ["--experiments", "fake", "--out", str(folder.path), "--", "--pause-s", "100"]
    monkeypatch.setattr("sys.argv", ["sweep", *arguments])
    with pytest.raises(SystemExit) as caught:
        sweep.main()
    assert caught.value.code == code
    shown = capsys.readouterr().err
    hint = f"go on with: python -m experiments.sweep --resume {folder.path}"
    assert f"interrupted by {number.name}; {hint}" in shown
    assert events(folder, name) == ["started", "interrupted"]
    with folder.lock(name).acquire(timeout=0):  # nobody works on it any more
        assert not folder.finished(name)


def sweep_slowly(out: Path) -> None:
    """Run a sweep whose only cell takes long."""
    EXPERIMENTS["fake"] = FAKE
    run(Config(experiments=("fake",), out=out, options=("--pause-s", "100")), quiet())


@pytest.mark.slow
def test_cells_die_with_a_sweep_that_is_killed(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "out")
    name = "fake-well-seed0"
    pools.WORKERS.set_forkserver_preload(pools.PRELOAD)
    process = pools.WORKERS.Process(target=sweep_slowly, args=(folder.path,))
    process.start()
    wait_for(folder.cell(name) / "state" / "step", process.is_alive)
    process.kill()
    process.join()
    with folder.lock(name):  # which its cell lets go of at its end
        assert events(folder, name) == ["started", "interrupted"]


@pytest.mark.slow
def test_main_job_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--algo", "random", "--seeds", "1", "--out", str(out), "--", *SMALL]
    monkeypatch.setattr("sys.argv", ["sweep", *arguments])
    with pytest.raises(SystemExit) as caught:
        sweep.main()
    assert caught.value.code == 0
    assert "1 of 1 cells finished" in capsys.readouterr().out
    table = pd.read_csv(out / "sweep.csv")
    assert list(table["network"])[:2] == ["baseline", "uniform"]
    assert list(table["network"])[-1] == "random"
    assert set(table["seed"]) == {1}
    assert {"model", "dataset", "flops_budget", "size_budget", "test_error"} <= set(table)
    config = json.loads((out / table["cell"][0] / "config.json").read_text())
    assert (config["algo"], config["hardware"]["torch_threads"]) == ("random", 1)


@pytest.mark.parametrize("mine", [None, "64"], ids=["ours", "of the user"])
@pytest.mark.parametrize(
    ("name", "ours"),
    [("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "20000"), ("MALLOC_TRIM_THRESHOLD_", "1073741824")],
)
def test_children_keep_kernels_and_memory_and_leave_the_environment_as_it_was(
    name: str, ours: str, mine: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in pools.MEMORY:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, mine) if mine else monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with pools._inherited(3):
        inside = dict(os.environ)
    assert inside == before | pools.MEMORY | {"OMP_NUM_THREADS": "3", name: mine or ours}
    assert dict(os.environ) == before
    assert pools._environment(3)[name] == inside[name]


def test_pool_without_tasks_has_nothing_to_stop() -> None:
    pool = LocalPool(jobs=1, retries=0)
    pool.stop()
    assert pool.poll(0.0) == []
