"""Batch-norms folded into convolutions: the same logits, the same bits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compress_env.networks.models import build_model
from compress_env.quantization.activations import Range, attach_input, input_quantizer_of
from compress_env.quantization.fake_quant import (
    attach,
    bake,
    bits_of,
    quantize_to_integers,
    quantizer_of,
)
from compress_env.quantization.folding import fold_batch_norm
from compress_env.task.layers import compute_layers
from tests.fakes import BranchedNet, seeded


def make_network(name: str, quantized: bool, side: int = 8) -> nn.Module:
    """A network with all kinds of batch-norm factors, and bits 1 to 8 in turn."""
    model = seeded(lambda: build_model(name, 10, (1, side, side)))
    for norm in norms(model):
        with torch.no_grad():
            norm.weight[::3] *= -1
    if quantized:
        for position, layer in enumerate(compute_layers(model).values()):
            attach(layer, 1 + position % 8)
    return model


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def images(n: int = 4, side: int = 8) -> Tensor:
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1))


def integers_of(layer: nn.Module) -> Tensor:
    quantizer = quantizer_of(layer)
    assert quantizer is not None and isinstance(layer.weight, Tensor)
    return quantize_to_integers(layer.weight, quantizer.scale, quantizer.bits)


# The second norm of each of 12 dense layers follows a convolution. The first ones, two transitions'
# and the last one read concatenations, or what is concatenated as well.
FAMILIES = [("resnet20", 21, 0), ("mobilenet_v2_narrow", 32, 0), ("vgg8", 8, 0)]
FAMILIES += [("densenet_small", 12, 15)]


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "quantized"])
@pytest.mark.parametrize(("name", "n_folded", "n_left"), FAMILIES, ids=[x[0] for x in FAMILIES])
def test_logits_stay_and_norms_go(name: str, n_folded: int, n_left: int, quantized: bool) -> None:
    model = make_network(name, quantized)
    folded = fold_batch_norm(model, images(1))
    assert len(norms(model)) == n_folded + n_left
    assert len(norms(folded)) == n_left
    with torch.no_grad():
        wanted, got = model(images()), folded(images())
    assert float((got - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    layers = compute_layers(folded)
    for layer_name, layer in compute_layers(model).items():
        assert bits_of(layers[layer_name]) == bits_of(layer)


def block(bits: int | None, weight: list[float]) -> nn.Sequential:
    """A convolution with bias and a norm with the given weights, variance 4 - eps, mean 0.5."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, len(weight), 3), nn.BatchNorm2d(len(weight))).eval()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(model[0], nn.Conv2d)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.weight.data = torch.tensor(weight)
    norm.bias.data.fill_(0.25)
    norm.running_mean.fill_(0.5)
    norm.running_var.fill_(4.0 - norm.eps)
    model[0].weight.data[0, 0, 0] = 0.0
    if bits is not None:
        attach(model[0], bits)
    return model


