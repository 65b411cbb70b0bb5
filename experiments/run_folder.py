"""The folder that a run leaves behind: configuration, versions, hardware, rows and figures."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from compress_env.files import replacing

__all__ = ["RunFolder", "replacing"]

PACKAGES = ("compress-env", "gymnasium", "stable-baselines3", "torch", "torch-pruning", "numpy")


class RunFolder:
    """Writes the files of one run, each of them whole or not at all."""

    def __init__(self, path: Path, config: Any) -> None:
        """Make the folder and write `config.json`.

        Args:
            path: A folder that is missing or empty.
            config: The experiment's dataclass.

        Raises:
            ValueError: If the folder holds files already or cannot be made.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise ValueError(f"output folder {str(path)!r} is not empty")
            self.write_json("config.json", dataclasses.asdict(config) | describe_run())
        except OSError as error:
            raise ValueError(f"cannot write to {str(path)!r}: {error.strerror}") from None

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
