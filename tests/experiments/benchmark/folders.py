"""The benchmark that tests start from, and what is done to its folder."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

from rich.console import Console
from safetensors.torch import load_file, save_file

from experiments.benchmark.benchmark import Config
from experiments.benchmark.table import Reference
from experiments.search.names import short_name
from experiments.trial.networks import network_path
from tests.fakes import TINY

AGENTS = ("uniform", "random", "cma_es", "ppo")
KNOWN = {TINY[0]: Reference(0.25, 0.5, "somebody"), TINY[1]: Reference(0.5, 0.5, "uniform")}


def text_of(shown: Console) -> str:
    assert isinstance(shown.file, StringIO)
    return shown.file.getvalue()


def folder_of(config: Config) -> Path:
    assert config.out is not None
    return config.out


def change_network(out: Path, task: str) -> Path:
    """Put another network in a task's place, as earlier folders have them; return its file."""
    path = network_path(out, task)
    assert path is not None
    weights = {name: tensor + 1 for name, tensor in load_file(path).items()}
    listed = json.loads((out / "networks.json").read_text())
    del listed[short_name(task)]
    (out / "networks.json").write_text(json.dumps(listed))
    own = out / "networks" / f"{short_name(task)}.safetensors"
    save_file(weights, own)
    return own
