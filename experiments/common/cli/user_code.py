"""Objects out of Python files that a command line names: `FILE.py:NAME`."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from compress_env.names import nearest

__all__ = ["load_object", "names_code"]

_REFERENCE = re.compile(r"(?P<file>.+\.py):(?P<name>[^:/\\]+)", re.DOTALL)


def names_code(reference: str) -> bool:
    """Tell whether a text is of the form `FILE.py:NAME`, or a Python file without a name."""
    return _REFERENCE.fullmatch(reference) is not None or reference.endswith(".py")


def load_object(reference: str) -> Any:
    """Run a Python file and return what it calls a name.

    Other files of its folder can be imported by it, and by processes that this one starts.

    Args:
        reference: `FILE.py:NAME`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If no name is given, the file does not have it, or cannot be run.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ValueError(f"expected FILE.py:NAME, got {reference!r}")
    path = Path(match["file"]).expanduser()
    if not path.is_file():
        hint = nearest(path.name, _python_files(path.parent))
        raise FileNotFoundError(f"no file {str(path)!r}{hint}")
    module, name = _run(path.resolve()), match["name"]
    if not hasattr(module, name):
        own = [each for each in vars(module) if not each.startswith("_")]
        hint = nearest(name, own) or f"; it has {', '.join(own) or 'none'}"
        raise ValueError(f"{str(path)!r} has no {name!r}{hint}")
    return getattr(module, name)


def _python_files(folder: Path) -> list[str]:
    return [child.name for child in folder.glob("*.py")] if folder.is_dir() else []


def _run(path: Path) -> ModuleType:
    """Import a file once, under its own name where no other module has it.

    Raises:
        ValueError: If it cannot be run.
    """
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path):
            return module
    name = path.stem
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        # Worker processes cannot import it then.
        name = f"{name}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # inherited by worker processes
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{str(path)!r} cannot be run: {type(error).__name__}: {reason}"
        ) from error
    return module
