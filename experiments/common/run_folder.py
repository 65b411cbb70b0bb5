"""The folder that a run leaves behind: configuration, versions, hardware, rows and figures.

A run that has been stopped goes on in its folder: `state/` holds what it needs for that, and
`table.csv`, written last, tells that it has finished.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from filelock import FileLock, Timeout
from matplotlib.figure import Figure

from compress_env.errors import reason_of
from compress_env.files import replacing
from experiments.common.cli.given import HANDED_OVER, WITH_CODE, is_given, trusted
from experiments.common.cli.renamed import current_names
from experiments.common.cli.user_code import names_code
from experiments.common.inputs import differing
from experiments.common.provenance import describe_run
from experiments.common.stored import check_name, check_tree, read_object, restore

__all__ = [
    "ADDED",
    "MAY_CHANGE",
    "RunFolder",
    "is_bare",
    "is_bare_file",
    "read_config",
    "replacing",
    "restore_config",
    "resume_run",
    "run_path",
]

FINISHED = "table.csv"
LOCK = ".lock"
DPI = 150
MAY_CHANGE = {"data_root", "download", "store", "tensorboard"}
"""Settings that a resumed run may have other values of: its results do not depend on them."""
ADDED: dict[str, Any] = {
    "settings": "{}",
    "n_envs": None,
    "nominate_by": "accuracy",
    "shaping": 0.0,
    "budgets": [],
    "agent_rate_drops": [],
    "agent_rate_decay": 1.0,
    "preparation": "auto",
    "variational": "default",
}
"""Settings that earlier runs were made without, and what they have there."""
C = TypeVar("C")
_PROBE_BYTES = 2**20
_WRITTEN_HALF = re.compile(r"\.(config|sweep)-[0-9a-f]{32}\.json")


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
        self.is_new = config is not None
        """Whether it was made for this run, which does not go on in it."""
        # A file that is no longer there when it has been locked is not taken for the lock.
        self._lock = FileLock(path / LOCK, blocking=False)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._check_bare(config)
            self._lock.acquire()
            self._begin(config)
        except Timeout:
            raise ValueError(f"run folder {str(path)!r} is in use by another process") from None
        except OSError as error:
            raise ValueError(f"cannot write to {str(path)!r}: {error.strerror}") from None

    def _check_bare(self, config: Any) -> None:
        if self.is_new and not is_bare(self.path):
            hint = _way_on(type(config), self.path)
            raise ValueError(f"output folder {str(self.path)!r} is not empty{hint}")

    def _begin(self, config: Any) -> None:
        """Make what the folder begins with; it is locked."""
        try:
            self._check_bare(config)  # another process may have been here since
            if not self.is_finished:
                self.state_path.mkdir(exist_ok=True)
            if config is not None:
                settings = json.loads(json.dumps(dataclasses.asdict(config), default=str))
                inputs = {"inputs": {"settings": _settings_digest(type(config), settings)}}
                self.write_json("config.json", settings | describe_run() | inputs)
            elif not self.is_finished:
                self._note_resumption()
        except BaseException:
            self.close()
            raise

    def _note_resumption(self) -> None:
        config = read_object(self.path / "config.json")
        before = config.get("resumptions", [])
        if not isinstance(before, list):
            raise ValueError(f"resumptions in {str(self.path / 'config.json')!r} must be a list")
        self.write_json("config.json", config | {"resumptions": [*before, describe_run()]})

    def hold_to(self, inputs: Mapping[str, str], code: Mapping[str, str] | None = None) -> None:
        """Keep digests of what the run is made from, or compare them with those that are kept.

        Args:
            inputs: Digests by what they are of. Folders of earlier versions have none: they take
                what they are given first.
            code: Likewise, of what may be mended before a run goes on: the last ones are kept.

        Raises:
            ValueError: If the run was started with something else.
        """
        config = read_object(self.path / "config.json")
        kept = _digests(config)
        for name in differing(inputs, kept):
            raise ValueError(
                f"the {name} here is not what {str(self.path)!r} was started with (sha256 "
                f"{inputs[name][:12]}, then {kept[name][:12]}): two would be mixed in one run"
            )
        now = kept | dict(inputs) | dict(code or {})
        if not self.is_finished and now != kept:
            self.write_json("config.json", config | {"inputs": now})

    def close(self) -> None:
        """Let others work in the folder."""
        if self._lock.is_locked:
            with suppress(OSError):
                # While it is held: afterwards it may be another's.
                (self.path / LOCK).unlink()
            self._lock.release()

    @property
    def has_states(self) -> bool:
        """Whether `write_state` has written something, which a run can go on from."""
        return any(self.state_path.glob("*.pt"))

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
            # A folder's name that the terminal's encoding cannot tell is written as it was.
            path.write_text(text, encoding="utf-8", errors="surrogateescape")

    def write_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write rows as CSV; columns are the union of the rows' keys."""
        with replacing(self.path / name) as path:
            pd.DataFrame(rows).to_csv(path, index=False)

    def write_figure(self, name: str, figure: Figure) -> None:
        """Write a figure as PNG."""
        with replacing(self.path / name) as path:
            figure.savefig(path, dpi=DPI)

    def write_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Write tensors and plain values to `state/NAME.pt`, in place of what was there.

        Raises:
            OSError: If the disk is full.
        """
        with replacing(self._state_file(name)) as path:
            try:
                torch.save(dict(state), path)
            except RuntimeError:  # PyTorch does not say what is wrong with the disk: writing does
                with path.open("ab") as file:
                    file.write(bytes(_PROBE_BYTES))
                raise

    def _state_file(self, name: str) -> Path:
        return self.state_path / f"{check_name(name)}.pt"

    def read_state(self, name: str) -> dict[str, Any] | None:
        """Return what `write_state` has written, or None. Nothing in the file is executed.

        Tensors are on the CPU, wherever they were: a run may go on without the GPU it began on.

        Raises:
            ValueError: If the file is not readable.
        """
        path = self._state_file(name)
        if not path.is_file():
            return None
        try:
            _check_sums(path)
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever an unreadable file makes PyTorch raise
            reason = reason_of(error)
            raise ValueError(f"cannot read {str(path)!r}: {reason}") from None
        if not isinstance(state, dict):
            raise ValueError(f"cannot read {str(path)!r}: it holds no state")
        return state

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Tell in one line if a state, used inside the block, does not hold what it should.

        Raises:
            ValueError: If the block finds something missing or of another kind.
        """
        try:
            yield
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            path = self._state_file(name)
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{str(path)!r} does not fit this run: {type(error).__name__}: {reason[:200]}"
            ) from None

    def discard(self) -> None:
        """Remove a folder that was made for a run which then could not begin."""
        if self.is_new:
            for name in ("config.json", "progress.json"):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.state_path, ignore_errors=True)
        self.close()
        if self.is_new:
            with suppress(OSError):  # somebody else has begun
                self.path.rmdir()


