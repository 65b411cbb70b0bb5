"""The quantization environment on small networks."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.networks.checkpoints import save_checkpoint
from compress_env.networks.models import build_model
from compress_env.quantization.activations import input_quantizer_of
from compress_env.quantization.fake_quant import bake, bits_of, quantizer_of
from compress_env.quantization.packing import load, pack, save
from compress_env.quantization.scales import fit_scale, rounded_scale
from compress_env.task.layers import compute_layers
from compress_env.task.task import FinetuneConfig
from tests.fakes import BranchedNet, PlainNet, make_data, seeded

QUICK: dict[str, Any] = {"finetune_steps": 0, "device": "cpu"}


@cache
def data() -> Any:
    return make_data()


def act(env: QuantizationEnv, actions: Any) -> list[tuple[Any, ...]]:
    env.reset(seed=0)
    return [env.step(np.array([a], np.float32)) for a in actions]


def actions_for(env: QuantizationEnv, bits: list[int]) -> list[float]:
    return [2 * (b - env.min_bits) / (8 - env.min_bits) - 1 for b in bits]


@pytest.mark.parametrize("activation_bits", [None, 8])
@pytest.mark.parametrize("build", [PlainNet, BranchedNet])
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**16), budget=st.floats(0.0, 1.0), zeros=st.sampled_from([0.0, 0.8]))
def test_every_action_sequence_meets_the_budget(
    build: type[nn.Module], activation_bits: int | None, seed: int, budget: float, zeros: float
) -> None:
    rng, model = np.random.default_rng(seed), seeded(build)
    for layer in compute_layers(model).values():
        layer.weight.data[torch.from_numpy(rng.random(layer.weight.shape) < zeros)] = 0
    # A learning rate that moves many weights to other levels.
    options: dict[str, Any] = {
        "activation_bits": activation_bits,
        "finetune_steps": 4,
        "finetune_config": FinetuneConfig(learning_rate=0.05, batch_norm_batches=1),
        "reward_at": "episode",
        "device": "cpu",
    }
    free = QuantizationEnv(model, data(), **options)
    lowest = free.unpruned.cost_low / free.unpruned.cost_high
    budget = lowest + 0.5 * budget * (1.0 - lowest)
    env = QuantizationEnv(model, data(), size_budget=budget, **options)
    actions = np.where(rng.random(len(env.walk)) < 0.5, 1.0, rng.uniform(-1, 1, len(env.walk)))
    info = act(env, actions)[-1][-1]
    size = len(pack(env.live_model()))
    assert size <= budget * env.unpruned.cost_high
    assert info["size_bytes"] == size
    env.task.finetune(env.live_model(), 20, torch.Generator().manual_seed(seed))
    assert len(pack(env.live_model())) <= budget * env.unpruned.cost_high


def test_predicted_bytes_are_those_of_the_packed_file_after_every_step(tmp_path: Path) -> None:
    env = QuantizationEnv(seeded(BranchedNet), data(), finetune_steps=2, device="cpu")
    env.reset()
    for action in actions_for(env, [8, 2, 5, 1, 3, 7, 4, 6]):
        info = env.step(np.array([action], np.float32))[-1]
        assert info["size_bytes"] == len(pack(env._network_after(env._executed).model))
        assert info["reward_terms"]["cost"] == info["size_bytes"]
    assert info["size_bytes"] == save(tmp_path / "packed.cenv", env.live_model())


def test_the_budget_is_a_fraction_of_the_float32_file(tmp_path: Path) -> None:
    env = QuantizationEnv(seeded(BranchedNet), data(), size_budget=0.7, **QUICK)
    save_checkpoint(env.task.model, tmp_path / "float.safetensors")
    full = (tmp_path / "float.safetensors").stat().st_size
    assert env.unpruned.cost_high == full
    assert env.budget_bytes == 0.7 * full


def test_a_budget_leaves_little_of_itself_unused() -> None:
    model = seeded(lambda: build_model("lenet5", 3, (1, 8, 8)))
    env = QuantizationEnv(model, data(), size_budget=0.1, **QUICK)
    act(env, [1.0] * 5)
    assert 0.85 * env.budget_bytes < len(pack(env.live_model())) <= env.budget_bytes


def test_walk_is_every_layer_in_execution_order() -> None:
    env = QuantizationEnv(seeded(BranchedNet), data(), **QUICK)
    assert [layer.name for layer in env.walk] == [
        "stem.0",
        "block1.0",
        "block2",
        "depthwise",
        "left",
        "right.0",
        "merge",
        "head",
    ]


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_bit_width_gives_that_many_levels(bits: int) -> None:
    env = QuantizationEnv(seeded(PlainNet), data(), **QUICK)
    results = act(env, actions_for(env, [bits] * 4))
    assert [r[-1]["bits"] for r in results] == [bits] * 4
    model = env.compressed_model()
    assert [bits_of(layer) for layer in compute_layers(model).values()] == [bits] * 4
    bake(model)
    for layer in compute_layers(model).values():
        levels = max(len(torch.unique(channel)) for channel in layer.weight)
        assert 1 < levels <= max(2, 2**bits - 1)
        assert isinstance(layer.weight, nn.Parameter)


def test_bits_follow_the_action_affinely() -> None:
    env = QuantizationEnv(seeded(PlainNet), data(), **QUICK)
    bits = [act(env, [a])[0][-1]["bits"] for a in np.linspace(-1, 1, 8)]
    assert bits == list(range(1, 9))
    assert all(type(b) is int for b in bits)


def test_finetuning_trains_the_quantized_network() -> None:
    model = seeded(PlainNet)
    accuracies = []
    for steps in (0, 40):
        env = QuantizationEnv(model, data(), finetune_steps=steps, device="cpu")
        accuracies.append(act(env, actions_for(env, [2, 2, 2, 2]))[-1][-1]["accuracy"])
        layer = compute_layers(env.compressed_model())["fc1"]
        assert max(len(torch.unique(channel)) for channel in layer.weight) <= 3
    assert accuracies[1] > accuracies[0] + 0.2


def test_pruned_network_is_quantized_and_comes_back_from_its_file(tmp_path: Path) -> None:
    pruning = PruningEnv(seeded(BranchedNet), data(), **QUICK)
    pruning.reset()
    for _ in pruning.walk:
        pruning.step(np.zeros(1, np.float32))
    env = QuantizationEnv(pruning.compressed_model(), data(), **QUICK)
    act(env, actions_for(env, [3, 4, 5, 6, 1, 2, 8, 8]))
    save(tmp_path / "small.cenv", env.compressed_model())
    again = load(tmp_path / "small.cenv", seeded(BranchedNet, seed=5))
    images = next(env.task.calibration_batches())[0]
    with torch.no_grad():
        assert torch.equal(again(images), env.compressed_model()(images))


def test_zeros_from_pruning_stay_zeros() -> None:
    model = seeded(PlainNet)
    assert isinstance(model, PlainNet)
    with torch.no_grad():
        model.fc1.weight[:, ::2] = 0.0
    for bits in (1, 2, 8):
        env = QuantizationEnv(model, data(), finetune_steps=3, device="cpu")
        act(env, actions_for(env, [bits] * 4))
        assert not compute_layers(env.compressed_model())["fc1"].weight[:, ::2].any()


def test_uniform_value_is_the_most_bits_that_fit() -> None:
    free = QuantizationEnv(seeded(PlainNet), data(), **QUICK)
    assert free.uniform_value() == 8
    five = free.most_bytes([5] * 4) / free.unpruned.cost_high
    env = QuantizationEnv(seeded(PlainNet), data(), size_budget=five, **QUICK)
    assert env.uniform_value() == 5


def test_state_shows_feasible_bits() -> None:
    free = QuantizationEnv(seeded(PlainNet), data(), **QUICK)
    budget = free.most_bytes([1, 1, 3, 1]) / free.unpruned.cost_high
    env = QuantizationEnv(seeded(PlainNet), data(), size_budget=budget, **QUICK)
    env.reset()
    observations = [env.step(np.array([-1.0], np.float32))[0] for _ in range(2)]
    assert observations[-1][6:8].tolist() == [1 / 8, 3 / 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_budget": 0.01}, r"size_budget must be in \[0.\d+, 1\]: 1 bit.* got 0.01"),
        ({"size_budget": 2.0}, r"size_budget must be in .* got 2.0"),
        ({"min_bits": 0}, r"min_bits must be in 1..8, got 0"),
        ({"min_bits": 9}, r"min_bits must be in 1..8, got 9"),
        ({"activation_bits": 4}, r"activation_bits must be None or 8, got 4"),
        ({"activation_bits": 0}, r"activation_bits must be None or 8, got 0"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizationEnv(seeded(PlainNet), data(), **QUICK, **options)


def test_inputs_of_decided_layers_are_quantized(tmp_path: Path) -> None:
    env = QuantizationEnv(seeded(PlainNet), data(), activation_bits=8, **QUICK)
    env.reset()
    env.step(np.ones(1, np.float32))
    layers = compute_layers(env.compressed_model())
    assert [input_quantizer_of(x) is not None for x in layers.values()] == [True] + [False] * 3
    # The images are in [0, 2), and the first layer reads them.
    images = torch.cat([x for x, _ in env.task.calibration_batches()])
    first = input_quantizer_of(layers["conv1"])
    assert first is not None
    assert float(first.scale) == pytest.approx(float(images.max()) / 255)
    for _ in range(3):
        env.step(np.ones(1, np.float32))
    model = env.compressed_model()
    assert all(input_quantizer_of(x) is not None for x in compute_layers(model).values())
    save(tmp_path / "net.cenv", model)
    again = load(tmp_path / "net.cenv", seeded(PlainNet, seed=3))
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
        plain = QuantizationEnv(seeded(PlainNet), data(), **QUICK)
        act(plain, [1.0] * 4)
        assert not torch.equal(plain.compressed_model()(images), model(images))


def test_quantized_inputs_are_another_task() -> None:
    names = [
        QuantizationEnv(seeded(PlainNet), data(), activation_bits=bits, **QUICK)._settings
        for bits in (None, 8)
    ]
    assert names[0] != names[1]


def test_network_without_layers_is_refused() -> None:
    class Means(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :3]

    with pytest.raises(ValueError, match="no Conv2d or Linear layer"):
        QuantizationEnv(Means(), data(), device="cpu")


class TiedNet(PlainNet):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv4 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv4.weight = self.conv3.weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.pool(torch.relu(self.conv2(torch.relu(self.conv1(images)))))
        hidden = self.pool(self.conv4(torch.relu(self.conv3(hidden))))
        logits: torch.Tensor = self.fc2(torch.relu(self.fc1(hidden.flatten(1))))
        return logits


def test_layers_that_share_a_weight_are_refused() -> None:
    with pytest.raises(ValueError, match="'conv3' and 'conv4' share one weight"):
        QuantizationEnv(seeded(TiedNet), data(), **QUICK)


def test_weights_that_are_computed_from_others_are_refused() -> None:
    model = seeded(PlainNet)
    assert isinstance(model, PlainNet)
    torch.nn.utils.parametrizations.weight_norm(model.conv2)
    with pytest.raises(ValueError, match="the weight of 'conv2' is computed from others"):
        QuantizationEnv(model, data(), **QUICK)


def test_the_budget_of_a_quantized_network_is_of_its_float32_size() -> None:
    env = QuantizationEnv(seeded(PlainNet), data(), activation_bits=8, **QUICK)
    act(env, [1.0] * 4)
    model = env.compressed_model()
    again = QuantizationEnv(model, data(), size_budget=0.9, **QUICK)
    plain = QuantizationEnv(seeded(PlainNet), data(), size_budget=0.9, **QUICK)
    assert again.budget_bytes == plain.budget_bytes
    with pytest.raises(ValueError, match="the network is quantized: prune it before, or bake it"):
        PruningEnv(model, data(), **QUICK)


def test_the_minimum_that_an_error_names_is_allowed() -> None:
    with pytest.raises(ValueError, match="size_budget must be in") as caught:
        QuantizationEnv(seeded(PlainNet), data(), size_budget=1e-6, **QUICK)
    lowest = float(str(caught.value).split("[")[1].split(",")[0])
    QuantizationEnv(seeded(PlainNet), data(), size_budget=lowest, **QUICK)


class KeywordNet(PlainNet):
    """Calls its first layer by keyword."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.pool(torch.relu(self.conv1(input=images)))
        hidden = self.pool(torch.relu(self.conv2(hidden)))
        logits: torch.Tensor = self.fc2(torch.relu(self.fc1(hidden.flatten(1))))
        return logits


