"""The folder of a sweep, and the work on one of its cells.

A cell's run folder is `SWEEP/cells/NAME`. `SWEEP/attempts/NAME.jsonl` tells every time that a
process started on the cell and how that ended, `NAME.log` holds what it printed, and whoever works
on the cell holds `NAME.lock`: no two processes do, on one machine or on several.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import shutil
import traceback
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from filelock import FileLock, Timeout
from rich.console import Console

from compress_env.files import replacing
from experiments.cells import EXPERIMENTS, Cell, Experiment
from experiments.run_folder import ADDED, MAY_CHANGE, describe_run, restore_config

__all__ = ["SweepFolder", "Task", "work"]

TABLE = "table.csv"
MERGED = "sweep.csv"


class SweepFolder:
    """The folder of a sweep."""

    def __init__(self, path: Path, *, rows_suffice: bool = False) -> None:
        """Point at a folder, which need not exist.

        Args:
            path: An absolute path.
            rows_suffice: Whether a cell is finished, too, of which nothing is left but its rows in
                `sweep.csv`, as in a folder that has been published.
        """
        self.path = path
        self._rows_suffice = rows_suffice
        self.marker = path / "sweep.json"
        self._tables: dict[str, pd.DataFrame] = {}

    def cell(self, name: str) -> Path:
        """Return the run folder of a cell."""
        return self.path / "cells" / name

    def log(self, name: str) -> Path:
        """Return the file of what a cell has printed."""
        return self.path / "attempts" / f"{name}.log"

    def finished(self, name: str) -> bool:
        """Tell whether a cell has been run to its end, by whomever."""
        return (self.cell(name) / TABLE).exists() or name in self._published

    @functools.cached_property
    def _published(self) -> dict[str, pd.DataFrame]:
        """Rows of `sweep.csv` by cell, as they were at first; none where they do not suffice."""
        path = self.path / MERGED
        if not self._rows_suffice or not path.exists():
            return {}
        try:
            rows = pd.read_csv(path, dtype=str, keep_default_na=False)
            return {Path(str(cell)).name: mine for cell, mine in rows.groupby("cell", sort=False)}
        except (ValueError, KeyError) as error:
            raise ValueError(f"{str(path)!r} is not of a sweep: {error}") from None

    def lock(self, name: str) -> FileLock:
        """Return the lock to hold while working on a cell."""
        return FileLock(self.path / "attempts" / f"{name}.lock", poll_interval=0.2)

    def read_id(self) -> str | None:
        """Return the identifier of the sweep, or None where the folder is not to be seen."""
        return str(self._read_marker()["id"]) if self.marker.exists() else None

    def _read_marker(self) -> dict[str, Any]:
        try:
            content = json.loads(self.marker.read_text(encoding="utf-8"))
            return {"id": content["id"], "cells": content["cells"]}
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{str(self.marker)!r} is not of a sweep") from None

    def stored_cells(self) -> list[Cell]:
        """Return the cells that the sweep was made with.

        Raises:
            ValueError: If the folder is not of a sweep, or of one with other settings.
        """
        if not self.marker.exists():
            raise ValueError(f"{str(self.path)!r} is not a sweep to go on with")
        cells = []
        for name, stored in self._read_marker()["cells"].items():
            try:
                kind = EXPERIMENTS[stored["experiment"]].config
                cells.append(Cell(name, stored["experiment"], restore_config(kind, stored)))
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"cannot read cell {name} of {str(self.path)!r}: {error}"
                ) from None
        return cells

    def check(self, cells: Sequence[Cell]) -> None:
        """Check that the cells may be worked on here; nothing is written.

        A grid may grow: what it held before must be in it still, with the same settings but for
        those that results do not depend on.

        Raises:
            ValueError: If the folder holds something else, or another grid.
        """
        if not self.marker.exists():
            if self.path.exists() and not self._is_bare():
                raise ValueError(f"output folder {str(self.path)!r} is not empty, and no sweep")
            return
        old: dict[str, dict[str, Any]] = self._read_marker()["cells"]
        new = json.loads(json.dumps(_manifest(cells), default=str))
        for name, settings in old.items():
            if name not in new:
                raise ValueError(
                    f"the sweep in {str(self.path)!r} holds the cell {name}, which this grid "
                    "lacks; a grid may only grow"
                )
            for key in sorted((settings.keys() | new[name].keys()) - MAY_CHANGE):
                before, now = (cell.get(key, ADDED.get(key)) for cell in (settings, new[name]))
                if before != now:
                    raise ValueError(
                        f"the sweep in {str(self.path)!r} was made with {key}={before!r}, got "
                        f"{now!r}"
                    )

    def _is_bare(self) -> bool:
        """Tell whether the folder is empty, or as one that was stopped before its marker was."""
        own = {".lock", "cells", "attempts"}
        return self.path.is_dir() and all(
            path.name in own and not (path.is_dir() and any(path.iterdir()))
            for path in self.path.iterdir()
        )

    @contextmanager
    def open(self, cells: Sequence[Cell]) -> Iterator[str]:
        """Make the folder or add cells to it, and keep other sweeps out of it.

        Yields:
            The identifier of the sweep, the same each time.

        Raises:
            ValueError: If another process runs the sweep, or has added cells to it since they were
                checked, or the folder cannot be made.
        """
        try:
            (self.path / "cells").mkdir(parents=True, exist_ok=True)
            (self.path / "attempts").mkdir(exist_ok=True)
            with FileLock(self.path / ".lock", timeout=0):
                if self.marker.exists():
                    self.check(cells)
                sweep_id = self.read_id() or uuid.uuid4().hex
                content = {"id": sweep_id, "cells": _manifest(cells)} | describe_run()
                with replacing(self.marker) as path:
                    path.write_text(json.dumps(content, indent=2, default=str) + "\n", "utf-8")
                yield sweep_id
        except Timeout:
            raise ValueError(f"sweep {str(self.path)!r} is run by another process") from None

    def records(self, name: str) -> list[dict[str, Any]]:
        """Return what has been tried on a cell, the oldest first."""
        try:
            text = self._attempts(name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines()]

    def record(self, name: str, event: str, node: str, **details: Any) -> None:
        """Note what happens to a cell; the caller holds its lock."""
        path = self._attempts(name)
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        content = {"event": event, "time": time, "node": node, "pid": os.getpid()} | details
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        # Never half a line, whatever becomes of this process.
        with replacing(path) as temporary:
            temporary.write_text(f"{old}{json.dumps(content)}\n", encoding="utf-8")

    def _attempts(self, name: str) -> Path:
        return self.path / "attempts" / f"{name}.jsonl"

    def merge(self, cells: Sequence[Cell]) -> int:
        """Write the tables of all finished cells to `sweep.csv`; return how many there are.

        Numbers stay as the experiment has written them.
        """
        for cell in cells:
            if cell.name not in self._tables and self.finished(cell.name):
                self._tables[cell.name] = self._read(cell)
        tables = [self._tables[cell.name] for cell in cells if cell.name in self._tables]
        if tables:
            with replacing(self.path / MERGED) as path:
                pd.concat(tables).to_csv(path, index=False)
        return len(tables)

    def _read(self, cell: Cell) -> pd.DataFrame:
        """Return the rows of a finished cell, with what tells them from others."""
        path = self.cell(cell.name) / TABLE
        if not path.exists():
            return self._published[cell.name]
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        columns = {key: [value] * len(table) for key, value in cell.columns().items()}
        return pd.concat([pd.DataFrame(columns), table], axis=1)


def _manifest(cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    return {
        cell.name: {"experiment": cell.experiment} | dataclasses.asdict(cell.config)
        for cell in cells
    }


class Task(NamedTuple):
    """A cell to work on, and all that a process elsewhere needs for it."""

    cell: Cell
    experiment: Experiment
    sweep: Path
    """Absolute path of the sweep's folder."""
    sweep_id: str
    """What `sweep.json` must hold there."""
    threads: int
    """Threads of torch."""