@pytest.mark.parametrize("bits", range(1, 9))
def test_integers_stay_up_to_their_sign(bits: int) -> None:
    model = block(bits, [2.0, -6.0, 0.0, 1e-38])
    folded = fold_batch_norm(model, torch.rand(1, 2, 5, 5))
    before, after = model[0], folded.get_submodule("0")
    assert isinstance(before, nn.Conv2d) and isinstance(after, nn.Conv2d)
    assert before.bias is not None and after.bias is not None
    sign = torch.tensor([1, -1, 0, 0], dtype=torch.int8).view(-1, 1, 1, 1)
    assert torch.equal(integers_of(after), sign * integers_of(before))
    old, new = quantizer_of(before), quantizer_of(after)
    assert old is not None and new is not None and new.bits == bits
    growth = torch.tensor([1.0, 3.0, 1.0, 1.0])  # the norm's weight over its deviation of 2
    torch.testing.assert_close(new.scale, growth * old.scale, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(new.clip, growth * old.clip, rtol=1e-6, atol=0.0)
    # g (b - mean) + beta
    bias = torch.tensor([1.0, -3.0, 0.0, 0.0]) * (before.bias.detach() - 0.5) + 0.25
    torch.testing.assert_close(after.bias, bias, rtol=0.0, atol=1e-6, check_dtype=True)


def test_float_weights_are_multiplied_by_hand() -> None:
    model = block(None, [2.0, -6.0, 0.0])
    folded = fold_batch_norm(model, torch.zeros(1, 2, 5, 5))
    before, after = model[0], folded.get_submodule("0")
    assert isinstance(before, nn.Conv2d) and isinstance(after, nn.Conv2d)
    assert before.bias is not None and after.bias is not None
    factor = torch.tensor([1.0, -3.0, 0.0])
    torch.testing.assert_close(after.weight, factor.view(-1, 1, 1, 1) * before.weight)
    torch.testing.assert_close(after.bias, factor * (before.bias - 0.5) + 0.25)
    assert isinstance(folded.get_submodule("1"), nn.Identity)


def test_the_model_is_left_as_it_is_and_inputs_stay_quantized() -> None:
    model = make_network("vgg8", quantized=True).train()
    layers = compute_layers(model)
    for layer in layers.values():
        attach_input(layer, Range(-1.0, 4.0))
    state = copy.deepcopy(model.state_dict())
    folded = fold_batch_norm(model, images(1))
    assert model.training and not folded.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        wanted, got = model.eval()(images()), folded(images())
    # Rounding of float32 may take an input across half a level.
    assert float((got - wanted).abs().max()) <= 0.05 * float(wanted.abs().max())
    assert all(input_quantizer_of(layer) is not None for layer in compute_layers(folded).values())


class Awkward(nn.Module):
    """Pairs that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.norm1 = nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4)
        self.called_twice, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.changed, self.norm3 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.tied, self.norm4 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.last, self.norm5 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, stream: Tensor) -> Tensor:
        first = self.read_twice(stream)
        stream = self.norm1(first) + first
        stream = self.norm2(self.called_twice(self.called_twice(stream)))
        stream = self.norm3(torch.relu(self.changed(stream)))
        stream = self.norm4(self.tied(stream)) * self.tied.weight.sum()
        stream = self.norm5(self.last(stream))
        return stream.mean((2, 3))


def test_what_is_used_elsewhere_is_left_as_it_is() -> None:
    model = seeded(Awkward)
    model.norm5 = nn.BatchNorm2d(4, track_running_stats=False)
    folded = fold_batch_norm(model, torch.zeros(2, 1, 4, 4))
    assert len(norms(folded)) == 5
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), folded.parameters(), strict=True)
    )


def test_a_branched_network_is_folded_where_it_can_be() -> None:
    model = seeded(BranchedNet)
    folded = fold_batch_norm(model, images(1))
    assert norms(folded) == []
    torch.testing.assert_close(folded(images()), model(images()), rtol=0.0, atol=1e-5)


def test_a_folded_network_can_be_baked() -> None:
    folded = fold_batch_norm(make_network("vgg8", quantized=True), images(1))
    baked = copy.deepcopy(folded)
    bake(baked)
    assert torch.equal(folded(images()), baked(images()))


class KeywordNet(nn.Sequential):
    """A norm that gets its input by keyword, and a convolution whose weight is computed."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        )
        torch.nn.utils.parametrizations.weight_norm(self[2])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self[1](input=self[0](images))
        logits: torch.Tensor = self[3](self[2](hidden)).mean((2, 3))
        return logits


def test_unusual_calls_and_computed_weights_are_left_as_they_are() -> None:
    model, image = KeywordNet().eval(), torch.randn(2, 1, 6, 6)
    folded = fold_batch_norm(model, image)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == 2
    assert torch.equal(folded(image), model(image))
