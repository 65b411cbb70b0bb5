"""What a run was made with: command, date, versions, revision and hardware."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe_run", "program"]

PACKAGES = ("compress-env", "gymnasium", "stable-baselines3", "torch", "torch-pruning", "numpy")


def describe_run() -> dict[str, Any]:
    """Return command, date, versions, git revision and hardware of this process."""
    return {
        "command": f"{program()} {shlex.join(sys.argv[1:])}".rstrip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | _versions(),
        "git_revision": _git_revision(),
        "hardware": _hardware(),
    }


def program() -> str:
    """Return how this process was called: the console script's command, or a module of Python."""
    name = sys.argv[0]
    if name.startswith(("compress-env ", "python -m ")):
        return name
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None or spec.name.startswith("multiprocessing."):  # a worker: told what was called
        return f"python -m {_module_of(Path(name))}"
    return f"python -m {spec.name.removesuffix('.__main__')}"


def _module_of(path: Path) -> str:
    """Return the name of a package's `__main__.py`, or of another file."""
    if path.name != "__main__.py":
        return path.name
    names: list[str] = []
    folder = path.parent
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    return ".".join(names) or path.name


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
