"""How a network is fine-tuned and evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass

from compress_env.counts import check_count

__all__ = ["FinetuneConfig"]


@dataclass(frozen=True)
class FinetuneConfig:
    """How a network is fine-tuned and evaluated."""

    batch_size: int = 64
    """Images per fine-tuning minibatch."""
    learning_rate: float = 0.01
    """Step size of SGD."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty."""
    distill: float = 0.0
    """Weight of the uncompressed network's answers in the loss, in [0, 1]: the rest is the
    cross-entropy's."""
    distill_temperature: float = 4.0
    """What logits are divided by before their softmax, where answers are compared; above 0."""
    evaluation_batch_size: int = 500
    """Images per batch when scoring; fewer where more do not fit into memory, and of images above
    80 pixels a side, whose batches worker processes hand over (64 at 224 pixels)."""
    batch_norm_batches: int = 8
    """Batches of training images from which running statistics are estimated anew."""
    channels_last: bool = False
    """Whether network and images are kept channels last while fine-tuning. On a GPU the network
    is scored so too; on the CPU it always is where it can be, as that is faster there."""
    bf16: bool = False
    """Whether the forward pass of fine-tuning and scoring runs in bfloat16; weights, batch-norm
    statistics and the statistics of channel selection stay float32 or better."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            TypeError: If a count is not an int.
            ValueError: If a setting is out of range.
        """
        for name in ("batch_size", "evaluation_batch_size", "batch_norm_batches"):
            object.__setattr__(self, name, check_count(name, getattr(self, name), 1))
        for name in ("learning_rate", "distill_temperature"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0.0 <= self.distill <= 1.0:
            raise ValueError(f"distill must be in [0, 1], got {self.distill}")
        for name in ("momentum", "weight_decay"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
