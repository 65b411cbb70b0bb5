"""The replay buffer's file, and the ends of the episodes in it."""

from __future__ import annotations

import io
import pathlib

import numpy as np
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl

__all__ = ["load_buffer", "truncate_last_episode"]


def load_buffer(
    path: str | pathlib.Path | io.BufferedIOBase, present: NStepReplayBuffer, verbose: int = 0
) -> NStepReplayBuffer:
    """Read a replay buffer, whose last episode ends there. Unpickling runs code: trust the file.

    Args:
        path: a file, or where to read one.
        present: the buffer to be replaced; its device, discount and steps per target are kept.
        verbose: 2 to print where the file was found.

    Raises:
        ValueError: if the file holds something else, or was saved with another number of
            environments.
    """
    loaded = load_from_pkl(path, verbose)
    if not isinstance(loaded, NStepReplayBuffer):
        raise ValueError(f"expected an NStepReplayBuffer, got {type(loaded).__name__}")
    if loaded.n_envs != present.n_envs:
        raise ValueError(f"expected a buffer of {present.n_envs} envs, got {loaded.n_envs}")
    for name in ("device", "n_steps", "gamma"):
        setattr(loaded, name, getattr(present, name))
    truncate_last_episode(loaded)
    return loaded


def truncate_last_episode(buffer: NStepReplayBuffer) -> None:
    """Keep targets over several steps from running into an episode that does not follow."""
    if buffer.size() > 0:
        last = buffer.pos - 1
        buffer.timeouts[last] = np.maximum(buffer.timeouts[last], 1.0 - buffer.dones[last])
