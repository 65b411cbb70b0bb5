"""Minibatches that do not fit into the memory of a device.

Shapes: b images in a minibatch, C channels, H rows, W columns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Loss", "Parts"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps images (b, C, H, W) and labels (b,) to their mean loss, ()."""
LEAST = 2
"""Images of the smallest part: batch norms cannot learn from one."""
_logger = logging.getLogger(__name__)


class Parts:
    """Computes a minibatch in parts where it does not fit into memory: their gradients add up.

    Whenever a part does not fit, parts are half as large from then on. Batch norms learn from the
    parts; but for that, and for rounding, the sum is the gradient of the whole.

    Args:
        halve: Whether there may be parts at all.

    Attributes:
        n_parts: Parts of a minibatch, at present.
    """

    def __init__(self, *, halve: bool = True) -> None:
        """Begin with whole minibatches."""
        self._halve, self.n_parts = halve, 1

    def add_gradients(
        self, loss_of: Loss, images: Tensor, labels: Tensor, forget: Callable[[], object]
    ) -> Tensor:
        """Add the gradients of the mean loss of a minibatch to those of the parameters.

        Args:
            loss_of: Computes the loss.
            images: (b, C, H, W).
            labels: (b,).
            forget: Removes the gradients that a failed attempt has left.

        Returns:
            The loss, (), without a graph.

        Raises:
            torch.OutOfMemoryError: If not even two images fit, or the whole has to.
        """
        while True:
            try:
                return self._add(loss_of, images, labels)
            except torch.OutOfMemoryError:
                if not self._halve or self.n_parts >= len(labels) // LEAST:
                    raise
            # Here, as the error's traceback holds on to tensors.
            self.n_parts *= 2
            forget()
            if images.device.type == "cuda":
                torch.cuda.empty_cache()
            _logger.warning(
                "minibatches do not fit into memory: computed in %d parts from here on",
                self.n_parts,
            )

    def _add(self, loss_of: Loss, images: Tensor, labels: Tensor) -> Tensor:
        n_parts = max(1, min(self.n_parts, len(labels) // LEAST))
        losses = []
        for part, targets in zip(
            images.tensor_split(n_parts), labels.tensor_split(n_parts), strict=True
        ):
            loss = loss_of(part, targets)
            if n_parts > 1:
                loss = len(targets) / len(labels) * loss
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return losses[0] if n_parts == 1 else torch.stack(losses).sum()
