"""Random changes of training images that keep their labels.

Shapes: b images in a minibatch, C channels, H rows, W columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Augment", "RandomCropFlip", "to_device"]

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Maps images (b, C, H, W), float32, and a CPU generator to augmented images of the same shape."""


@dataclass(frozen=True)
class RandomCropFlip:
    """Shifts each image by up to `padding` pixels, filling with zeros, and flips half of them.

    Runs on the images' device; the random numbers come from the CPU generator, so that the result
    does not depend on the device.
    """

    padding: int
    """Largest shift in either direction, in pixels."""
    flip: bool = True
    """Whether to mirror half of the images left to right."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a minibatch.

        Args:
            images: (b, C, H, W), any dtype, before normalisation (zero is black).
            generator: A CPU generator.

        Returns:
            New images (b, C, H, W).
        """
        n, channels, height, width = images.shape
        shifts = torch.randint(2 * self.padding + 1, (2, n, 1), generator=generator)
        flipped = torch.rand((1, n, 1), generator=generator) < 0.5 if self.flip else shifts[:1] < 0
        moves = to_device(torch.cat([shifts, flipped]), images.device)
        rows = moves[0] + torch.arange(height, device=images.device)  # (b, 1) + (H,) -> (b, H)
        columns = moves[1] + torch.arange(width, device=images.device)
        columns = torch.where(moves[2] == 1, columns.flip(1), columns)
        padded = torch.nn.functional.pad(images, [self.padding] * 4)
        # (b, H, 1) + (b, 1, W) -> (b, H, W) -> (b, 1, H * W): places in the flat padded image
        places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
        places = places.flatten(1)[:, None].expand(-1, channels, -1)
        # (b, C, H * W) -> (b, C, H, W)
        return padded.flatten(2).gather(2, places).view(n, channels, height, width)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device without waiting for the copy."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
