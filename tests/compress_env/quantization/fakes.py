"""Small quantized networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress_env.quantization.fake_quant import attach


class DepthwiseNet(nn.Module):
    """A convolution, a depthwise one (two outputs a channel), batch-norms and a linear layer."""

    def __init__(self, width: int = 6, hidden: int = 12) -> None:
        """Build the layers."""
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, hidden, 3, groups=width, bias=False)
        self.bare_norm = nn.BatchNorm2d(hidden, affine=False)
        self.head = nn.Linear(hidden, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        hidden = self.norm(self.conv(images)).relu()
        hidden = self.bare_norm(self.depthwise(hidden)).relu()
        logits: Tensor = self.head(hidden.mean(dim=(2, 3)))
        return logits


def quantized_net(bits: tuple[int, int, int], zeros: bool = False) -> DepthwiseNet:
    torch.manual_seed(0)
    model = DepthwiseNet()
    model(torch.randn(4, 3, 8, 8))
    for name, n_bits in zip(("conv", "depthwise", "head"), bits, strict=True):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        if zeros:
            layer.weight.data.flatten()[::3] = 0
            layer.weight.data[0] = 0
        attach(layer, n_bits)
    return model.eval()
