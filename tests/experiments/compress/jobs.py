"""Small jobs, and how they are left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.compress.compress import Config, run
from tests.fakes import quiet, stop_after_state

LENET: dict[str, Any] = {
    "model": "lenet5",
    "data": "digits",
    "macs": 0.164,
    "size": 0.03,
}
SMALL: dict[str, Any] = LENET | {
    "algo": "q_critic_ppo",
    "compare": ("uniform", "random"),
    "evaluations": 3,
    "finetune_steps": 2,
    "final_finetune_steps": 5,
    "onnx": False,
}


def stopped_run(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Leave a run of one search that was stopped after its first episode."""
    stop_after_state(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(Config(out=folder, **SMALL | {"compare": ()} | settings), quiet())
