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
import traceback
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from filelock import FileLock, Timeout
from rich.console import Console

from compress_env.files import replacing
from experiments.common.cli.given import WITH_CODE, giving, trusted
from experiments.common.cli.renamed import current_names
from experiments.common.provenance import describe_run
from experiments.common.run_folder import ADDED, MAY_CHANGE, is_bare, is_bare_file, restore_config
from experiments.common.stored import (
    check_name,
    check_tree,
    find_stored,
    own_name,
    read_object,
    read_objects,
    read_table,
)
from experiments.sweep.cells import EXPERIMENTS, Cell, Experiment

__all__ = ["SweepFolder", "Task", "work"]

TABLE = "table.csv"
NOT_GIVEN = {"out", "resume", "settings"}
"""What a cell that goes on takes from its own folder; all else must be as the sweep has it."""
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
        if not self._rows_suffice or find_stored(path) is None:
            return {}
        rows = read_table(path)
        if "cell" not in rows:
            raise ValueError(f"{str(path)!r} is not of a sweep: 'cell' is not among its columns")
        return {own_name(cell): mine for cell, mine in rows.groupby("cell", sort=False)}

    def lock(self, name: str) -> FileLock:
        """Return the lock to hold while working on a cell."""
        return FileLock(self.path / "attempts" / f"{name}.lock", poll_interval=0.2)

    def read_id(self) -> str | None:
        """Return the identifier of the sweep, or None where the folder is not to be seen."""
        return self._read_marker().id if find_stored(self.marker) else None

    def _read_marker(self) -> _Marker:
        """Read `sweep.json`, in which names are those of folders and of nothing else.

        Raises:
            ValueError: If it is not of a sweep, or a link leads out of the folder.
        """
        check_tree(self.path)
        try:
            content = read_object(self.marker)
            sweep_id, cells = content.get("id"), content.get("cells")
            if not isinstance(sweep_id, str) or not isinstance(cells, dict):
                raise ValueError("expected an id and cells")
            for name, settings in cells.items():
                if not isinstance(settings, dict):
                    raise ValueError(f"expected the settings of {check_name(name)}")
                check_name(name)
        except ValueError as error:
            raise ValueError(f"{str(self.marker)!r} is not of a sweep: {error}") from None
        return _Marker(sweep_id, cells)

    def stored_cells(self) -> list[Cell]:
        """Return the cells that the sweep was made with.

        Raises:
            ValueError: If the folder is not of a sweep, or of one with other settings.
        """
        if not find_stored(self.marker):
            raise ValueError(f"{str(self.path)!r} is not a sweep to go on with")
        return [self._restore(*item) for item in self._read_marker().cells.items()]

    def _restore(self, name: str, stored: dict[str, Any]) -> Cell:
        try:
            experiment = stored.get("experiment")
            if not isinstance(experiment, str) or experiment not in EXPERIMENTS:
                raise ValueError(f"unknown experiment {experiment!r}")
            config = restore_config(EXPERIMENTS[experiment].config, stored)
            if config.out is not None or config.resume is not None:
                raise ValueError("out and resume are for the sweep to choose")
        except ValueError as error:
            raise ValueError(f"cannot read cell {name} of {str(self.path)!r}: {error}") from None
        return Cell(name, experiment, config)

    def trusted(self, cells: Sequence[Cell], named: Collection[str] = ()) -> list[Cell]:
        """Return cells as a file may have them run; what is finished is not run.

        Args:
            cells: From `stored_cells`.
            named: Agents and tasks that the command line names.

        Raises:
            ValueError: If one that is not finished runs code that only a command line may name.
        """
        return [cell if self.finished(cell.name) else self._trusted(cell, named) for cell in cells]

    def _trusted(self, cell: Cell, named: Collection[str]) -> Cell:
        given = [name for name in WITH_CODE if getattr(cell.config, name, None) in named]
        try:
            return cell._replace(config=trusted(cell.config, given, self.path))
        except ValueError as error:
            raise ValueError(
                f"cell {cell.name} of {str(self.path)!r} is not finished, and goes on only with "
                f"the command that made it, with its --out: {error}"
            ) from None

    def check(self, cells: Sequence[Cell]) -> None:
        """Check that the cells may be worked on here; nothing is written.

        A grid may grow: what it held before must be in it still, with the same settings but for
        those that results do not depend on.

        Raises:
            ValueError: If the folder holds something else, or another grid.
        """
        check_tree(self.path)
        if not find_stored(self.marker):
            if self.path.exists() and not self._is_bare():
                raise ValueError(f"output folder {str(self.path)!r} is not empty, and no sweep")
            return
        old = self._read_marker().cells
        new = json.loads(json.dumps(_manifest(cells), default=str))
        for name, settings in old.items():
            if name not in new:
                raise ValueError(
                    f"the sweep in {str(self.path)!r} holds the cell {name}, which this grid "
                    "lacks; a grid may only grow"
                )
            settings = current_names(settings, new[name])
            for key in sorted((settings.keys() | new[name].keys()) - MAY_CHANGE):
                before, now = (cell.get(key, ADDED.get(key)) for cell in (settings, new[name]))
                if before != now:
                    raise ValueError(
                        f"the sweep in {str(self.path)!r} was made with {key}={before!r}, got "
                        f"{now!r}"
                    )

    def _is_bare(self) -> bool:
        """Tell whether the folder is empty, or as one that was stopped before its marker was."""
        if not self.path.is_dir():
            return False
        own = [self.path / "cells", self.path / "attempts"]
        children = [path for path in self.path.iterdir() if path not in own]
        return not any(any(path.iterdir()) for path in own if path.is_dir()) and all(
            is_bare_file(path) for path in children
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
                if find_stored(self.marker):
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
        path = self._attempts(name)
        try:
            records = read_objects(path)
        except FileNotFoundError:
            return []
        for number, record in enumerate(records, 1):
            if not _is_record(record):
                raise ValueError(f"{str(path)!r}, line {number}, tells of no attempt")
        return records

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
        table = read_table(path)
        columns = {key: [value] * len(table) for key, value in cell.columns().items()}
        for name in columns.keys() & set(table.columns):
            raise ValueError(f"{str(path)!r} has a column {name!r}, which a sweep adds")
        return pd.concat([pd.DataFrame(columns), table], axis=1)


class _Marker(NamedTuple):
    """What `sweep.json` holds."""

    id: str
    cells: dict[str, dict[str, Any]]
    """Settings by name."""


def _is_record(record: dict[str, Any]) -> bool:
    """Tell whether this is what `SweepFolder.record` notes."""
    kinds: dict[str, type] = {"event": str, "node": str}
    if record.get("event") == "started":
        kinds |= {"attempt": int, "source": str}
    return all(isinstance(record.get(name), kind) for name, kind in kinds.items())


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
    with folder.log(name).open("a", encoding="utf-8", errors="replace", buffering=1) as log:
        with redirect_stdout(log), redirect_stderr(log):
            try:
                settings = _start(task, folder, node)
                with giving(_names(settings) - NOT_GIVEN):
                    task.experiment.run(settings, Console(file=log, width=120))
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


def _names(config: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def _start(task: Task, folder: SweepFolder, node: str) -> Any:
    """Note that an attempt starts, and return its settings."""
    name, path = task.cell.name, folder.cell(task.cell.name)
    number = 1 + sum(record["event"] == "started" for record in folder.records(name))
    source = "state" if any(path.glob("state/*")) else "scratch"
    folder.record(name, "started", node, attempt=number, source=source)
    if (path / "config.json").exists():
        return dataclasses.replace(task.cell.config, resume=path)
    _clear(path)
    return dataclasses.replace(task.cell.config, out=path)


def _clear(path: Path) -> None:
    """Remove what a run leaves that was killed before it wrote its settings, and nothing else."""
    if not path.exists():
        return
    if not is_bare(path):
        raise ValueError(f"{str(path)!r} holds files, but no config.json of a run to go on with")
    for child in path.iterdir():
        child.rmdir() if child.is_dir() else child.unlink()
    path.rmdir()