def run_path(name: str, out: Path | None = None) -> Path:
    """Return the folder that a command is given, or a new one under `runs/` with its name."""
    return out or Path("runs") / f"{name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"


def is_bare(path: Path) -> bool:
    """Tell whether a folder holds nothing but what a run makes before its settings."""
    return all(is_bare_file(child) or _is_bare_state(child) for child in path.iterdir())


def is_bare_file(path: Path) -> bool:
    """Tell whether a file is the lock, or settings that were not written to their end."""
    is_own = path.name == LOCK or bool(_WRITTEN_HALF.fullmatch(path.name))
    return is_own and not path.is_symlink()


def _is_bare_state(path: Path) -> bool:
    is_own = path.name == "state" and path.is_dir() and not path.is_symlink()
    return is_own and not any(path.iterdir())


def _check_sums(path: Path) -> None:
    """Check the checksum of every record in a file of `torch.save`, which itself does not.

    Raises:
        ValueError: If one is wrong.
        zipfile.BadZipFile: If it is no such file.
    """
    with zipfile.ZipFile(path) as records:
        if any(each.compress_type != zipfile.ZIP_STORED for each in records.infolist()):
            raise ValueError("it holds compressed records")  # which may be of any size
        damaged = records.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged!r} is wrong")


def read_config(config_class: type[C], folder: Path) -> C:
    """Return the settings that a run was started with.

    Raises:
        ValueError: If the folder is not one of this experiment's runs, or its settings have been
            changed.
    """
    try:
        check_tree(folder)
        if folder.is_dir() and is_bare(folder):
            raise ValueError("nothing was begun there; --out takes it as it is")
        content = read_object(folder / "config.json")
        settings = restore_config(config_class, content)
        if _digests(content).get("settings") not in (
            None, _settings_digest(config_class, content),
        ):  # fmt: skip
            raise ValueError("its config.json has been changed")
        return settings
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(folder)!r} is not a run to go on with: {error}") from None


