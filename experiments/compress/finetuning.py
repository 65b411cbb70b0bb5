"""The final fine-tuning of a stage, which goes on where it was stopped."""

from __future__ import annotations

from typing import Any

from torch import nn

from compress_env.seeding import derive_generator
from compress_env.task.finetune import Carry
from compress_env.task.task import CompressionTask
from experiments.common.run_folder import RunFolder
from experiments.common.stored import typed

__all__ = ["finetune_in_parts"]

PART = 10_000
"""Minibatches after which a fine-tuning is kept in the run folder."""


def finetune_in_parts(
    task: CompressionTask,
    model: nn.Module,
    n_steps: int,
    seed: int,
    folder: RunFolder,
    name: str,
    **options: Any,
) -> None:
    """Fine-tune in place; every `PART` minibatches the folder holds all that is needed to go on.

    Args:
        task: Fine-tunes.
        model: The network, as it was at the beginning also where there is something to go on with.
        n_steps: Minibatches in all.
        seed: Of the minibatches, their augmentation and dropout.
        folder: The run folder.
        name: Name of the state in it.
        options: Keyword arguments of `CompressionTask.finetune`.

    Raises:
        OSError: If the disk is full.
        ValueError: If the folder holds something that does not fit.
    """
    carry, n_done = Carry(n_steps), 0
    state = folder.read_state(name)
    if state is not None:
        with folder.using(name):
            task.prepare(model)
            model.load_state_dict(state["model"])
            carry.state, n_done = dict(state["carry"]), typed(int, state["n_done"])
    while n_done < n_steps:
        # The first part's are those of a fine-tuning in one piece.
        parts = () if n_done == 0 else (n_done,)
        generator, size = derive_generator(seed, 2**31, 0, *parts), min(PART, n_steps - n_done)
        task.finetune(model, size, generator, carry=carry, **options)
        n_done += size
        if n_done < n_steps:
            state = {"model": model.state_dict(), "carry": carry.state, "n_done": n_done}
            folder.write_state(name, state)
