"""Which device a network runs on."""

from __future__ import annotations

import multiprocessing

import torch

__all__ = ["select_device"]


def select_device(device: str | torch.device) -> torch.device:
    """Turn `"auto"`, `"cuda:auto"`, a name or a device into a device that is there.

    `"auto"` is CUDA where available, otherwise the CPU. `"cuda:auto"` goes round the visible GPUs:
    the main process gets `cuda:0`, worker process i of `multiprocessing` (counted from 0) gets
    `cuda:(i % n_gpus)`; nothing is started on a GPU to find out.

    Raises:
        ValueError: If the device is unknown or not available.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if str(device) == "cuda:auto":
        return _gpu_of_this_process()
    try:
        selected = torch.device(device)
        torch.empty(0, device=selected)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} is not available: {reason}") from None
    return selected


def _gpu_of_this_process() -> torch.device:
    n_gpus = torch.cuda.device_count()
    if n_gpus == 0:
        raise ValueError("device 'cuda:auto' is not available: there is no CUDA device")
    identity = multiprocessing.current_process()._identity  # empty in the main process
    number = identity[-1] - 1 if identity else 0
    return torch.device("cuda", number % n_gpus)
