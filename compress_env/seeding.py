"""Random states that follow from seeds alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["derive_generator", "global_seed"]


def derive_generator(*entropy: int) -> torch.Generator:
    """Return a CPU generator seeded by a sequence of non-negative integers."""
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@contextmanager
def global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's global random state inside the block and restore it afterwards.

    Args:
        seed: For the CPU and, where `device` is one, the CUDA device.
        device: Where the block computes.
    """
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
