"""Small trials, and how they are stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.trial.trial import Config
from tests.fakes import TINY


def small(out: Path | None = None, **settings: Any) -> Config:
    return replace(Config(task=TINY[0], evaluations=4, out=out), **settings)


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
