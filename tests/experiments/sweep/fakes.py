"""An experiment of three steps that comes to grief as it is told, and its sweeps."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.common.run_folder import replacing
from experiments.sweep.cells import Experiment, make_cells
from experiments.sweep.folder import SweepFolder, Task
from experiments.sweep.sweep import Config

SMALL = ("--evaluations=1", "--finetune-steps=0", "--final-finetune-steps=1", "--no-onnx")


@dataclass(frozen=True)
class FakeConfig:
    """An experiment of three steps, with a state after each, that comes to grief as `algo` says."""

    algo: str = "well"
    seed: int = 0
    pause_s: float = 0.0
    data_root: Path | None = None
    out: Path | None = None
    resume: Path | None = None

    def check(self) -> None:
        if self.algo not in ("well", "fails", "killed once", "killed always"):
            raise ValueError(f"unknown algorithm {self.algo!r}")


def run_fake(config: FakeConfig, console: Console) -> None:
    folder = config.resume or config.out
    assert folder is not None
    if config.resume is None:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(asdict(config), default=str))
    settings = json.loads((folder / "config.json").read_text())
    state = folder / "state" / "step"
    first = int(state.read_text()) if state.exists() else 0
    with witness(folder).open("a") as steps:
        for step in range(first, 3):
            steps.write(f"{step}\n")
            steps.flush()
            come_to_grief(settings["algo"], step, len(witness(folder).read_text().split()))
            save(folder, state, step + 1)
            console.print(f"step {step} is done")
            time.sleep(settings["pause_s"])
    with replacing(folder / "table.csv") as path:
        path.write_text(f"network,error\nfirst,0.10\n{settings['algo']},{settings['seed']}.50\n")


def witness(folder: Path) -> Path:
    """File outside the run folder to which each step is written when it is begun."""
    return folder.parents[1] / f"{folder.name}.steps"


def save(folder: Path, state: Path, step: int) -> None:
    state.parent.mkdir(exist_ok=True)
    progress = {"label": "walking", "episode": step, "episodes": 3}
    progress |= {"best_accuracy": 0.5, "cost": 0.25}
    for path, text in ((state, str(step)), (folder / "progress.json", json.dumps(progress))):
        with replacing(path) as temporary:
            temporary.write_text(text)


def come_to_grief(algo: str, step: int, n_begun: int) -> None:
    if algo == "fails" and step == 1:
        raise RuntimeError("no luck\nat all")
    if algo == "killed always" or (algo == "killed once" and n_begun == 2):
        os.kill(os.getpid(), signal.SIGKILL)


FAKE = Experiment(FakeConfig, run_fake, ("algo", "seed"))


def events(folder: SweepFolder, name: str) -> list[str]:
    return [record["event"] for record in folder.records(name)]


def steps(folder: SweepFolder, name: str) -> list[int]:
    return [int(step) for step in witness(folder.cell(name)).read_text().split()]


def folder_of(config: Config) -> SweepFolder:
    assert config.out is not None
    return SweepFolder(config.out.absolute())


def make_task(folder: SweepFolder, **settings: Any) -> Task:
    """Make the folder of a sweep of one cell, and its task."""
    cell = make_cells(("fake",), {key: (value,) for key, value in settings.items()}, ())[0]
    with folder.open([cell]) as sweep_id:
        return Task(cell, FAKE, folder.path, sweep_id, 1)
