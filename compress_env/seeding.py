"""Random states that follow from seeds alone."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["derive_generator", "global_seed", "random_states"]


def derive_generator(*entropy: int) -> torch.Generator:
    """Return a CPU generator seeded by a sequence of non-negative integers."""
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@contextmanager
def global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global random states inside the block and restore them afterwards.

    Args:
        seed: For PyTorch on the CPU and, where `device` is one, the CUDA device; for Python and
            NumPy, which layers that are skipped at random draw from.
        device: Where the block computes.
    """
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []), _outside_pytorch(seed):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def _outside_pytorch(seed: int) -> Iterator[None]:
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # what others draw from
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def random_states(device: torch.device) -> list[object]:
    """Return the global random states, for comparison: unchanged where nothing was drawn."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    of_numpy = pickle.dumps(np.random.get_state())  # noqa: NPY002
    return [random.getstate(), of_numpy, *(state.tolist() for state in states)]
