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
    evaluation_batch_size: int = 500
    """Images per batch when scoring."""
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
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        for name in ("momentum", "weight_decay"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