def work(task: Task, node: str = "") -> str | None:
    """Run a cell to its end: from its saved state, or from the start when there is none.

    A cell that another process works on is waited for; a finished cell is left alone.

    Args:
        task: What to do.
        node: Name of the machine for the record; its host name when empty.

    Returns:
        None, or in one line why the cell has failed.
    """
    folder, name, node = SweepFolder(task.sweep), task.cell.name, node or platform.node()
    if folder.read_id() != task.sweep_id:
        return (
            f"{node} does not see the sweep in {str(task.sweep)!r}: its folder must lie on a "
            "file system that all nodes share"
        )
    torch.set_num_threads(task.threads)
    with folder.lock(name):
        return None if folder.finished(name) else _attempt(task, folder, node)


def _attempt(task: Task, folder: SweepFolder, node: str) -> str | None:
    name = task.cell.name
    with folder.log(name).open("a", encoding="utf-8", buffering=1) as log:
        with redirect_stdout(log), redirect_stderr(log):
            try:
                task.experiment.run(_start(task, folder, node), Console(file=log, width=120))
                if not folder.finished(name):
                    raise RuntimeError(f"{task.cell.experiment} has left no {TABLE}")
            except Exception as error:
                traceback.print_exc()
                message = " ".join(str(error).split()) or type(error).__name__
                folder.record(name, "failed", node, error=message)
                return message
            except BaseException:
                folder.record(name, "interrupted", node)
                raise
    folder.record(name, "finished", node)
    return None


def _start(task: Task, folder: SweepFolder, node: str) -> Any:
    """Note that an attempt starts, and return its settings."""
    name, path = task.cell.name, folder.cell(task.cell.name)
    number = 1 + sum(record["event"] == "started" for record in folder.records(name))
    source = "state" if any(path.glob("state/*")) else "scratch"
    folder.record(name, "started", node, attempt=number, source=source)
    if (path / "config.json").exists():
        settings = dataclasses.asdict(task.cell.config)
        changed = {key: value for key, value in settings.items() if key in MAY_CHANGE}
        return task.experiment.config(resume=path, **changed)
    _clear(path)
    return dataclasses.replace(task.cell.config, out=path)


def _clear(path: Path) -> None:
    """Remove what a run leaves that was killed before it wrote its settings, and nothing else."""
    if not path.exists():
        return
    foreign = [p.name for p in path.iterdir() if p.name != "state" and not p.name.startswith(".")]
    if foreign or any(path.glob("state/*")):
        raise ValueError(f"{str(path)!r} holds files, but no config.json of a run to go on with")
    shutil.rmtree(path)