def test_an_input_given_by_keyword_cannot_be_quantized() -> None:
    env = QuantizationEnv(seeded(KeywordNet), data(), activation_bits=8, **QUICK)
    env.reset()
    with pytest.raises(ValueError, match=r"'conv1' gets its input by keyword: call it as conv1"):
        env.step(np.ones(1, np.float32))


@pytest.mark.parametrize(
    ("options", "fit"),
    [({}, rounded_scale), ({"scales": "rounded"}, rounded_scale), ({"scales": "best"}, fit_scale)],
    ids=["default", "rounded", "best"],
)
def test_scales_are_found_as_asked(options: dict[str, Any], fit: Any) -> None:
    model = seeded(PlainNet)
    env = QuantizationEnv(model, data(), **QUICK, **options)
    act(env, [1.0, 1.0, 1.0, 1.0])
    layers = compute_layers(model)
    scales = {name: fit(layer.weight, 8) for name, layer in layers.items()}
    for name, layer in compute_layers(env.live_model()).items():
        quantizer = quantizer_of(layer)
        assert quantizer is not None and torch.equal(quantizer.scale, scales[name])
    others = [rounded_scale(layers[name].weight, 8) for name in scales]
    differ = any(not torch.equal(a, b) for a, b in zip(scales.values(), others, strict=True))
    assert differ == (fit is fit_scale)


def test_unknown_scales_are_refused() -> None:
    unknown: Any = "worst"
    with pytest.raises(ValueError, match="scales must be one of rounded, best, got 'worst'"):
        QuantizationEnv(seeded(PlainNet), data(), scales=unknown)
