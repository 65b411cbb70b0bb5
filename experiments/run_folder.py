"""The folder that a run leaves behind: configuration, versions, hardware, rows and figures.

A run that has been stopped goes on in its folder: `state/` holds what it needs for that, and
`table.csv`, written last, tells that it has finished.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import typing
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from filelock import FileLock, Timeout
from matplotlib.figure import Figure

from compress_env.files import replacing

__all__ = [
    "ADDED",
    "MAY_CHANGE",
    "RunFolder",
    "read_config",
    "replacing",
    "restore_config",
    "resume_run",
]

PACKAGES = ("compress-env", "gymnasium", "stable-baselines3", "torch", "torch-pruning", "numpy")
FINISHED = "table.csv"
MAY_CHANGE = {"data_root", "download", "store", "tensorboard"}
"""Settings that a resumed run may have other values of: its results do not depend on them."""
ADDED = {"settings": "{}"}
"""Settings that earlier runs were made without, and what they have there."""
C = TypeVar("C")


class RunFolder:
    """Writes the files of one run, each of them whole or not at all."""

    def __init__(self, path: Path, config: Any = None) -> None:
        """Make the folder and write `config.json`, or go on in one.

        Args:
            path: A folder that is missing or empty; without `config`, one that a run has left.
            config: The experiment's dataclass.

        Raises:
            ValueError: If the folder holds files already, cannot be made, or another process works
                in it.
        """
        self.path = path
        self.state_path = path / "state"
        self._is_new = config is not None
        try:
            path.mkdir(parents=True, exist_ok=True)
            if config is not None and any(path.iterdir()):
                raise ValueError(f"output folder {str(path)!r} is not empty")
            self._lock = FileLock(path / ".lock", blocking=False)
            self._lock.acquire()
            if not self.is_finished:
                self.state_path.mkdir(exist_ok=True)
            if config is not None:
                self.write_json("config.json", dataclasses.asdict(config) | describe_run())
            elif not self.is_finished:
                self._note_resumption()
        except Timeout:
            raise ValueError(f"run folder {str(path)!r} is in use by another process") from None
        except OSError as error:
            raise ValueError(f"cannot write to {str(path)!r}: {error.strerror}") from None

    def _note_resumption(self) -> None:
        config = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        config["resumptions"] = [*config.get("resumptions", []), describe_run()]
        self.write_json("config.json", config)

    def close(self) -> None:
        """Let others work in the folder."""
        self._lock.release()
        with suppress(OSError):
            (self.path / ".lock").unlink()

    @property
    def finished_path(self) -> Path:
        """The final table, which is there when the run has come to its end."""
        return self.path / FINISHED

    @property
    def is_finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.finished_path.is_file()

    def finish(self, rows: list[dict[str, Any]]) -> None:
        """Write the final table, and remove what only an unfinished run needs."""
        self.write_rows(FINISHED, rows)
        shutil.rmtree(self.state_path, ignore_errors=True)
        with suppress(OSError):
            (self.path / "progress.json").unlink()

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file."""
        text = json.dumps(content, indent=2, default=str) + "\n"
        self.write_text(name, text)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file in UTF-8."""
        with replacing(self.path / name) as path:
            path.write_text(text, encoding="utf-8")

    def write_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write rows as CSV; columns are the union of the rows' keys."""
        with replacing(self.path / name) as path:
            pd.DataFrame(rows).to_csv(path, index=False)

    def write_figure(self, name: str, figure: Figure) -> None:
        """Write a figure as PNG at 150 dpi."""
        with replacing(self.path / name) as path:
            figure.savefig(path, dpi=150)

    def write_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Write tensors and plain values to `state/NAME.pt`, in place of what was there."""
        with replacing(self.state_path / f"{name}.pt") as path:
            torch.save(dict(state), path)

    def read_state(self, name: str) -> dict[str, Any] | None:
        """Return what `write_state` has written, or None. Nothing in the file is executed.

        Raises:
            ValueError: If the file is not readable.
        """
        path = self.state_path / f"{name}.pt"
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
        except Exception as error:  # whatever an unreadable file makes PyTorch raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"cannot read {str(path)!r}: {reason}") from None
        return state

    def discard(self) -> None:
        """Remove a folder that was made for a run which then could not begin."""
        self.close()
        if self._is_new:
            shutil.rmtree(self.path, ignore_errors=True)


def read_config(config_class: type[C], folder: Path) -> C:
    """Return the settings that a run was started with.

    Raises:
        ValueError: If the folder is not one of this experiment's runs.
    """
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return restore_config(config_class, stored)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error} in its config.json" if isinstance(error, KeyError) else error
        raise ValueError(f"{str(folder)!r} is not a run to go on with: {reason}") from None


def restore_config(config_class: type[C], stored: Mapping[str, Any]) -> C:
    """Make a dataclass again from what JSON has kept of it.

    Raises:
        KeyError: If a field is missing.
    """
    types = typing.get_type_hints(config_class)
    names = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    known = ADDED | dict(stored)
    return config_class(**{name: _typed(types[name], known[name]) for name in names})


def resume_run(config: C, path: Path) -> tuple[C, RunFolder]:
    """Open the folder of a stopped run and return the settings to go on with.

    Args:
        config: What the command line says, defaults where it says nothing.
        path: The run folder.

    Raises:
        ValueError: If it is not a run of this experiment, another process works in it, or a
            setting is given that the run was not started with.
    """
    settings = read_config(type(config), path)
    changes: dict[str, Any] = {"resume": path}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        given, stored = getattr(config, field.name), getattr(settings, field.name)
        if field.name == "resume" or given in (field.default, stored):
            continue
        if field.name not in MAY_CHANGE:
            raise ValueError(
                f"the run was started with {field.name}={stored}, it cannot go on with {given}"
            )
        changes[field.name] = given
    return dataclasses.replace(settings, **changes), RunFolder(path)  # type: ignore[type-var]


def _typed(kind: Any, value: Any) -> Any:
    """Turn what JSON has made of a value into what it was."""
    if isinstance(value, str) and Path in (kind, *typing.get_args(kind)):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def describe_run() -> dict[str, Any]:
    """Return command, date, versions, git revision and hardware of this process."""
    return {
        "command": " ".join(["python", "-m", _module_name(), *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | _versions(),
        "git_revision": _git_revision(),
        "hardware": _hardware(),
    }


def _module_name() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name if spec is not None else Path(sys.argv[0]).name


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _git_revision() -> str | None:
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def _hardware() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
    }
