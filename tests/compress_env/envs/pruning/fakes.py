"""Data, quick settings and episodes for the pruning environment."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from compress_env.envs.pruning import PruningEnv
from tests.fakes import make_data

QUICK: dict[str, Any] = {"finetune_steps": 0, "device": "cpu"}


@cache
def data() -> Any:
    return make_data()


def act(env: PruningEnv, actions: Any) -> list[tuple[Any, ...]]:
    env.reset(seed=0)
    return [env.step(np.array([a], np.float32)) for a in actions]
