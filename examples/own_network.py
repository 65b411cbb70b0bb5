"""A network of one's own at half the multiply-accumulates and a tenth of the bytes.

`python examples/own_network.py`, or the same on the command line:

    compress-env compress --model examples/own_network.py:trained \
        --data examples/own_network.py:load --macs 0.5 --size 0.1
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import compress_env


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        """Build the layers; the shortcut is a 1x1 convolution."""
        super().__init__()
        self.first = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(n_out)
        self.second = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (b, n_in, H, W) to (b, n_out, H / stride, W / stride)."""
        y = self.first_norm(self.first(x)).relu()
        y = self.second_norm(self.second(y))
        mapped: Tensor = (y + self.shortcut(x)).relu()
        return mapped


class ResidualNet(nn.Module):
    """Three residual blocks, of 16, 32 and 64 channels."""

    def __init__(self) -> None:
        """Build the layers."""
        super().__init__()
        self.blocks = nn.Sequential(Block(1, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (b, 1, 8, 8) to logits (b, 10)."""
        features: Tensor = self.blocks(images)
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def load() -> tuple[TensorDataset, TensorDataset]:
    """Return scikit-learn's handwritten digits: 1,000 to train on, 797 for validation and test."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # (n, 1, 8, 8)
    labels = torch.tensor(digits.target)  # (n,) int64, from 0
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1000], order[1000:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def trained(n_epochs: int = 10) -> ResidualNet:
    """Return a trained network."""
    torch.manual_seed(0)
    images, labels = load()[0].tensors
    network = ResidualNet()
    n_steps = n_epochs * (len(labels) // 50)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=n_steps)
    for _ in range(n_epochs):
        for batch in torch.split(torch.randperm(len(labels)), 50):
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.eval()


def main() -> None:
    """Compress the network, show what it came to, and write it to files."""
    train, test = load()
    result = compress_env.compress(trained(), train, test, macs=0.5, size=0.1, effort="quick")
    print(result.table[["network", "is_chosen", "test_accuracy", "macs", "size_bytes"]])
    print(f"{result.save('small.cenv')} bytes packed, {result.to_onnx('small.onnx')} as ONNX")


if __name__ == "__main__":
    main()