def _way_on(config_class: type[Any], folder: Path) -> str:
    """Say how to go on with a folder; nothing unless it is a stopped run of this experiment."""
    if all(field.name != "resume" for field in dataclasses.fields(config_class)):
        return ""
    try:
        if (folder / FINISHED).exists() or not (folder / "config.json").is_file():
            return ""
        settings = read_config(config_class, folder)
    except (OSError, ValueError):
        return ""
    if any(str(getattr(settings, name, "")).startswith(HANDED_OVER) for name in WITH_CODE):
        return ""  # only the program that handed them over can
    return f"; --resume {str(folder)!r} goes on with what is there"


def _digests(config: Mapping[str, Any]) -> dict[str, str]:
    inputs = config.get("inputs", {})
    if not isinstance(inputs, dict) or not all(isinstance(x, str) for x in inputs.values()):
        raise ValueError("inputs in config.json must be digests by name")
    return inputs


def _settings_digest(config_class: type[Any], stored: Mapping[str, Any]) -> str:
    """Return a hex sha256 of the settings among what is stored, as JSON has them.

    They count by the names that they are stored by, which may be former ones; those that did not
    exist then do not count.
    """
    names = [field.name for field in dataclasses.fields(config_class)]
    then = dict(zip(current_names(stored, names), stored, strict=True))
    known = [name for name in names if name in then or name not in ADDED]
    settings = [(then.get(name, name), stored.get(then.get(name, name))) for name in known]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def restore_config(config_class: type[C], stored: Mapping[str, Any]) -> C:
    """Make a dataclass again from what JSON has kept of it, also by names that it had before.

    Raises:
        ValueError: If a field is missing, or holds something else than it should.
    """
    names = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    return restore(config_class, ADDED | current_names(stored, names))


def resume_run(config: C, path: Path) -> tuple[C, RunFolder]:
    """Open the folder of a stopped run and return the settings to go on with.

    Args:
        config: What the command line says, defaults where it says nothing.
        path: The run folder.

    Raises:
        ValueError: If it is not a run of this experiment, another process works in it, a setting
            is given that the run was not started with, or one must be given, see
            `experiments.common.cli.given`. What digests hold a run to may be in another place.
    """
    settings = read_config(type(config), path)
    changes: dict[str, Any] = {"resume": path}
    names = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    given = [name for name in names if name != "resume" and is_given(config, name)]
    for name in given:
        now, then = getattr(config, name), getattr(settings, name)
        if now != then and name not in MAY_CHANGE and not _is_moved(name, now, then):
            raise ValueError(f"the run was started with {name}={then}, it cannot go on with {now}")
        changes[name] = now
    settings = trusted(dataclasses.replace(settings, **changes), given, path)  # type: ignore[type-var]
    return settings, RunFolder(path)


def _is_moved(name: str, now: Any, then: Any) -> bool:
    """Tell whether a setting is of another place, to whose content a digest holds the run."""
    if name in ("weights", "checkpoint", "policy"):
        return now is not None and then is not None
    is_place = name == "data" or (name == "model" and names_code(str(then)))
    return is_place and Path(str(now)).name == Path(str(then)).name
