"""Information dropout's formulas, by hand, by limits and by sampling; removal of elements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from compress_env.pruning.elements import (
    LEAST_STD,
    PRESETS,
    WINDOW,
    ElementPruner,
    Information,
    VariationalConfig,
    measure_information,
    softplus_behind,
    zero_elements,
)
from compress_env.pruning.variational import (
    ALPHA_MAX,
    AlphaForm,
    InformationDropout,
    kl_log_normal,
    kl_log_uniform,
    remove_elements,
    saliency,
)
from compress_env.task.layers import compute_layers
from compress_env.task.task import CompressionTask
from tests.fakes import BranchedNet, PlainNet, make_data, seeded


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestDropout:
    def test_evaluation_passes_everything(self) -> None:
        dropout = InformationDropout(3, dim=1).eval()
        features = torch.randn(2, 3, 4, 4)
        assert torch.equal(dropout(features), features)
        half = math.log(2.0)  # sigmoid(0) = 1/2
        torch.testing.assert_close(dropout.information, torch.full((3,), half))

    def test_training_multiplies_by_the_noise(self) -> None:
        dropout = InformationDropout(2, dim=-1).train()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            noisy = dropout(torch.ones(50_000, 2))
        assert noisy.mean().item() == pytest.approx(1.0, abs=0.01)
        expected = math.expm1((ALPHA_MAX / 2) ** 2)
        assert noisy.var().item() == pytest.approx(expected, rel=0.05)

    def test_each_channel_has_its_own_width(self) -> None:
        dropout = InformationDropout(2, dim=1)
        dropout.slope.data = torch.tensor([0.0, 1.0])
        dropout.offset.data = torch.tensor([-1.0, 2.0])
        features = torch.tensor([[[[3.0]], [[0.5]]]])
        alpha = dropout.alpha(features).flatten()
        expected = ALPHA_MAX * torch.sigmoid(torch.tensor([-1.0, 2.5]))
        torch.testing.assert_close(alpha, expected)

    def test_positive_features_have_the_log_normal_prior(self) -> None:
        dropout = InformationDropout(1, dim=-1, is_positive=True)
        feature = torch.tensor([[1.7]])
        dropout(feature)
        zero, one = torch.zeros(1), torch.ones(1)
        expected = kl_log_normal(torch.full((1, 1), ALPHA_MAX / 2), feature, zero, one)
        torch.testing.assert_close(dropout.information, expected[0])

    @pytest.mark.parametrize("form", ["channel", "layer"])
    @pytest.mark.parametrize(("shape", "dim"), [((5, 3, 4, 2), 1), ((5, 3), -1), ((5, 7, 3), -1)])
    def test_divergence_is_the_sum_over_units_of_an_image(
        self, form: AlphaForm, shape: tuple[int, ...], dim: int
    ) -> None:
        dropout = InformationDropout(3, dim, form=form).eval()
        dropout.offset.data = torch.tensor([-1.0, 0.5, 3.0])
        dropout.slope.data.normal_(generator=generator())
        features = torch.randn(shape, generator=generator(1))
        dropout(features)
        each = kl_log_uniform(dropout.alpha(features)).flatten(1).sum(1)  # (b,)
        torch.testing.assert_close(dropout.divergence, each.mean())
        n_places = features[0].numel() // 3
        torch.testing.assert_close(dropout.divergence, n_places * dropout.information.sum())

    @pytest.mark.parametrize(("shape", "dim"), [((2, 3, 4, 5), 1), ((2, 3), -1), ((2, 6, 3), -1)])
    def test_a_second_layer_sees_all_channels_of_a_place(
        self, shape: tuple[int, ...], dim: int
    ) -> None:
        dropout = InformationDropout(3, dim, form="layer")
        dropout.slope.data = torch.randn(3, 3, generator=generator())
        dropout.offset.data = torch.tensor([100.0, -100.0, 0.0])
        features = torch.randn(shape, generator=generator(1))
        alpha = dropout.alpha(features)
        assert alpha.shape == features.shape
        assert bool(((alpha > 0.0) & (alpha <= ALPHA_MAX)).all())
        place = features.movedim(dim, -1).reshape(-1, 3)[-1]  # (N,)
        by_hand = ALPHA_MAX * torch.sigmoid(dropout.slope @ place + dropout.offset)
        found = alpha.movedim(dim, -1).reshape(-1, 3)[-1]
        torch.testing.assert_close(found, by_hand)
        assert bool(torch.isfinite(dropout.kl(features)).all())

    def test_an_unknown_form_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"unknown alpha 'layers'.*layer"):
            InformationDropout(3, 1, form="layers")  # type: ignore[arg-type]


def test_saliency_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.0, 4.0]])
    scores = saliency(weight, torch.tensor([3.0, 0.5]), torch.tensor([0.999, -1.0]))
    torch.testing.assert_close(scores, torch.tensor([[3.0, 1.0], [0.0, 0.002]]))


class TestRemoval:
    def test_without_temperature_the_least_salient_go(self) -> None:
        scores = torch.tensor([[5.0, 1.0, 3.0], [2.0, 0.0, 4.0]])
        gone = remove_elements(scores, 3, 0.0, generator())
        assert gone.tolist() == [[False, True, False], [True, True, False]]

    @given(n=st.integers(1, 60), share=st.floats(0, 1), temperature=st.floats(0, 5))
    def test_exactly_as_many_as_asked_for(self, n: int, share: float, temperature: float) -> None:
        scores = torch.rand(n, generator=generator(n))
        n_remove = round(share * n)
        gone = remove_elements(scores, n_remove, temperature, generator(1))
        assert int(gone.sum()) == n_remove

    def test_first_choice_has_the_stated_probabilities(self) -> None:
        scores = torch.tensor([0.5, 1.0, 2.0])
        draws, source = 4000, generator(2)
        counts = sum(remove_elements(scores, 1, 1.0, source).double() for _ in range(draws))
        assert isinstance(counts, Tensor)
        expected = (1 / scores) / (1 / scores).sum()
        np.testing.assert_allclose(counts / draws, expected, atol=0.03)

    def test_zeros_go_first_whatever_the_temperature(self) -> None:
        scores = torch.tensor([0.0, 1.0, 0.0, 1e-30])
        for seed in range(20):
            gone = remove_elements(scores, 2, 3.0, generator(seed))
            assert gone.tolist() == [True, False, True, False]

    @pytest.mark.parametrize(("n_remove", "temperature"), [(5, 0.0), (-1, 0.0), (1, -0.1)])
    def test_bad_arguments(self, n_remove: int, temperature: float) -> None:
        with pytest.raises(ValueError, match=r"n_remove in 0\.\.4|temperature must be"):
            remove_elements(torch.ones(4), n_remove, temperature, generator())


class SoftplusNet(PlainNet):
    """A network whose first layer is followed by a softplus module."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.soft = nn.Softplus()

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.pool(self.soft(self.norm(self.conv1(images))))
        hidden = self.pool(torch.relu(self.conv2(hidden)))
        return self.fc2(torch.relu(self.fc1(hidden.flatten(1))))  # type: ignore[no-any-return]


QUIET = pytest.mark.filterwarnings("ignore:information dropout has not told")


def prune(task: CompressionTask, model: nn.Module, layer: str, n_keep: int, **settings: Any) -> Any:
    weight = compute_layers(model)[layer].weight
    rms = torch.ones(weight.flatten(1).shape[1])
    pruner = ElementPruner(task, VariationalConfig(**settings))
    return pruner.prune(model, layer, n_keep, lambda: rms, generator(5))


class NoisyNet(PlainNet):
    """A network of which one output of the first layer is noise that nothing heeds."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.conv2.weight[:, 0] = 0.0  # zeros are the mask: training leaves them


class TestElements:
    def test_softplus_is_found_behind_batch_norm(self) -> None:
        model = seeded(SoftplusNet)
        image = torch.zeros(1, 1, 8, 8)
        assert softplus_behind(model, "conv1", image) is model.soft
        assert softplus_behind(model, "conv2", image) is None

    @QUIET
    @pytest.mark.parametrize("build", [PlainNet, SoftplusNet, BranchedNet])
    def test_network_is_left_without_dropout_and_with_exactly_so_many_elements(
        self, build: type[nn.Module]
    ) -> None:
        task = CompressionTask(seeded(build), make_data(), device="cpu")
        model = seeded(build)
        names = set(dict(model.named_modules()))
        layer = "conv1" if build is not BranchedNet else "block2"
        prune(task, model, layer, 7, n_steps=2)
        assert int(torch.count_nonzero(compute_layers(model)[layer].weight)) == 7
        assert set(dict(model.named_modules())) == names
        assert not model.training
        assert not any(m._forward_hooks for m in model.modules())

    @pytest.mark.parametrize("alpha", ["channel", "layer"])
    def test_a_unit_that_nothing_heeds_keeps_least(self, alpha: AlphaForm) -> None:
        task = CompressionTask(seeded(NoisyNet), make_data(), device="cpu")
        config = VariationalConfig(n_steps=100, kl_weight=1e-5, alpha=alpha)
        found = measure_information(task, seeded(NoisyNet), "conv1", config, generator())
        assert found.std > 2 * LEAST_STD
        assert found.values[0] < found.values.min() + 1e-3
        assert found.values[0] < 0.1 * found.values.mean()

    @QUIET
    def test_a_higher_price_leaves_less(self) -> None:
        task = CompressionTask(seeded(PlainNet), make_data(), device="cpu")
        kept = [
            measure_information(
                task,
                seeded(PlainNet),
                "conv2",
                VariationalConfig(n_steps=100, kl_weight=weight),
                generator(),
            ).values.mean()
            for weight in (1.0, 0.0)
        ]
        assert kept[0] < 0.1 * kept[1]

    def test_units_that_are_not_told_apart_are_warned_of(self) -> None:
        task = CompressionTask(seeded(PlainNet), make_data(), device="cpu")
        config = VariationalConfig(n_steps=2, alpha_learning_rate=1e-4)
        with pytest.warns(UserWarning, match=r"outputs of 'conv2' apart: .* 0\.000 nats"):
            measure_information(task, seeded(PlainNet), "conv2", config, generator())
        without = VariationalConfig(n_steps=0)
        found = measure_information(task, seeded(PlainNet), "conv2", without, generator())
        assert found.std < 1e-6 and found.n_steps == 0  # and no warning: nothing was to be told

    def test_training_ends_once_the_spread_has_settled(self) -> None:
        task = CompressionTask(seeded(PlainNet), make_data(), device="cpu")
        steps = [
            measure_information(
                task,
                seeded(PlainNet),
                "conv2",
                VariationalConfig(n_steps=4 * WINDOW, tolerance=tolerance),
                generator(),
            ).n_steps
            for tolerance in (0.0, 1e9)
        ]
        assert steps[0] == 4 * WINDOW  # never
        assert steps[1] in (WINDOW, 2 * WINDOW)  # at the first window that tells outputs apart

    @QUIET
    def test_what_outputs_keep_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        task = CompressionTask(seeded(PlainNet), make_data(), device="cpu")
        config = VariationalConfig(n_steps=3)
        with caplog.at_level("INFO", "compress_env.pruning.elements"):
            found = measure_information(task, seeded(PlainNet), "conv2", config, generator())
        (line,) = caplog.messages
        assert line.startswith("outputs of 'conv2' keep ") and line.endswith("after 3 minibatches")
        assert f"standard deviation {found.std:.3f}," in line

    @QUIET
    def test_alpha_alone_learns_at_its_own_rate(self) -> None:
        task = CompressionTask(seeded(PlainNet), make_data(), device="cpu")
        networks = []
        for rate in (0.0, 0.1):
            model = seeded(PlainNet)
            config = VariationalConfig(n_steps=1, alpha_learning_rate=rate)
            found = measure_information(task, model, "conv2", config, generator())
            torch.testing.assert_close(found.std, 0.0) if rate == 0.0 else None
            networks.append(model)
        # The first minibatch is the same for both: so is what it does to the weights.
        for left, right in zip(*(m.parameters() for m in networks), strict=True):
            assert torch.equal(left, right)

    @QUIET
    def test_same_generator_same_network(self) -> None:
        task = CompressionTask(seeded(PlainNet), make_data(), device="cpu")
        models = [seeded(PlainNet) for _ in range(2)]
        for model in models:
            prune(task, model, "conv2", 50, n_steps=3, temperature=0.5)
        for left, right in zip(*(m.parameters() for m in models), strict=True):
            assert torch.equal(left, right)

    @QUIET
    def test_another_rate_of_the_same_network_needs_no_training(self) -> None:
        task = CompressionTask(seeded(PlainNet), make_data(), device="cpu")
        config = VariationalConfig(n_steps=3, temperature=0.5)
        asked: list[int] = []

        def rms() -> Tensor:
            asked.append(1)
            return torch.ones(36)

        shared, found = ElementPruner(task, config), []
        for n_keep in (50, 20):
            models = [seeded(PlainNet), seeded(PlainNet)]
            shared.prune(models[0], "conv2", n_keep, rms, generator(5))
            ElementPruner(task, config).prune(
                models[1], "conv2", n_keep, lambda: torch.ones(36), generator(5)
            )
            for left, right in zip(*(m.parameters() for m in models), strict=True):
                assert torch.equal(left, right)
            found.append(models[0])
        assert len(asked) == 1
        shared.prune(found[-1], "conv2", 10, rms, generator(5))  # another network
        shared.prune(seeded(PlainNet), "conv2", 10, rms, generator(6))  # another seed
        assert len(asked) == 3

    @given(
        share=st.floats(0, 1), temperature=st.sampled_from([0.0, 0.3, 3.0]), shuffle=st.booleans()
    )
    def test_exactly_so_many_elements_stay(
        self, share: float, temperature: float, shuffle: bool
    ) -> None:
        weight = torch.randn(6, 4, 3, 3, generator=generator())
        config = VariationalConfig(temperature=temperature, shuffle=shuffle)
        information = Information(torch.rand(6, generator=generator(1)), 0)
        n_keep = round(share * weight.numel())
        zero_elements(weight, n_keep, torch.rand(36), information, config, generator(2))
        assert int(torch.count_nonzero(weight)) == n_keep

    def test_shuffled_information_is_that_of_other_units(self) -> None:
        information = Information(torch.tensor([1e-9, 1.0, 1.0, 1.0, 1.0, 1.0]), 0)
        gone = []
        for shuffle in (False, True):
            weight = torch.ones(6, 4)
            config = VariationalConfig(shuffle=shuffle)
            zero_elements(weight, 20, torch.ones(4), information, config, generator(3))
            gone.append(int((weight == 0).all(1).int().argmax()))
            assert int((weight == 0).all(1).sum()) == 1
        assert gone[0] == 0 != gone[1]

    def test_the_paper_removes_with_a_probability(self) -> None:
        assert PRESETS["paper"].temperature > 0.0 == PRESETS["default"].temperature

    @pytest.mark.parametrize(
        "name", ["n_steps", "kl_weight", "alpha_learning_rate", "tolerance", "temperature"]
    )
    def test_negative_settings_are_refused(self, name: str) -> None:
        settings: dict[str, Any] = {name: -1}
        with pytest.raises(ValueError, match=f"{name} must be 0 or more, got -1"):
            VariationalConfig(**settings)
